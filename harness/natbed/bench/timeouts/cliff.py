"""The search for a cliff: what holds for so long and no longer, found by bisection with many trials side by side."""

from __future__ import annotations

from dataclasses import dataclass, field


class NoCliffError(Exception):
    """It held for longer than it was lost after: there is no one figure. The message names both."""


@dataclass
class Cliff:
    """Between the longest time that held and the shortest that did not, in seconds.

    Each round asks `width` trials at once, evenly in what is left, so a round leaves one part of `width` + 1. The first
    one goes up to `limit` itself: what holds there has no cliff that can be found, and `high` stays None.
    """

    limit: float
    resolution: float
    width: int
    low: float = 0.0
    high: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not (self.width >= 1 and self.resolution > 0 and self.limit > self.low):
            raise ValueError(f"no search: {self}")

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask."""
        return self.low >= self.limit if self.high is None else self.high - self.low <= self.resolution

    def points(self) -> list[float]:
        """What to try next, all at once, the shortest first; nothing when the cliff is found."""
        if self.done:
            return []
        if self.high is None:
            return [self.low + (self.limit - self.low) * n / self.width for n in range(1, self.width)] + [self.limit]
        return [self.low + (self.high - self.low) * n / (self.width + 1) for n in range(1, self.width + 1)]

    def held(self, at: float) -> None:
        """It still held after so long. Raises NoCliffError where it had been lost sooner."""
        if self.high is not None and at >= self.high:
            raise NoCliffError(f"it held for {at:.2f} s, but was lost after {self.high:.2f} s")
        self.low = max(self.low, at)

    def lost(self, at: float) -> None:
        """It was lost by then. Raises NoCliffError where it had held for longer."""
        if at <= self.low:
            raise NoCliffError(f"it was lost after {at:.2f} s, but held for {self.low:.2f} s")
        self.high = at if self.high is None else min(self.high, at)
