"""Who may begin a phase 1: a limit a source address, so that one flood does not take everybody's room."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_MAX_SOURCES = 4096  # that are remembered; the one that was quiet the longest goes first
_BURST_SECONDS = 2.0  # a NAT with many clients behind it may begin so many seconds' worth at once


@dataclass(frozen=True, slots=True)
class Limits:
    """What unauthenticated peers may cost: half-open phase 1 SAs at a time, and new ones a second and source address.

    A full table drops its oldest half-open SA for a new one.
    """

    half_open: int = 1000
    new_per_second: float = 100.0


class Admission:
    """A token bucket for each source address."""

    def __init__(self, limits: Limits) -> None:
        self._rate = limits.new_per_second
        self._burst = max(1.0, limits.new_per_second * _BURST_SECONDS)
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def __len__(self) -> int:
        return len(self._sources)

    def admit(self, source: str, now: float) -> bool:
        """Whether another phase 1 from this address may begin now; asking costs a token."""
        tokens, since = self._sources.pop(source, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        allowed = tokens >= 1
        self._sources[source] = (tokens - 1 if allowed else tokens, now)
        if len(self._sources) > _MAX_SOURCES:
            self._sources.popitem(last=False)
        return allowed
