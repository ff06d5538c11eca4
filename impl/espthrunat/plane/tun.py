"""The TUN device: inner packets leave the kernel and come back to it here."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..wire.ip import completed
from . import bulk, netconfig, vnet
from .counters import Count, Counters
from .super_packet import SuperPacket

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_TUN_IN, _TUN_OUT, _PLAIN = Count.TUN_IN, Count.TUN_OUT, vnet.PLAIN  # looking them up costs, for each packet
_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_MAX_NAME = 15  # octets (IFNAMSIZ less its zero)
_FEWEST = 5  # packets that are worth the fixed cost of a batch
_WAKE_OCTETS = 4 * 65536  # for one read: others wait while these are sealed
_MAX_PACKET = 65535
_TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454D0, 0x400454D8
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_USO4, _TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
_TSO = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6
_USO = _TSO | _TUN_F_USO4 | _TUN_F_USO6  # the kernel takes both or neither


class TunGoneError(Exception):
    """Somebody deleted the device under us; no packet can pass any more."""


class Tun:
    """A TUN device of the network namespace that the process is in; it vanishes when it is closed.

    Raises OSError if it cannot be opened, ValueError if `name` cannot be a device's name. `offloads` are what to ask
    the kernel for, the best first: with segmentation, its TCP and UDP pass super-packets.
    """

    def __init__(self, name: str, counters: Counters, offloads: Sequence[int] = (_USO, _TSO)) -> None:
        octets = name.encode()
        if (
            not 0 < len(octets) <= _MAX_NAME
            or name in (".", "..")
            or any(c in " /%" or not c.isprintable() for c in name)
        ):
            raise ValueError(f"{name!r} cannot be the name of a network device")
        self.name = name
        self._counters = counters
        self._fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", octets, _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
            fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, struct.pack("i", vnet.OCTETS))
        except OSError:
            os.close(self._fd)
            raise
        self.offloads = self._offload(offloads)
        self._values = counters.values
        self._header = bytearray(vnet.OCTETS)
        self._room = memoryview(bytearray(_MAX_PACKET))

    def _offload(self, offloads: Sequence[int]) -> int:
        """Ask for offloads until the kernel agrees; the last resort is none."""
        for wanted in offloads:
            try:
                fcntl.ioctl(self._fd, _TUNSETOFFLOAD, wanted)
            except OSError as error:
                self._counters.fall_back("tun_uso" if wanted & _TUN_F_USO4 else "tun_tso", str(error))
            else:
                return wanted
        return 0

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._fd

    def close(self) -> None:
        """Make the device and its routes vanish."""
        os.close(self._fd)

    def set_segments(self, most: int) -> None:
        """Ask the kernel for super-packets of at most so many segments, so that each becomes one train."""
        if not self.offloads:
            return
        try:
            netconfig.set_segments(self.name, most)
        except OSError as error:
            self._counters.fall_back("gso_max_segs", str(error))

    def read(self, most: int) -> list[bytes | SuperPacket]:
        """Up to `most` packets that the kernel routed into the device. Raises TunGoneError if it was deleted.

        What belongs into a checksum and is missing is there afterwards, but for those of super-packets.
        """
        packets: list[bytes | SuperPacket] = []
        unfinished: list[tuple[int, bytes, int, int]] = []
        count = 0
        fd, readv, header, body, plain = self._fd, os.readv, self._header, self._room, _PLAIN
        parts = header, body
        room = _WAKE_OCTETS
        try:
            while len(packets) < most and room > 0:
                octets = readv(fd, parts) - vnet.OCTETS
                room -= octets
                packet = bytes(body[:octets])
                if header == plain:
                    packets.append(packet)
                    count += 1
                    continue
                flags, gso, _, segment, start, offset = vnet.VNET_HEADER.unpack(header)
                whole = SuperPacket.of(packet, segment) if gso != vnet.GSO_NONE else None
                if whole is not None:
                    packets.append(whole)
                    count += whole.count
                    continue
                if flags & vnet.NEEDS_CSUM:
                    unfinished.append((len(packets), packet, start, offset))
                packets.append(packet)
                count += 1
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise TunGoneError(f"the TUN device {self.name} was deleted") from error
            self._counters.failed("tun_read", error)
        self._values[_TUN_IN] += count
        if unfinished:
            _finish(packets, unfinished)
        return packets

    def write_one(self, packet: bytes) -> None:
        """As `write` for one packet, without a header for it."""
        try:
            os.write(self._fd, _PLAIN + packet)
        except OSError as error:
            self._counters.failed("tun_write", error)
        else:
            self._values[_TUN_OUT] += 1

    def write(self, packets: list[bytes], header: bytes = vnet.PLAIN) -> None:
        """Hand `packets` to the kernel as if they had just arrived; those that it refuses are counted.

        `header` is for all: none, or one of `vnet.unverified`.
        """
        taken = 0
        fd, write = self._fd, os.write
        for packet in packets:
            try:
                write(fd, header + packet)
                taken += 1
            except OSError as error:
                self._counters.failed("tun_write", error)
        self._counters.add(Count.TUN_OUT, taken)

    def write_super(self, parts: list[Buffer], count: int) -> bool:
        """Hand over a super-packet of `count` packets, in `parts` of which the first is of `vnet.super_header`.

        False if the kernel does not take it.
        """
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            if error.errno != errno.EINVAL:
                self._counters.failed("tun_write", error, count)
                return True  # nor would it take them one by one
            return False
        self._counters.add(Count.TUN_OUT, count)
        return True


def _finish(packets: list[bytes | SuperPacket], unfinished: Sequence[tuple[int, bytes, int, int]]) -> None:
    if len(unfinished) < _FEWEST or not bulk.is_ready():
        for position, packet, start, offset in unfinished:
            packets[position] = completed(packet, start, offset)
        return
    # Not imported above: see bulk.py.
    from .completion import Unfinished, complete

    for position, packet in complete([Unfinished(*one) for one in unfinished]).items():
        packets[position] = packet
