"""Packets of a node handed to Python for a verdict: iptables' NFQUEUE over a raw netlink socket.

The kernel hands over every packet that a rule gives to a queue's number, holds it, and goes on with it as told: by its
identifier, in any order, as late as one likes. The rule is the caller's:

    with Queue(node, 7) as queue:
        node.run("iptables -t raw -A PREROUTING -i wan -p udp -j NFQUEUE --queue-num 7".split())
        ...
        for packet in queue.receive(timeout=1.0):
            queue.accept(packet)

Without `--queue-bypass` the kernel drops what meets the rule while nobody has bound the queue. Bind first, and take the
rule away before the queue is closed.

What to know about the place of the rule. In raw PREROUTING of the receiver a packet has left its sender for good: one
that is dropped in a NAT's own FORWARD never confirms the mapping that it has made. Where connection tracking is in use,
fragments have been put together before. Super-packets of segmentation offload are handed over in their segments, with
all checksums filled in (the kernel does it where `NFQA_CFG_F_GSO` is not set); a changed packet's checksums are
verified again by its receiver.

Messages and attributes: linux/netfilter/nfnetlink_queue.h; there is no other specification.
"""

from __future__ import annotations

import errno
import os
import pathlib
import select
import socket
import struct
import time
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from natbed.node_like import NodeLike

NUMBERS = range(1 << 16)
"""The numbers that a queue may have; each network namespace has its own."""

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG = _SUBSYSTEM | 0, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_ERROR = 2  # NLMSG_ERROR
_REQUEST, _ACKNOWLEDGE = 1, 4
_BIND = 1
_COPY_PACKET = 2
_WHOLE = 0xFFFF  # octets of each packet that are handed over: all
_CFG_COMMAND, _CFG_PARAMETERS, _CFG_LENGTH = 1, 2, 3
_PACKET_HEADER, _VERDICT_HEADER, _MARK, _IN, _OUT, _PAYLOAD = 1, 2, 3, 5, 6, 10
_DROP, _ACCEPT, _REPEAT = 0, 1, 4
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_BUFFER = 16 << 20  # octets of packets that wait for this process
_LARGEST = 0x10000 + 1024  # octets of a message: a packet and its attributes
_BATCH = 256  # packets that are taken before one looks at the clock again

_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr
_GENERAL = struct.Struct("!BBH")  # nfgenmsg: family, version, the queue's number
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("!I")
_TYPE = 0x3FFF  # of an attribute, without its flags


class QueueError(Exception):
    """The queue cannot be bound or read: the lab's fault. The message says the node, the queue and why."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet that waits for its verdict, from the IPv4 header on; interfaces are indexes, 0 for none."""

    identifier: int
    payload: bytes
    came: float  # time.monotonic(), when it was read here
    mark: int = 0
    inward: int = 0
    outward: int = 0


class Overruns(NamedTuple):
    """Packets that the kernel has dropped unasked: the queue was full, or the socket that leads here."""

    queue: int
    socket: int

    @property
    def total(self) -> int:
        """All of them; where it is not 0, what was measured says nothing."""
        return self.queue + self.socket


