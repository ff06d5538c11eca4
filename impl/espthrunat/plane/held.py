"""Inner packets that wait for an SA: the moment that IKE takes to make one need not cost what is said meanwhile.

A responder is asked before message 3 of Quick Mode lets it answer, the first packet brings a connection up, and a rekey
may end after the octets of the old SA do.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from ..wire.ip import IpHeader
from .counters import Count, Counters

_SECONDS = 2.0  # after which nobody waits for a packet any more
_MOST_OF_POLICY = 128  # packets
_MOST_OCTETS = 4 << 20  # of all, each with
_OVERHEAD = 512


@dataclass(frozen=True, slots=True)
class _Held:
    until: float
    policy: str
    header: IpHeader
    packet: bytes


class HeldPackets:
    """Oldest first. What waits in vain is dropped and counted, as is what finds no room. `clock` gives seconds."""

    def __init__(self, counters: Counters, clock: Callable[[], float] = time.monotonic) -> None:
        self._counters = counters
        self._clock = clock
        self._held: deque[_Held] = deque()
        self._of_policy: Counter[str] = Counter()
        self._octets = 0

    def hold(self, policy: str, header: IpHeader, packet: bytes) -> None:
        """Keep a packet that an SA of `policy` may carry soon, if there is room."""
        if self._of_policy[policy] >= _MOST_OF_POLICY or self._octets + len(packet) + _OVERHEAD > _MOST_OCTETS:
            self._drop(policy, header)
            return
        self._held.append(_Held(self._clock() + _SECONDS, policy, header, packet))
        self._of_policy[policy] += 1
        self._octets += len(packet) + _OVERHEAD

    def take(self, policy: str, covered: Callable[[IpHeader], bool]) -> list[bytes]:
        """Give out the packets of `policy` that are `covered` by now."""
        if not self._of_policy[policy]:
            return []
        taken = [held for held in self._held if held.policy == policy and covered(held.header)]
        self._remove(taken)
        return [held.packet for held in taken]

    def due(self) -> float | None:
        """When to call `expire`, in the clock's seconds; None for never."""
        return self._held[0].until if self._held else None

    def expire(self) -> None:
        """Drop what has waited for too long."""
        now = self._clock()
        if self._held and self._held[0].until <= now:
            self._give_up([held for held in self._held if held.until <= now])

    def forget(self, policy: str) -> None:
        """A policy is gone, and its packets with it."""
        self._give_up([held for held in self._held if held.policy == policy])

    def _give_up(self, gone: list[_Held]) -> None:
        self._remove(gone)
        for held in gone:
            self._drop(held.policy, held.header)

    def _remove(self, gone: list[_Held]) -> None:
        if not gone:
            return
        numbers = set(map(id, gone))
        self._held = deque(held for held in self._held if id(held) not in numbers)
        for held in gone:
            self._octets -= len(held.packet) + _OVERHEAD
            self._of_policy[held.policy] -= 1
        self._of_policy = +self._of_policy

    def _drop(self, policy: str, header: IpHeader) -> None:
        self._counters.drop(Count.DROP_NO_SA, f"policy {policy}: {header}")
