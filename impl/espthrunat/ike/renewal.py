"""When SAs are replaced, and when they end at the latest (the draft, 5, IKE Rekey; RFC 2407, 4.5).

Who began a pair or a phase 1 replaces it some time before it ends; if it does not, the other side does so half that
time later. A pair is replaced under the newest phase 1 with the peer, or under a new one where none is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .context import Context
from .events import SaRetired
from .policy import Connection
from .sa_table import Pair, PairTable, Phase1, Phase1Table

_JITTER = 0.5  # of the margin: what began together need not be renewed together


class Owner(Protocol):
    """Who can make new SAs and end old ones."""

    def replace_pair(self, pair: Pair, now: float) -> None:
        """Begin the exchange that makes this pair's successor."""

    def replace_phase1(self, exchange: Phase1, now: float) -> None:
        """Begin the exchange that makes this phase 1's successor."""

    def drop_pair(self, pair: Pair, reason: str, now: float, *, tell: bool) -> None:
        """End a pair; `tell` the peer."""

    def drop_phase1(self, exchange: Phase1, reason: str, now: float, *, tell: bool) -> None:
        """End a phase 1; `tell` the peer."""

    def pair_expired(self, pair: Pair, now: float) -> None:
        """The end of a pair that nothing has replaced."""


class Renewal:
    """The timers of SAs that are up."""

    def __init__(
        self,
        context: Context,
        phase1: Phase1Table,
        pairs: PairTable,
        connection: Callable[[str], Connection],
        owner: Owner,
    ) -> None:
        self._context = context
        self._phase1 = phase1
        self._pairs = pairs
        self._connection = connection
        self._owner = owner

    # pairs

    def pair_made(self, pair: Pair, now: float) -> None:
        """Keys are agreed on: from now on the pair lives at most its lifetime."""
        self._context.timers.set(("hard", pair.spi), pair.child.expires, lambda later: self._pair_ends(pair, later))

    def pair_up(self, pair: Pair, now: float) -> None:
        """Both ends may send."""
        connection = self._connection(pair.child.connection)
        if connection.rekey:
            margin = self._margin(connection, pair.child.expires - pair.since, pair.child.initiator)
            self._soon(pair, max(now, pair.child.expires - margin))

    def use_up(self, pair: Pair, now: float) -> None:
        """The pair must be replaced early: its octets or sequence numbers are nearly used up, or somebody asks."""
        if pair.usable and not pair.replacing:
            self._owner.replace_pair(pair, now)

    def not_replaced(self, pair: Pair, now: float) -> None:
        """The attempt has failed: try again while there is time."""
        if not pair.replacing:
            return
        pair.replacing = False
        connection = self._connection(pair.child.connection)
        if pair.spi in self._pairs and connection.rekey:
            wait = min(connection.retry, (pair.child.expires - now) / 2)
            self._soon(pair, now + wait)

    def replaced(self, old: Pair, now: float, *, mine: bool) -> None:
        """A successor is up. Nothing more is sent on `old`; who made the successor deletes it, after an overlap."""
        if old.spi not in self._pairs or old.retired:
            return
        old.retired = True
        self._context.timers.cancel(("soft", old.spi))
        self._context.emit(SaRetired(old.child))
        if mine:
            overlap = self._connection(old.child.connection).rekey_overlap
            due = min(now + overlap, old.child.expires)
            self._context.timers.set(
                ("hard", old.spi),
                due,
                lambda later: self._owner.drop_pair(old, "replaced", later, tell=True),
            )

    def forget_pair(self, pair: Pair) -> None:
        """The pair is gone."""
        self._context.timers.cancel(("soft", pair.spi))
        self._context.timers.cancel(("hard", pair.spi))

    def _soon(self, pair: Pair, due: float) -> None:
        self._context.timers.set(("soft", pair.spi), due, lambda now: self.use_up(pair, now))

    def _pair_ends(self, pair: Pair, now: float) -> None:
        self._owner.drop_pair(pair, "lifetime ended", now, tell=True)
        if not pair.retired:
            self._owner.pair_expired(pair, now)

    # phase 1

    def phase1_up(self, exchange: Phase1, now: float) -> None:
        """Phase 1 is complete. Those that were there when it began are deleted by whoever began it.

        Not those that came up meanwhile: both ends may have begun at once, and each would delete the other's.
        """
        sa = exchange.sa
        timers = self._context.timers
        self._end_phase1(exchange, sa.expires, "lifetime ended")
        if sa.connection.rekey:
            margin = self._margin(sa.connection, sa.expires - now, sa.initiator)
            timers.set(
                ("phase 1 soft", sa),
                max(now, sa.expires - margin),
                lambda later: self._phase1_ages(exchange, later),
            )
        for old in self._phase1.of(sa.identity, sa.path):
            if old is exchange or self._phase1.since(old) >= sa.started:
                continue
            timers.cancel(("phase 1 soft", old.sa))
            if sa.initiator:
                self._end_phase1(old, min(now + sa.connection.rekey_overlap, old.sa.expires), "replaced")

    def phase1_not_replaced(self, exchange: Phase1, now: float) -> None:
        """The attempt has failed: try again while there is time."""
        sa = exchange.sa
        if sa.established and sa.connection.rekey and sa.expires > now:
            due = now + min(sa.connection.retry, (sa.expires - now) / 2)
            self._context.timers.set(("phase 1 soft", sa), due, lambda later: self._phase1_ages(exchange, later))

    def forget_phase1(self, exchange: Phase1) -> None:
        """The SA is gone."""
        self._context.timers.cancel(("phase 1 soft", exchange.sa))
        self._context.timers.cancel(("phase 1", exchange.sa))

    def _end_phase1(self, exchange: Phase1, due: float, reason: str) -> None:
        self._context.timers.set(
            ("phase 1", exchange.sa), due, lambda now: self._owner.drop_phase1(exchange, reason, now, tell=True)
        )

    def _phase1_ages(self, exchange: Phase1, now: float) -> None:
        if self._pairs.of(exchange.sa.identity, exchange.sa.path):  # otherwise nothing needs it: let it end
            self._owner.replace_phase1(exchange, now)

    def _margin(self, connection: Connection, lifetime: float, began_here: bool) -> float:
        """How long before its end an SA of this lifetime is to be replaced here, in seconds."""
        margin = lifetime * connection.rekey_margin
        if not began_here:
            return margin / 2
        return margin * (1 + _JITTER * self._context.entropy.octets(1)[0] / 256)
