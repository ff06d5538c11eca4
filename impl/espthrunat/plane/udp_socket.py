"""The UDP socket that IKE and ESP share (the draft, 3.2), in trains of datagrams where the kernel knows them."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

from . import bulk
from .arrivals import Arrival, Slots
from .counters import Count, Counters
from .sadb import Address

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

    from .recvmmsg import ManyReceiver

UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h
MAX_TRAIN_OCTETS = 65507  # what one UDP datagram holds
MAX_TRAIN = 64  # datagrams; newer kernels take 128, all that know trains take these

_BUFFER_OCTETS = 8 << 20
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; the socket module has no name for it
_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER = 10  # linux/in.h
_IP_PMTUDISC_WANT, _IP_PMTUDISC_DO = 1, 2  # fragment what is too long for the path; refuse it
RING = 8  # slots that are used in turn; more would push each other out of the processor's caches
_MANY = 4  # datagrams in a row that came singly: recvmmsg will pay
_ROOM_SECONDS = 0.02  # to wait for a full queue of the kernel
_HEADERS = 28  # octets: IP and UDP
_SEGMENT = struct.Struct("=H")
_CONTROL_OCTETS = socket.CMSG_SPACE(4)
_UDP_IN = Count.UDP_IN  # a look-up of the enum's attribute costs, for each packet


def segments_in_a_train(path_mtu: int) -> int:
    """How many of the largest datagrams that a path of `path_mtu` octets carries go in one train."""
    return max(1, min(MAX_TRAIN, MAX_TRAIN_OCTETS // max(1, path_mtu - _HEADERS)))


def enlarge_buffers(sock: socket.socket) -> None:
    """Let the kernel keep megabytes for `sock`: a whole wake's work for one loop that does everything."""
    for force, polite in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, _BUFFER_OCTETS)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, polite, _BUFFER_OCTETS)


def forbid_fragments(sock: socket.socket) -> None:
    """What is too long for its path is refused from now on (EMSGSIZE), and nobody on the way may cut it either."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)


@contextmanager
def fragments_allowed(sock: socket.socket) -> Iterator[None]:
    """What is sent in the block and too long for its path goes in fragments."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_WANT)
    try:
        yield
    finally:
        forbid_fragments(sock)


class TooLongError(OSError):
    """A datagram is longer than its path carries in one piece."""


