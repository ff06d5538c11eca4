"""Who measures speed, and who waits: two at once, in two workers or two terminals, would measure each other.

All locks are on files of this installation and leave nothing there; the kernel takes them back from a process that
ends. Where the file system has no locks, nobody waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

_HERE = pathlib.Path(__file__)
_RUNS, _DOOR = _HERE.with_name("runner.py"), _HERE
LONGEST = 90.0  # seconds that a run waits for others
_LOOK = 0.02  # seconds between looks: a lock that is waited for at most so long cannot be awaited


@contextlib.contextmanager
def alone(folder: pathlib.Path = _HERE.parent) -> Iterator[None]:
    """Wait until no other process of this installation measures; none begins before the block ends."""
    descriptor = _open(folder)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Turn:
    """Context manager: one run among those of this installation, which some of them may have to themselves for a while.

    It begins when none has, or after `longest` seconds, and tells `waiting` if it cannot begin at once.
    """

    def __init__(
        self,
        waiting: Callable[[], None] = lambda: None,
        *,
        runs: pathlib.Path = _RUNS,
        door: pathlib.Path = _DOOR,
        longest: float = LONGEST,
    ) -> None:
        self._waiting = waiting
        self._files = (runs, door)
        self._longest = longest

    def __enter__(self) -> Self:
        # Everyone under way shares the first; through the door one goes at a time, and nobody while one wants to be
        # undisturbed: else those who begin would keep it waiting.
        self._runs, self._door = map(_open, self._files)
        if not _lock(self._door, fcntl.LOCK_EX, 0):
            self._waiting()
            _lock(self._door, fcntl.LOCK_EX, self._longest)
        _lock(self._runs, fcntl.LOCK_SH, 0)
        _unlock(self._door)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._runs)
        os.close(self._door)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Wait until all others have ended, `longest` seconds at most; none begins before the block ends.

        Of two that want this, the second is not waited for, and has its turn afterwards.
        """
        _unlock(self._runs)
        until = time.monotonic() + self._longest
        _lock(self._door, fcntl.LOCK_EX, self._longest)
        _lock(self._runs, fcntl.LOCK_EX, max(until - time.monotonic(), 0))
        try:
            yield
        finally:
            _lock(self._runs, fcntl.LOCK_SH, 0)
            _unlock(self._door)


def _open(path: pathlib.Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _lock(descriptor: int, kind: int, seconds: float) -> bool:
    """Take a lock within so many seconds; whether that is done, or there are no locks."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK)
        except OSError:
            return True
        else:
            return True


def _unlock(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
