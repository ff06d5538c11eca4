"""The data plane, whichever process it is at the moment: one that ends unasked is followed by another."""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable

from . import messages
from .ike.timers import Timers
from .plane_process import READY_SECONDS, PlaneError, PlaneProcess, not_ready

log = logging.getLogger("espthrunat")

MAX_RESTARTS = 5  # within
RESTART_WINDOW = 60.0  # seconds


class PlaneKeeper:
    """Talks to the plane. What is sent to one that has ended is lost, as all that it knew; see `failure`."""

    def __init__(
        self,
        first: PlaneProcess,
        configure: messages.Configure,
        timers: Timers,
        make: Callable[[], PlaneProcess] = PlaneProcess,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Waits until the first plane is ready; PlaneError when it cannot be."""
        self._plane = first
        self._configure = configure
        self._timers = timers
        self._make = make
        self._clock = clock
        self._ends: deque[float] = deque()
        self.restarts = 0
        self.failure: PlaneError | None = None  # why the plane has ended, until `restart`
        first.configure(configure)

    @property
    def socket(self) -> socket.socket:
        """What is readable when the plane has something to say, or has ended."""
        return self._plane.socket

    @property
    def pid(self) -> int:
        """The plane's process ID."""
        return self._plane.pid

    def send(self, message: messages.ToPlane) -> None:
        """Send one message."""
        if self.failure is None:
            try:
                self._plane.send(message)
            except PlaneError as error:
                self.failure = error

    def receive(self) -> messages.FromPlane | None:
        """The next message, or None if it is none for the daemon. PlaneError when a new plane has got no devices."""
        try:
            message = self._plane.receive()
        except PlaneError as error:
            self.failure = error
            return None
        if not isinstance(message, messages.Ready):
            return message
        self._timers.cancel(self)
        if message.error:
            raise PlaneError(message.error)
        log.info("the data plane is ready again")
        return None

    def restart(self) -> None:
        """Start another plane, which may be told things at once. PlaneError when that was done too often."""
        now = self._clock()
        reason = self.failure or "the data plane was taken down"
        self._plane.stop()
        while self._ends and now - self._ends[0] >= RESTART_WINDOW:
            self._ends.popleft()
        if len(self._ends) >= MAX_RESTARTS:
            raise PlaneError(f"{reason}, for the {MAX_RESTARTS + 1}th time within {RESTART_WINDOW:g} s: giving up")
        self._ends.append(now)
        log.error("%s: starting another, and new SAs", reason)
        self.failure = None
        self.restarts += 1
        self._plane = self._make()
        self.send(self._configure)
        self._timers.set(self, now + READY_SECONDS, self._too_late)

    def stop(self) -> None:
        """Let it finish what it was told, and see it end."""
        self._plane.stop()

    def _too_late(self, _: float) -> None:
        raise not_ready()
