"""Logging of what anybody can cause: one line a second at most for each kind of junk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

INTERVAL = 1.0  # seconds


class JunkLog:
    """Logs the first of a kind at once, and later how many were kept quiet."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._last: dict[str, float] = {}
        self._quiet: dict[str, int] = {}

    def note(self, kind: str, text: str, number: int = 1) -> None:
        """Say `text`, unless something of this kind was said within the last second. Kinds are few and our own.

        `number` is how many things happened that this one text stands for.
        """
        now = self._clock()
        unsaid = self._quiet.pop(kind, 0) + number
        if now - self._last.get(kind, now - INTERVAL) < INTERVAL:
            self._quiet[kind] = unsaid
            return
        self._last[kind] = now
        more = f" ({unsaid - 1} more were not logged)" if unsaid > 1 else ""
        self._logger.warning("%s: %s%s", kind, text, more)