class UdpSocket:
    """Bound to one address and port, connected to nobody: a connected socket would hand us other people's errors.

    Checksums are on, as the keepalives need them (the draft, 4.3). What is sent carries `mark` (SO_MARK of socket(7)).
    Raises OSError if the port cannot be had or the mark is forbidden. Without `trains`, or where the kernel knows none,
    each datagram costs a system call.
    """

    def __init__(self, address: str, port: int, counters: Counters, mark: int = 0, *, trains: bool = True) -> None:
        self.local: Address = (address, port)
        self._counters = counters
        self._slots = Slots()
        self._waiting: list[Arrival] = []  # read by `receive_one`, in the first slot
        self._many: ManyReceiver | None = None
        self.expects_bulk = False  # else recvmmsg is not worth loading what it needs
        self._singly = False  # whether datagrams come one by one at present
        socket.inet_pton(socket.AF_INET, address)  # a name would be resolved, and then compare equal to no path
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            enlarge_buffers(self._socket)
            forbid_fragments(self._socket)
            self._socket.bind((address, port))
        except OSError:
            self._socket.close()
            raise
        self.sendto: Callable[[bytes, Address], int] = self._socket.sendto
        """Sends one datagram; what `send` does besides, counting it and minding errors, is left to the caller."""
        self._sends_trains = trains and self._knows(UDP_SEGMENT, 0, "udp_gso")
        if trains:
            self._knows(UDP_GRO, 1, "udp_gro")

    def _knows(self, option: int, value: int, feature: str) -> bool:
        try:
            self._socket.setsockopt(socket.IPPROTO_UDP, option, value)
        except OSError as error:
            self._counters.fall_back(feature, str(error))
            return False
        return True

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give up the port."""
        self._socket.close()

    def receive(self, most: int = RING) -> list[Arrival]:
        """What is there now, up to a few dozen datagrams or `most` trains of them, and where it came from."""
        arrivals = self._receive_many() if self._singly else self._receive_ring(min(most, RING))
        self._counters.values[_UDP_IN] += sum(arrival.count for arrival in arrivals)
        return arrivals

    def receive_one(self) -> tuple[bytes, Address] | None:
        """A datagram that is there, and where it came from.

        None where nothing is there, or the kernel has joined it with others: `receive` has them.
        """
        if self._singly or self._waiting:
            return None
        view = self._slots.views[0]
        try:
            octets, control, _, remote = self._socket.recvmsg_into((view,), _CONTROL_OCTETS)
        except BlockingIOError:
            return None
        except OSError as error:
            self._counters.failed("udp_receive", error)
            return None
        if control:
            self._waiting.append(Arrival(self._slots, remote, 0, 1, octets, _segment(control, octets)))
            return None
        self._counters.values[_UDP_IN] += 1
        return bytes(view[:octets]), remote

    def _receive_ring(self, most: int) -> list[Arrival]:
        arrivals, self._waiting = self._waiting, []
        slots, receive = self._slots, self._socket.recvmsg_into
        single = 0
        try:
            for slot in range(len(arrivals), most):
                octets, control, _, remote = receive((slots.views[slot],), _CONTROL_OCTETS)
                segment = _segment(control, octets)
                arrivals.append(Arrival(slots, remote, slot, 1, octets, segment))
                single += octets == segment
        except BlockingIOError:
            pass
        except OSError as error:
            self._counters.failed("udp_receive", error)
        if single >= _MANY and self.expects_bulk and bulk.is_ready():
            self._singly = self._ready_for_many()
        return arrivals

    def _receive_many(self) -> list[Arrival]:
        if self._many is None:
            return []
        try:
            arrivals = self._many.receive()
        except BlockingIOError:
            arrivals = []
        except OSError as error:
            self._counters.failed("udp_receive", error)
            arrivals = []
        if sum(arrival.count == 1 or arrival.slots > 1 for arrival in arrivals) * 2 < len(arrivals):
            self._singly = False  # mostly trains: they are cheaper in the ring
        elif sum(arrival.slots for arrival in arrivals) < _MANY:
            self._singly = False
        return arrivals

    def _ready_for_many(self) -> bool:
        if self._many is None:
            # Not imported above: see bulk.py.
            from .recvmmsg import ManyReceiver

            try:
                self._many = ManyReceiver(self._socket, self._slots, UDP_GRO)
            except OSError as error:
                self._counters.fall_back("recvmmsg", str(error))
                self.expects_bulk = False
        return self._many is not None

    def send_in_fragments(self, datagram: bytes, remote: Address) -> int:
        """Send a datagram, in fragments where the path is too narrow: IKE has no other way. 1 if the kernel took it."""
        with fragments_allowed(self._socket):
            try:
                return self._send_singly([datagram], remote)
            except TooLongError as error:
                self._counters.failed("udp_send", error)
                return 0

    def send(self, datagrams: Sequence[bytes], remote: Address) -> int:
        """Send `datagrams` to `remote` and say how many the kernel took; the others are counted and lost.

        Raises TooLongError where the path does not carry one of them; those behind it are not sent.
        """
        if len(datagrams) == 1:
            return self._send_singly(datagrams, remote)
        taken = 0
        for octets, group in groupby(datagrams, len):
            equal = list(group)
            for begin in range(0, len(equal), MAX_TRAIN):
                part = equal[begin : begin + MAX_TRAIN]
                if len(part) == 1 or not 0 < len(part) * octets <= MAX_TRAIN_OCTETS:
                    taken += self._send_singly(part, remote)
                else:
                    taken += self.send_train(part, octets, len(part), remote)
        return taken

    def send_train(self, parts: Sequence[Buffer], segment: int, count: int, remote: Address) -> int:
        """Send the octets of `parts`, all together, as `count` datagrams of `segment` octets; the last may be shorter.

        They must be no more than a train may have. Returns and raises as `send` does.
        """
        if count == 1:
            return self._send_singly([b"".join(parts)], remote)
        if self._sends_trains:
            control = [(socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT.pack(segment))]
            try:
                try:
                    self._socket.sendmsg(parts, control, 0, remote)
                except BlockingIOError:
                    self._await_room()
                    self._socket.sendmsg(parts, control, 0, remote)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    raise TooLongError(*error.args) from error
                if error.errno not in (errno.EIO, errno.EINVAL, errno.EOPNOTSUPP):
                    self._counters.failed("udp_send", error, count)
                    return 0
                # EIO: a device on the way out cannot do checksums. EINVAL of older kernels may mean EMSGSIZE.
                if error.errno != errno.EINVAL:
                    self._sends_trains = False
                    self._counters.fall_back("udp_gso", str(error))
            else:
                self._counters.add(Count.UDP_OUT, count)
                return count
        whole = memoryview(b"".join(parts))
        return self._send_singly([whole[at : at + segment] for at in range(0, len(whole), segment)], remote)

    def _send_singly(self, datagrams: Sequence[Buffer], remote: Address) -> int:
        taken = 0
        try:
            for datagram in datagrams:
                try:
                    self._send_one(datagram, remote)
                    taken += 1
                except OSError as error:
                    if error.errno == errno.EMSGSIZE:
                        raise TooLongError(*error.args) from error
                    self._counters.failed("udp_send", error)
        finally:
            self._counters.add(Count.UDP_OUT, taken)
        return taken

    def _send_one(self, datagram: Buffer, remote: Address) -> None:
        try:
            self._socket.sendto(datagram, remote)
        except BlockingIOError:
            self._await_room()
            self._socket.sendto(datagram, remote)

    def _await_room(self) -> None:
        """The kernel's queue is full: a moment's wait loses nothing, and slows down who fills it."""
        select.select([], [self._socket], [], _ROOM_SECONDS)


def _segment(control: Sequence[tuple[int, int, bytes]], octets: int) -> int:
    """How long each datagram is, but for the last, of what the kernel gave us with these control messages."""
    for level, kind, value in control:
        if level == socket.IPPROTO_UDP and kind == UDP_GRO:
            (segment,) = struct.unpack_from("=i", value)
            return int(segment)
    return octets