class Queue:
    """One bound queue of a node. Reading is one thread's work; verdicts may come from any thread.

    Raises `QueueError` on entering, where another process has the number or the kernel has no NFQUEUE.
    """

    def __init__(self, node: NodeLike, number: int, *, length: int = 1 << 14) -> None:
        """`length` is how many packets may wait for a verdict; the kernel drops more (see `overruns`)."""
        if number not in NUMBERS:
            raise ValueError(f"queue {number}: there are {NUMBERS.start} to {NUMBERS[-1]}")
        self.number = number
        self.vanished = 0  # packets that ended before their verdict came, with an interface that went down
        self._node = node
        self._length = length
        self._memory = bytearray(_LARGEST)
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self._socket = made = self._node.call(
            lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        )
        try:
            made.bind((0, 0))
            _enlarge(made)
            self._bind()
        except OSError as error:
            self.close()
            raise QueueError(f"{self._node.name}: queue {self.number}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the queue up; the kernel drops what still waits in it. Repeatable."""
        made, self._socket = self._socket, None
        if made is not None:
            made.close()

    def fileno(self) -> int:
        """The socket's descriptor, for select: readable when a packet waits."""
        return self._bound.fileno()

    @property
    def _bound(self) -> socket.socket:
        if self._socket is None:
            raise QueueError(f"{self._node.name}: queue {self.number} is not bound")
        return self._socket

    def receive(self, timeout: float | None = None) -> list[Packet]:
        """The packets that wait, in their order; the first is waited for up to `timeout` seconds, None for ever.

        An empty list when nothing came. Raises `QueueError` when the queue can no longer be read.
        """
        if not select.select([self._bound], [], [], timeout)[0]:
            return []
        found: list[Packet] = []
        while len(found) < _BATCH:
            try:
                size = self._bound.recv_into(self._memory, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # said once; the kernel has counted the packets, see `overruns`
                    continue
                raise QueueError(f"{self._node.name}: queue {self.number}: {error.strerror}") from error
            self._read(memoryview(self._memory)[:size], found)
        return found

    def accept(self, packet: Packet, *, payload: bytes | None = None, mark: int | None = None) -> None:
        """Let it go on, as `payload` where it is changed, with a mark of the node's own where one is given."""
        self._judge(packet, _ACCEPT, payload, mark)

    def drop(self, packet: Packet) -> None:
        """Let it end here; nobody is told."""
        self._judge(packet, _DROP, None, None)

    def repeat(self, packet: Packet, *, mark: int, payload: bytes | None = None) -> None:
        """Let it begin again at the first rule of this hook, with a `mark` by which the rules know that it has been."""
        self._judge(packet, _REPEAT, payload, mark)

    def overruns(self) -> Overruns:
        """What the kernel has dropped unasked since the queue was bound. Raises `QueueError`."""
        for columns in self._node.call(_queues):
            if columns[0] == self.number:
                return Overruns(columns[5], columns[6])
        raise QueueError(f"{self._node.name}: queue {self.number} is not there any more")

    def waiting(self) -> int:
        """How many packets wait for a verdict now, read or not. Raises `QueueError`."""
        for columns in self._node.call(_queues):
            if columns[0] == self.number:
                return columns[2]
        raise QueueError(f"{self._node.name}: queue {self.number} is not there any more")

    # messages

    def _bind(self) -> None:
        attributes = (
            _attribute(_CFG_COMMAND, struct.pack("!BxH", _BIND, socket.AF_INET))
            + _attribute(_CFG_PARAMETERS, struct.pack("!IB", _WHOLE, _COPY_PACKET))
            + _attribute(_CFG_LENGTH, _NUMBER.pack(self._length))
        )
        self._send(_CONFIG, _REQUEST | _ACKNOWLEDGE, attributes)
        answer = self._bound.recv(_LARGEST)
        _, kind, *_ = _MESSAGE.unpack_from(answer)
        (code,) = struct.unpack_from("=i", answer, _MESSAGE.size)
        if kind != _ERROR:
            raise OSError(errno.EPROTO, f"netlink answered with a message of type {kind}")
        if code in (-errno.EBUSY, -errno.EPERM) and self.number in {columns[0] for columns in self._node.call(_queues)}:
            raise OSError(errno.EBUSY, "another program has bound it")
        if code:
            raise OSError(-code, os.strerror(-code))

    def _judge(self, packet: Packet, verdict: int, payload: bytes | None, mark: int | None) -> None:
        attributes = _attribute(_VERDICT_HEADER, struct.pack("!II", verdict, packet.identifier))
        if mark is not None:
            attributes += _attribute(_MARK, _NUMBER.pack(mark))
        if payload is not None:
            attributes += _attribute(_PAYLOAD, payload)
        self._send(_VERDICT, _REQUEST, attributes)

    def _send(self, kind: int, flags: int, attributes: bytes) -> None:
        body = _GENERAL.pack(socket.AF_UNSPEC, 0, self.number) + attributes
        self._bound.send(_MESSAGE.pack(_MESSAGE.size + len(body), kind, flags, 0, 0) + body)

    def _read(self, data: memoryview, found: list[Packet]) -> None:
        came = time.monotonic()
        while len(data) >= _MESSAGE.size:
            length, kind, *_ = _MESSAGE.unpack_from(data)
            body = data[_MESSAGE.size : length]
            if kind == _PACKET:
                found.append(_packet(body[_GENERAL.size :], came))
            elif kind == _ERROR:
                self._error(body)
            data = data[_aligned(length) :]

    def _error(self, body: memoryview) -> None:
        (code,) = struct.unpack_from("=i", body)
        if code == -errno.ENOENT:  # a verdict came for what was gone
            self.vanished += 1
        elif code:
            raise QueueError(f"{self._node.name}: queue {self.number}: verdict refused: {os.strerror(-code)}")


def _packet(attributes: memoryview, came: float) -> Packet:
    identifier = mark = inward = outward = 0
    payload = b""
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        kind &= _TYPE
        value = attributes[_ATTRIBUTE.size : length]
        if kind == _PACKET_HEADER:
            (identifier,) = _NUMBER.unpack_from(value)
        elif kind == _PAYLOAD:
            payload = bytes(value)
        elif kind == _MARK:
            (mark,) = _NUMBER.unpack_from(value)
        elif kind == _IN:
            (inward,) = _NUMBER.unpack_from(value)
        elif kind == _OUT:
            (outward,) = _NUMBER.unpack_from(value)
        attributes = attributes[_aligned(length) :]
    return Packet(identifier, payload, came, mark, inward, outward)


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _enlarge(made: socket.socket) -> None:
    """Let much wait in the socket; in a user namespace the system's limit holds."""
    for force, usual in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            made.setsockopt(socket.SOL_SOCKET, force, _BUFFER)
        except PermissionError:
            made.setsockopt(socket.SOL_SOCKET, usual, _BUFFER)


def _queues() -> list[list[int]]:
    """The bound queues: number, owner, waiting, copy mode, copy range, dropped, dropped at the socket, sequence."""
    lines = pathlib.Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text().splitlines()
    return [[int(column) for column in line.split()] for line in lines]
