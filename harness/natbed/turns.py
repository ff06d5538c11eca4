"""Measurements of speed take turns: two at once, in two workers or two terminals, would measure each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def alone(folder: pathlib.Path = pathlib.Path(__file__).parent) -> Iterator[None]:
    """Wait until no other process of this installation measures; none begins before the block ends.

    The lock is on a folder and leaves nothing there; the kernel takes it back from a process that ends. Where the file
    system has no locks, nobody waits.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
