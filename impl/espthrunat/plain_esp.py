"""Is plain ESP filtered on the way? NAT discovery cannot know: IKE goes another way than IP protocol 50."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .ike.child_sa import ChildSa
from .ike.timers import Timers
from .messages import Direction, Encapsulation, SaStats

SILENCE = 10.0  # seconds after which ESP should have come back
SETTLED = 1.0  # seconds before which silence says nothing


@dataclass(slots=True)
class _Pair:
    child: ChildSa
    since: float


class PlainEspWatch:
    """Pairs of SAs without UDP on which nothing authentic has come in yet."""

    def __init__(self, timers: Timers, ask: Callable[[], object]) -> None:
        """`ask` gets the plane's counters, for `look`, where nobody else does: from time to time while one is open."""
        self._timers = timers
        self._ask = ask
        self._due = False
        self._unproven: dict[int, _Pair] = {}  # by inbound SPI
        self._pairs: dict[int, tuple[str, str]] = {}  # all of them: connection and peer's address
        self._silent: dict[tuple[str, str], str] = {}

    def added(self, child: ChildSa, now: float) -> None:
        """A pair may receive from now on."""
        if child.encapsulation != Encapsulation.NONE:
            return
        self._unproven[child.inbound_spi] = _Pair(child, now)
        self._pairs[child.inbound_spi] = (child.connection, child.path.remote)
        if not self._due:
            self._look_later(now)

    def used(self, spi: int) -> str:
        """The pair with this inbound SPI has received. The connection, if that is news after a warning, or ""."""
        self._unproven.pop(spi, None)
        peer = self._pairs.get(spi)
        return peer[0] if peer is not None and self._silent.pop(peer, None) is not None else ""

    def gone(self, child: ChildSa) -> None:
        """The pair was replaced or deleted."""
        self._unproven.pop(child.inbound_spi, None)
        peer = self._pairs.pop(child.inbound_spi, None)
        if peer is not None and peer not in self._pairs.values():
            self._silent.pop(peer, None)

    def curious(self, now: float) -> bool:
        """Whether the plane's counters could say anything about a pair."""
        return any(now - pair.since >= SETTLED for pair in self._unproven.values())

    def look(self, sas: Iterable[SaStats], now: float) -> list[tuple[str, str]]:
        """Judge by the plane's counters: connections and what to warn of, each once as long as nothing comes back."""
        sent = {(sa.spi, sa.path.remote) for sa in sas if sa.direction == Direction.OUTBOUND and sa.packets}
        found = []
        for pair in self._unproven.values():
            child = pair.child
            peer = (child.connection, child.path.remote)
            if (
                now - pair.since < SETTLED
                or (child.outbound_spi, child.path.remote) not in sent
                or peer in self._silent
            ):
                continue
            self._silent[peer] = (
                f"no ESP has come back from {child.path.remote}: is IP protocol 50 filtered on the way? "
                'encapsulation = "always" would avoid it'
            )
            found.append((child.connection, self._silent[peer]))
        return found

    def notes(self) -> dict[str, str]:
        """What is to be said of each connection that is silent."""
        return {connection: text for (connection, _), text in self._silent.items()}

    def _look_later(self, now: float) -> None:
        self._due = True
        self._timers.set(self, now + SILENCE, self._look_now)

    def _look_now(self, now: float) -> None:
        self._due = False
        if self._unproven:
            self._ask()
            self._look_later(now)
