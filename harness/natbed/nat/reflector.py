"""A UDP server outside a NAT that says what it sees of those inside: two addresses, two ports, as in RFC 5780, 3.

Every message has 32 octets, in network byte order:

     0  4  "nbrf"
     4  1  what it is: 1 a request, 2 an answer, 3 a question
     5  1  of a request, the sum of: 1 answer from the other address, 2 from the other port, 4 without a UDP checksum
     6  2  of a request: tenths of a second to wait before the answer
     8  8  transaction: the sender's choice, returned as it came
    16  4  of an answer: the source address that was seen
    20  2  of an answer: the source port that was seen; of a request: the port of its sender to answer to, 0 its own
    22  4  of an answer: the server's other address
    26  2  of an answer: the server's other port
    28  1  of an answer to a question: 1 where the answer of that transaction was rejected by ICMP, else 0
    29  3  zero

An answer goes to the address that the request came from and nowhere else, is as long as it, and is itself answered by
nobody. Whatever else arrives is counted and dropped. What is kept is bounded: so many answers that wait, in all and for
one address, and so many rejected transactions.
"""

from __future__ import annotations

import contextlib
import heapq
import selectors
import socket
import struct
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

ADDRESS, PORT, NO_CHECKSUM = 1, 2, 4  # what a request may ask for
REQUEST, ANSWER, QUESTION = 1, 2, 3
LONGEST_DELAY = 3_700.0  # seconds
DEFAULT_PORTS = (4_998, 4_999)

_MAGIC = b"nbrf"
_LAYOUT = struct.Struct("!4sBBH8s4sH4sHB3x")
_MOST_HELD, _MOST_HELD_OF_ONE, _MOST_REJECTED = 4_096, 512, 4_096
_BURST = 64  # datagrams of one socket before the others have their turn
_LOG_EVERY = 1.0  # seconds
# linux/in.h, asm-generic/socket.h: Python does not name them
_IP_RECVERR, _SO_NO_CHECK = 11, 11

Endpoint = tuple[str, int]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message, see above. `delay` is in seconds."""

    kind: int
    transaction: bytes
    flags: int = 0
    delay: float = 0.0
    endpoint: Endpoint = ("0.0.0.0", 0)
    other: Endpoint = ("0.0.0.0", 0)
    rejected: bool = False

    def encode(self) -> bytes:
        """The octets. Raises struct.error where a value does not fit."""
        return _LAYOUT.pack(
            _MAGIC,
            self.kind,
            self.flags,
            round(self.delay * 10),
            self.transaction,
            socket.inet_aton(self.endpoint[0]),
            self.endpoint[1],
            socket.inet_aton(self.other[0]),
            self.other[1],
            self.rejected,
        )


def decode(data: bytes) -> Message | None:
    """The message in these octets, None where there is none."""
    if len(data) != _LAYOUT.size or data[:4] != _MAGIC:
        return None
    _, kind, flags, tenths, transaction, address, port, other, other_port, rejected = _LAYOUT.unpack(data)
    if kind not in (REQUEST, ANSWER, QUESTION) or flags > ADDRESS | PORT | NO_CHECKSUM or rejected > 1:
        return None
    return Message(
        kind=kind,
        flags=flags,
        delay=tenths / 10,
        transaction=transaction,
        endpoint=(socket.inet_ntoa(address), port),
        other=(socket.inet_ntoa(other), other_port),
        rejected=bool(rejected),
    )


def without_checksum(sock: socket.socket, *, wanted: bool = True) -> None:
    """Have a socket send UDP with a checksum of 0 from now on, or no more."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, int(wanted))


