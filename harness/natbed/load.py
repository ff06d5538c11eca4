"""How much of the machine others use: figures of speed mean little beside them."""

from __future__ import annotations

import pathlib
import time

_IDLE = slice(3, 5)  # of /proc/stat's first line: idle, and idle while a disk is waited for
_ALL = slice(0, 8)  # what follows is counted there already


def load(seconds: float = 0.5) -> float:
    """The share, 0 to 1, of all processors' time that was used in the next `seconds`; call it when nothing runs yet."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    spent = [new - old for new, old in zip(after, before, strict=True)]
    return 1 - sum(spent[_IDLE]) / max(sum(spent[_ALL]), 1)


def _ticks() -> list[int]:
    first = pathlib.Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    return [int(word) for word in first.split()[1:]]
