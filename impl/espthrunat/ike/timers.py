"""Deadlines on the caller's clock, the nearest one first."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable

Callback = Callable[[float], object]


class Timers:
    """One deadline a key; setting a key again moves it. Cancelled entries leave the heap when they come up."""

    def __init__(self) -> None:
        self._due: dict[Hashable, tuple[float, int, Callback]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: Hashable, due: float, callback: Callback) -> None:
        """Call `callback(now)` at `due` seconds, unless the key is set again or cancelled before."""
        entry = (due, next(self._order), callback)
        self._due[key] = entry
        heapq.heappush(self._heap, (entry[0], entry[1], key))

    def cancel(self, key: Hashable) -> None:
        """Forget a key; one that is not set is no error."""
        self._due.pop(key, None)

    def next(self) -> float | None:
        """When the nearest deadline is, or None."""
        while self._heap:
            due, order, key = self._heap[0]
            entry = self._due.get(key)
            if entry is not None and entry[1] == order:
                return due
            heapq.heappop(self._heap)
        return None

    def run(self, now: float) -> None:
        """Call everything that is due; what is set meanwhile and already due comes in the same run."""
        while (due := self.next()) is not None and due <= now:
            _, _, key = heapq.heappop(self._heap)
            _, _, callback = self._due.pop(key)
            callback(now)