class Reflector:
    """The server, over the four sockets of two addresses and two ports.

    In a with-block it serves from a thread; `serve` does so here. `log` is given one line a second at most.
    """

    def __init__(
        self,
        addresses: tuple[str, str],
        ports: tuple[int, int] = DEFAULT_PORTS,
        log: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Bind all four, in the network namespace of the caller. Raises OSError, with nothing left open."""
        self.addresses, self.ports = addresses, ports
        self._log, self._logged = log, time.monotonic()
        self._counts: Counter[str] = Counter()
        self._held: list[tuple[float, int, int, Endpoint, Message]] = []
        self._held_of: Counter[str] = Counter()
        self._order = 0
        self._rejected: OrderedDict[bytes, None] = OrderedDict()
        self._stopped = False
        self._thread: threading.Thread | None = None
        with contextlib.ExitStack() as undo:
            self._sockets = [undo.enter_context(_listening(a, p)) for a in addresses for p in ports]
            self._wake, self._waker = (undo.enter_context(end) for end in socket.socketpair())
            self._open = undo.pop_all()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve, name="reflector", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, drop what waits, close the sockets. Repeatable."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._waker.send(b"x")
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._open.close()

    def serve(self) -> None:
        """Answer until `close` is called, or the caller is interrupted."""
        with selectors.DefaultSelector() as selector:
            for number, sock in enumerate(self._sockets):
                selector.register(sock, selectors.EVENT_READ, number)
            selector.register(self._wake, selectors.EVENT_READ, None)
            while not self._stopped:
                ready = selector.select(self._until_next())
                for key, _ in ready:
                    if key.data is not None:
                        self._errors(key.data)
                        self._read(key.data)
                self._release(time.monotonic())
                self._say(time.monotonic())

    def _until_next(self) -> float | None:
        now = time.monotonic()
        due = [self._held[0][0] - now] if self._held else []
        if self._counts:
            due.append(self._logged + _LOG_EVERY - now)
        return max(0.0, min(due)) if due else None

    def _read(self, number: int) -> None:
        for _ in range(_BURST):
            try:
                data, source = self._sockets[number].recvfrom(2 * _LAYOUT.size)
            except BlockingIOError:
                return
            except OSError:  # what ICMP said of an earlier answer; the error queue has it too
                continue
            self._take(number, data, source)

    def _take(self, number: int, data: bytes, source: Endpoint) -> None:
        message = decode(data)
        if message is None or message.kind == ANSWER or message.delay > LONGEST_DELAY or source[1] == 0:
            self._counts["junk"] += 1
            return
        self._counts["requests"] += 1
        # sockets are in the order (address, port) = 00, 01, 10, 11
        speaker = number ^ (2 if message.flags & ADDRESS else 0) ^ (1 if message.flags & PORT else 0)
        other = (self.addresses[1 - number // 2], self.ports[1 - number % 2])
        known = message.kind == QUESTION and message.transaction in self._rejected
        answer = msgspec.structs.replace(message, kind=ANSWER, endpoint=source, other=other, rejected=known)
        target = (source[0], message.endpoint[1] or source[1])
        if not message.delay or message.kind == QUESTION:
            self._send(speaker, target, answer)
        elif len(self._held) >= _MOST_HELD or self._held_of[source[0]] >= _MOST_HELD_OF_ONE:
            self._counts["too many to hold"] += 1
        else:
            self._order += 1  # equal times are never compared further
            self._held_of[source[0]] += 1
            due = time.monotonic() + message.delay
            heapq.heappush(self._held, (due, self._order, speaker, target, answer))

    def _release(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            _, _, speaker, target, answer = heapq.heappop(self._held)
            self._held_of[target[0]] -= 1
            if not self._held_of[target[0]]:
                del self._held_of[target[0]]
            self._send(speaker, target, answer)

    def _send(self, number: int, target: Endpoint, answer: Message) -> None:
        sock = self._sockets[number]
        bare = bool(answer.flags & NO_CHECKSUM)
        if bare:
            without_checksum(sock)
        try:
            sock.sendto(answer.encode(), target)
        except OSError:  # a full queue, no route, or what ICMP said of another: the requester asks again
            self._counts["unsent"] += 1
        finally:
            if bare:
                without_checksum(sock, wanted=False)

    def _errors(self, number: int) -> None:
        """Which answers came back as ICMP errors; the error queue returns what was sent."""
        for _ in range(_BURST):
            try:
                data, *_ = self._sockets[number].recvmsg(2 * _LAYOUT.size, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            message = decode(data)
            if message is not None:
                self._rejected[message.transaction] = None
                if len(self._rejected) > _MOST_REJECTED:
                    self._rejected.popitem(last=False)

    def _say(self, now: float) -> None:
        if self._counts and now - self._logged >= _LOG_EVERY:
            self._log(", ".join(f"{what}: {count}" for what, count in sorted(self._counts.items())))
            self._counts.clear()
            self._logged = now


def _listening(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        sock.setblocking(False)
        sock.bind((address, port))
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{address} port {port}: {error.strerror}") from error
        raise
    return sock
