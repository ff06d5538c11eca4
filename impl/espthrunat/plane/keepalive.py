"""When NAT keepalives are due: only where nothing else keeps the mapping alive (the draft, 4.3)."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..messages import Path

Address = tuple[str, int]  # IPv4 address and UDP port, as sockets give them


class Keepalives:
    """One stream for each remote, which IKE and ESP share as they share the mapping (the draft, 6.2).

    `clock` gives seconds and never goes back. Nothing is kept of remotes that the daemon has set no keepalives for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._intervals: dict[Path, float] = {}
        self._sent: dict[Address, float] = {}  # when something last went to a remote
        self._due: float | None = None  # never too late; early where something was sent since it was worked out

    def set(self, path: Path, interval: float) -> None:
        """Keep `path` alive with a keepalive after `interval` seconds of silence; 0 ends that.

        The first is due an interval from now. Setting it again, with whatever interval, puts off nothing that is due
        since something last went there. Raises ValueError where `interval` is negative or no number.
        """
        if not interval >= 0:
            raise ValueError(f"no interval of keepalives: {interval} seconds")
        if interval:
            self._intervals[path] = interval
            self._sent.setdefault(_remote(path), self._clock())
        else:
            self._forget(path)
        self._work_out()

    def sent(self, remote: Address) -> None:
        """IKE or ESP went to `remote` now."""
        if remote in self._sent:
            self._sent[remote] = self._clock()

    def due(self) -> float | None:
        """When to call `take_due`, in the clock's seconds; None for never. It may find that nothing is due yet."""
        return self._due

    def take_due(self) -> list[Path]:
        """The paths that a keepalive must go out on now: one for each remote that got nothing for its interval.

        They count as sent.
        """
        now = self._clock()
        if self._due is None or now < self._due:
            return []
        due = []
        for path, interval in self._intervals.items():
            if now >= self._sent[_remote(path)] + interval:
                self._sent[_remote(path)] = now
                due.append(path)
        self._work_out()
        return due

    def moved(self, old: Path, new: Path) -> None:
        """The peer of `old` is at `new` now: its keepalives go there, no later than they would have gone to `old`."""
        interval = self._intervals.get(old)
        if interval is None:
            return
        sent = self._sent[_remote(old)]
        self._forget(old)
        self._intervals[new] = min(interval, self._intervals.get(new, interval))
        self._sent.setdefault(_remote(new), sent)
        self._work_out()

    def _forget(self, path: Path) -> None:
        if self._intervals.pop(path, None) is None:
            return
        if all(_remote(other) != _remote(path) for other in self._intervals):
            del self._sent[_remote(path)]

    def _work_out(self) -> None:
        times = (self._sent[_remote(path)] + interval for path, interval in self._intervals.items())
        self._due = min(times, default=None)


def _remote(path: Path) -> Address:
    return path.remote, path.remote_port
