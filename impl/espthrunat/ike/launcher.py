"""Exchanges under way: begins them, finds them again, and knows what each is for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..messages import Path
from ..wire.isakmp import Header
from .aggressive_mode import AggressiveModeInitiator
from .context import Context
from .ike_sa import IkeSa
from .main_mode import MainModeInitiator
from .policy import Connection, Exchange
from .quick_mode import PolicyRefusal, QuickMode
from .quick_mode import State as QuickState
from .sa_table import Pair, Phase1, Phase1Table

Initiator = MainModeInitiator | AggressiveModeInitiator


@dataclass(frozen=True, slots=True)
class Want:
    """An SA pair that shall be: for which connection, and which pairs it is to replace."""

    connection: Connection
    replaces: tuple[Pair, ...] = ()


class Outcome(Protocol):
    """Who is told how exchanges end."""

    def phase1_done(self, exchange: Phase1, now: float) -> None:
        """Both ends know each other."""

    def phase1_failed(self, exchange: Phase1, reason: str, now: float) -> None:
        """There will be no SA."""

    def quick_finished(self, exchange: QuickMode, now: float) -> None:
        """The new pair may be used both ways."""

    def quick_failed(self, exchange: QuickMode, reason: str, now: float) -> None:
        """There will be no pair; without a reason, the exchange had done its work and is forgotten."""

    def refused_here(self, want: Want, path: Path, reason: str, now: float) -> None:
        """Policy leaves nothing to offer."""


class Launcher:
    """Phase 1 and Quick Mode exchanges of one endpoint."""

    def __init__(self, context: Context, local: tuple[str, int], phase1: Phase1Table, outcome: Outcome) -> None:
        self._context = context
        self._local = local
        self._phase1 = phase1
        self._outcome = outcome
        self._quick: dict[IkeSa, dict[int, QuickMode]] = {}
        self._replacing: dict[QuickMode, tuple[Pair, ...]] = {}
        self._wants: dict[IkeSa, list[Want]] = {}

    def path_to(self, connection: Connection) -> Path:
        """The path to a peer whose address is configured."""
        assert connection.remote is not None
        return Path(*self._local, connection.remote, connection.remote_port)

    # phase 1

    def begin_phase1(self, connection: Connection, path: Path, wants: list[Want], now: float) -> Initiator:
        """Begin a phase 1 in order to get what is wanted."""
        aggressive = connection.exchange == Exchange.AGGRESSIVE
        kind: type[Initiator] = AggressiveModeInitiator if aggressive else MainModeInitiator
        outcome = self._outcome
        exchange = kind(self._context, connection, path, now, done=outcome.phase1_done, failed=outcome.phase1_failed)
        self._wants[exchange.sa] = wants
        self._phase1.add(exchange)
        return exchange

    def beginning(self, path: Path) -> list[Phase1]:
        """Phase 1 exchanges to this peer that were begun here and are under way."""
        return [e for e in self._phase1 if e.sa.path == path and e.sa.initiator and not e.sa.established]

    def want_also(self, exchange: Phase1, want: Want) -> None:
        """Let a phase 1 that is under way serve another connection too."""
        wants = self._wants.setdefault(exchange.sa, [])
        if all((w.connection.name, w.replaces) != (want.connection.name, want.replaces) for w in wants):
            wants.append(want)

    def want_no_more(self, sa: IkeSa, connection: str) -> bool:
        """A connection is not wanted any more; whether the phase 1 is still wanted for others."""
        rest = [want for want in self._wants.get(sa, ()) if want.connection.name != connection]
        if sa in self._wants:
            self._wants[sa] = rest
        return bool(rest)

    def take_wants(self, sa: IkeSa) -> list[Want]:
        """What a phase 1 that has ended was for."""
        return self._wants.pop(sa, [])

    # Quick Mode

    def begin_quick(self, sa: IkeSa, want: Want, now: float, *, initial_contact: bool = False) -> None:
        """Begin a Quick Mode."""
        exchange = self._make(sa, want.connection, self._context.message_id(), now)
        sa.used_message_ids.add(exchange.message_id)
        try:
            exchange.start(now, initial_contact=initial_contact)
        except PolicyRefusal as refusal:
            self._outcome.refused_here(want, sa.path, str(refusal), now)
            return
        self._keep(exchange, want.replaces)

    def answer_quick(self, sa: IkeSa, header: Header, datagram: bytes, now: float) -> QuickMode:
        """Answer a peer's message 1; PolicyRefusal carries the exchange's connection in the endpoint's log."""
        exchange = self._make(sa, sa.connection, header.message_id, now)
        exchange.respond(header, datagram, now)
        return exchange

    def keep_answered(self, exchange: QuickMode, replaces: tuple[Pair, ...]) -> None:
        """Remember a Quick Mode that was answered, and which pairs its own will replace."""
        self._keep(exchange, replaces)

    def find_quick(self, sa: IkeSa, message_id: int) -> QuickMode | None:
        """The exchange of a message."""
        return self._quick.get(sa, {}).get(message_id)

    def quick_of(self, sa: IkeSa) -> list[QuickMode]:
        """All under one phase 1."""
        return list(self._quick.get(sa, {}).values())

    def all_quick(self) -> Iterator[QuickMode]:
        """All there are."""
        for exchanges in list(self._quick.values()):
            yield from list(exchanges.values())

    def brings(self, connection: str) -> bool:
        """Whether a Quick Mode for it was begun here and is under way."""
        return any(q.connection.name == connection and q.state == QuickState.WAITS_FOR_2 for q in self.all_quick())

    def replaced_by(self, exchange: QuickMode) -> tuple[Pair, ...]:
        """The pairs that this exchange replaces; asked once."""
        return self._replacing.pop(exchange, ())

    def forget_quick(self, exchange: QuickMode) -> None:
        """An exchange has ended."""
        exchange.abandon()
        self._replacing.pop(exchange, None)
        mine = self._quick.get(exchange.sa, {})
        mine.pop(exchange.message_id, None)
        if not mine:
            self._quick.pop(exchange.sa, None)

    def _make(self, sa: IkeSa, connection: Connection, message_id: int, now: float) -> QuickMode:
        outcome = self._outcome
        return QuickMode(
            self._context,
            sa,
            connection,
            message_id,
            now,
            finished=outcome.quick_finished,
            failed=outcome.quick_failed,
        )

    def _keep(self, exchange: QuickMode, replaces: tuple[Pair, ...]) -> None:
        self._quick.setdefault(exchange.sa, {})[exchange.message_id] = exchange
        self._replacing[exchange] = replaces
