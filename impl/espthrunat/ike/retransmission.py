"""One message that waits for its answer, and goes out again with back-off until that comes."""

from __future__ import annotations

from collections.abc import Callable

from ..messages import Path
from .context import Context
from .policy import Retransmission


class Retransmitter:
    """Sends the newest message of an exchange again while nothing answers it."""

    def __init__(self, context: Context, schedule: Retransmission, give_up: Callable[[float], None]) -> None:
        self._context = context
        self._schedule = schedule
        self._give_up = give_up
        self._message: tuple[bytes, Path] | None = None
        self._last = False
        self.sent = 0

    def send(self, data: bytes, path: Path, now: float) -> None:
        """Send a new message; the one before it is answered."""
        self._message = (data, path)
        self.sent = 0
        self._last = False
        self._transmit(now)

    def stop(self) -> None:
        """The answer has come, or no longer matters."""
        self._message = None
        self._context.timers.cancel(self)

    def hurry(self) -> None:
        """Somebody says that no answer will come: wait the present interval out, but do not send again.

        Nobody vouches for such a word, so it may shorten the wait and never ends it at once.
        """
        self._last = True

    def _transmit(self, now: float) -> None:
        assert self._message is not None
        self.sent += 1
        self._context.send(*self._message)
        self._context.timers.set(self, now + self._schedule.wait(self.sent), self._due)

    def _due(self, now: float) -> None:
        if self._message is None:
            return
        if self._last or self.sent >= self._schedule.tries:
            self._message = None
            self._give_up(now)
        else:
            self._transmit(now)
