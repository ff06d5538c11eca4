"""Numbered UDP streams between two nodes, and how they fared: what was lost or doubled, and what came late."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Sequence

import msgspec

from natbed.checks import PATTERN

from .flows import FlowError

RATE = 500  # datagrams a second and stream
_CATCH_UP = 10  # datagrams that may follow each other without a pause, when the sender was late
WINDOW = 16  # places by which a datagram may come later than one sent after it
_ARRIVAL_SECONDS = 5.0  # for datagrams that must come
_QUIET_SECONDS = 0.2  # after which nothing comes twice any more
_LOST_SECONDS = 3.0  # after which what has not arrived never will
_OVERTAKEN = RATE // 2  # datagrams without a gap: what they have all overtaken will not arrive either
_POLL = 0.005  # seconds between looks at what has arrived
_BUFFER = 4 << 20  # octets: what this process is slow to read is not the implementation's loss
_SO_RCVBUFFORCE, _SO_MEMINFO = 33, 55
_MEMINFO = struct.Struct("=9I")  # linux/sock_diag.h: the last one counts what found no room
_FOREIGN = 1 << 62  # the number of what no sender of the stream has sent
_HEADER = struct.Struct("!IQ")  # stream, number


class Reception(msgspec.Struct, frozen=True, kw_only=True):
    """How one stream fared; `late_by` is the largest number of places that a datagram came late, gaps milliseconds."""

    stream: str
    sent: int
    received: int
    lost: int
    doubled: int
    foreign: int
    late_by: int
    longest_gap: float
    first_lost: list[int] = []

    @property
    def problem(self) -> str:
        """What is wrong with it, or nothing."""
        if self.lost:
            return f"{self.lost} of {self.sent} datagrams were lost, the first number {self.first_lost[0]}"
        if self.doubled or self.foreign:
            return f"{self.doubled} of {self.sent} datagrams came twice, {self.foreign} were never sent"
        if self.late_by > WINDOW:
            return f"a datagram came {self.late_by} places late"
        return ""


def judge_stream(stream: str, sent: int, arrivals: Sequence[tuple[int, float]]) -> Reception:
    """Compare what arrived (number, seconds), in its order, with the numbers 0 to `sent` - 1."""
    seen: set[int] = set()
    doubled = late_by = 0
    newest = -1
    for number, _ in arrivals:
        doubled += number in seen
        seen.add(number)
        newest = max(newest, number)
        late_by = max(late_by, newest - number)
    lost = [number for number in range(sent) if number not in seen]
    times = [when for _, when in arrivals]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return Reception(
        stream=stream,
        sent=sent,
        received=len(arrivals),
        lost=len(lost),
        doubled=doubled,
        foreign=len([number for number in seen if number >= sent]),
        late_by=late_by,
        longest_gap=round(max(gaps, default=0.0) * 1000, 2),
        first_lost=lost[:10],
    )


class Stream:
    """A paced sender and a receiver, each a thread.

    A datagram that the sender's own host refuses ends the stream, but for a `persistent` one, which counts it as sent.
    """

    def __init__(
        self,
        number: int,
        name: str,
        sender: socket.socket,
        receiver: socket.socket,
        to: tuple[str, int] | None,
        *,
        persistent: bool = False,
        rate: int = RATE,
    ) -> None:
        """`rate` is in datagrams a second."""
        self.name = name
        self.sent = 0
        self.arrivals: list[tuple[int, float]] = []
        self.source: tuple[str, int] | None = None  # where the first datagram came from
        self.latest_source: tuple[str, int] | None = None
        self.problem = ""
        self._number = number
        self._sender = sender
        self._receiver = receiver
        self._to = to
        self._persistent = persistent
        self._rate = rate
        self._stop = threading.Event()
        self._given_up = float("inf")  # the time, once the sender has ended
        self._reading = threading.Thread(target=self._receive, name=f"{name} receiver")
        self._sending = threading.Thread(target=self._send, name=f"{name} sender")

    def listen(self) -> None:
        """Receive from now on."""
        self._receiver.settimeout(_QUIET_SECONDS)
        self._reading.start()

    def begin(self, to: tuple[str, int] | None = None) -> None:
        """Send from now on."""
        self._to = to or self._to
        self._sending.start()

    def aim(self, to: tuple[str, int]) -> None:
        """Send there from now on."""
        self._to = to

    def stop(self) -> None:
        """Send no more; what is under way is still received."""
        self._stop.set()

    def give_up(self) -> None:
        """Stop sending; what has not arrived after a while from now on is lost."""
        self.stop()
        if self._sending.ident is not None:
            self._sending.join()
        self._given_up = min(self._given_up, time.monotonic() + _LOST_SECONDS)

    def finish(self) -> None:
        """Stop sending, and receive until everything has come or nothing more does."""
        self.give_up()
        if self._reading.ident is not None:
            self._reading.join()

    def await_arrivals(self, more: int) -> None:
        """Wait until so many further datagrams have arrived. Raises `FlowError`."""
        goal = len(self.arrivals) + more
        until = time.monotonic() + _ARRIVAL_SECONDS
        while len(self.arrivals) < goal:
            if self.problem or time.monotonic() > until:
                missing = goal - len(self.arrivals)
                seen = self.problem or f"{missing} of {more} datagrams did not come within {_ARRIVAL_SECONDS:g} s"
                raise FlowError(f"{self.name}: {seen}")
            time.sleep(_POLL)

    @property
    def unread(self) -> int:
        """How many datagrams reached the receiver's socket and found no room there."""
        *_, dropped = _MEMINFO.unpack(self._receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        return int(dropped)

    def _send(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(due - time.monotonic(), 0)):
            # What a busy lab has missed is not made up for at once: that would be a flood, whose loss proves nothing.
            due = max(due, time.monotonic() - _CATCH_UP / self._rate) + 1 / self._rate
            try:
                self._sender.sendto(PATTERN + _HEADER.pack(self._number, self.sent), self._to or ("", 0))
            except OSError as error:
                if not self._persistent:
                    self.problem = f"datagram {self.sent} could not be sent: {error}"
                    return
            self.sent += 1

    def _only_lost(self) -> bool:
        """Whether waiting is in vain: of a stream that may lose some, all of the end has come."""
        end = {number for number, _ in self.arrivals if self.sent - _OVERTAKEN <= number < self.sent}
        return self._persistent and len(end) == _OVERTAKEN

    def _receive(self) -> None:
        while True:
            try:
                data, source = self._receiver.recvfrom(2048)
            except TimeoutError:
                if self._given_up < float("inf") and (len(self.arrivals) >= self.sent or self._only_lost()):
                    return
                if time.monotonic() > self._given_up:
                    return
                continue
            except OSError as error:
                self.problem = f"could not be received: {error}"
                return
            now = time.monotonic()
            self.source = self.source or source
            own = len(data) == len(PATTERN) + _HEADER.size and data.startswith(PATTERN)
            stream, number = _HEADER.unpack_from(data, len(PATTERN)) if own else (-1, 0)
            if stream == self._number:
                self.latest_source = source
            self.arrivals.append((number if stream == self._number else _FOREIGN, now))


def enlarge(receiver: socket.socket) -> None:
    """Let the kernel keep much for who receives; in a user namespace the system's limit holds."""
    try:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
