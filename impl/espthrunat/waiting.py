"""Control clients that wait until a connection is up, or renewed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .control import Client
from .ike.child_sa import ChildSa
from .messages import Path


@dataclass(slots=True)
class Wait:
    """One client's wait: for so many new pairs of ESP SAs, and for a new phase 1 on each of the paths `phase1`."""

    client: Client
    connection: str
    since: float
    pairs: int = 1
    phase1: set[Path] = field(default_factory=set)
    made: list[ChildSa] = field(default_factory=list)


class Waiting:
    """Everybody who waits; each gets one answer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waits: list[Wait] = []

    def add(self, wait: Wait) -> None:
        """Answer this client later."""
        self._waits.append(wait)

    def child_up(self, child: ChildSa) -> None:
        """A pair may be used in both directions."""
        for wait in self._of(child.connection):
            wait.made.append(child)
            self._check(wait)

    def phase1_up(self, path: Path) -> None:
        """Phase 1 is complete, for whatever connection: all with one peer share it."""
        for wait in list(self._waits):
            if path in wait.phase1:
                wait.phase1.discard(path)
                self._check(wait)

    def failed(self, connection: str, reason: str, path: Path | None = None) -> None:
        """What those wait for who want this connection, or a phase 1 on this path, will not come."""
        for wait in list(self._waits):
            if wait.connection == connection or path in wait.phase1:
                self._waits.remove(wait)
                wait.client.reply({"ok": False, "error": f"{wait.connection}: {reason}"})

    def forget(self, client: Client) -> None:
        """This client has gone."""
        self._waits = [wait for wait in self._waits if wait.client is not client]

    def _of(self, connection: str) -> list[Wait]:
        return [wait for wait in self._waits if wait.connection == connection]

    def _check(self, wait: Wait) -> None:
        if wait.phase1 or len(wait.made) < wait.pairs:
            return
        self._waits.remove(wait)
        sas = [
            {"inbound_spi": f"0x{child.inbound_spi:08x}", "outbound_spi": f"0x{child.outbound_spi:08x}"}
            for child in wait.made
        ]
        wait.client.reply({"ok": True, "seconds": self._clock() - wait.since, "sas": sas})
