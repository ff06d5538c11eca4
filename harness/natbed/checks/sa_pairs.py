"""A tunnel's SA pair as its two ends tell of it, and the wait until a rekey has replaced it at both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from natbed.node_like import NodeLike
from natbed.stacks.base import Daemon, TunnelStatus

from .flows import FlowError

_POLL = 0.005  # seconds between looks at a status, which says nothing unasked


@dataclass(frozen=True, slots=True)
class RekeyTarget:
    """A tunnel to rekey: who talks through it, at which addresses, and the implementation on both ends.

    `client_seen` and `server_seen` are the addresses by which each knows the other, where they are others.
    """

    name: str
    client: NodeLike
    server: NodeLike
    client_address: str
    server_address: str
    initiator: Daemon
    responder: Daemon
    client_seen: str = ""
    server_seen: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One rekey: which end is told to, and whether phase 1 is replaced too."""

    side: str  # initiator, responder
    phase1: bool

    def __str__(self) -> str:
        return f"{'phase 1' if self.phase1 else 'Quick Mode'} by the {self.side}"

    def take(self, target: RekeyTarget, timeout: float) -> float:
        """Tell that end; the seconds until it can use the new SAs. Raises `StackError`."""
        daemon = target.initiator if self.side == "initiator" else target.responder
        return daemon.rekey(target.name, self.phase1, timeout)


def pairs(target: RekeyTarget) -> list[TunnelStatus]:
    """The tunnel as its two ends describe it, where they have it."""
    ends = (target.initiator, target.responder)
    return [status for daemon in ends for status in daemon.status() if status.name == target.name]


def spis(found: Sequence[TunnelStatus]) -> list[str]:
    """The SPIs of both directions, each once."""
    return sorted({spi for one in found for spi in (one.inbound_spi, one.outbound_spi)})


def await_replaced(target: RekeyTarget, before: Sequence[TunnelStatus], seconds: float) -> list[TunnelStatus]:
    """Wait until both ends share one pair that is not of `before`; that pair, by end. Raises `FlowError`."""
    until = time.monotonic() + seconds
    while True:
        found, missing = _replaced(target, before)
        if found:
            return found
        if time.monotonic() > until:
            raise FlowError(missing)
        time.sleep(_POLL)


def _replaced(target: RekeyTarget, before: Sequence[TunnelStatus]) -> tuple[list[TunnelStatus], str]:
    """The new pair at both ends, or why it is not there yet."""
    old = set(spis(before))
    new = [one for one in pairs(target) if one.inbound_spi not in old and one.outbound_spi not in old]
    if len(new) == 2 and (new[0].inbound_spi, new[0].outbound_spi) == (new[1].outbound_spi, new[1].inbound_spi):
        return new, ""
    listed = ", ".join(f"{one.inbound_spi}/{one.outbound_spi}" for one in new) or "none"
    return [], f"the two ends do not share one new SA pair; new ones are {listed}"
