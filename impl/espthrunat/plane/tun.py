"""The TUN device: inner packets leave the kernel and come back to it here."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from .counters import Count, Counters

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_NEEDS_CSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM
_VNET_HEADER = struct.Struct(
    "=BBHHHH"
)  # struct virtio_net_hdr: flags, GSO type, header, segment, checksum's start, offset
_VNET_OCTETS = _VNET_HEADER.size
_PLAIN = bytes(_VNET_OCTETS)
_MAX_NAME = 15  # octets (IFNAMSIZ less its zero)
_MAX_PACKET = _VNET_OCTETS + 65535


class TunGoneError(Exception):
    """Somebody deleted the device under us; no packet can pass any more."""


class Tun:
    """A TUN device of the network namespace that the process is in; it vanishes when it is closed.

    Raises OSError if it cannot be opened, ValueError if `name` cannot be a device's name.
    """

    def __init__(self, name: str, counters: Counters) -> None:
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
        except OSError:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._fd

    def close(self) -> None:
        """Make the device and its routes vanish."""
        os.close(self._fd)

    def read(self, most: int) -> list[bytes]:
        """Up to `most` packets that the kernel routed into the device. Raises TunGoneError if it was deleted."""
        packets: list[bytes] = []
        fd, read = self._fd, os.read
        try:
            while len(packets) < most:
                packets.append(read(fd, _MAX_PACKET)[_VNET_OCTETS:])
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise TunGoneError(f"the TUN device {self.name} was deleted") from error
            self._counters.failed("tun_read", error)
        self._counters.add(Count.TUN_IN, len(packets))
        return packets

    def write(self, packets: list[bytes], header: bytes = _PLAIN) -> None:
        """Hand `packets` to the kernel as if they had just arrived; those that it refuses are counted.

        `header` is for all: none, or one of `unverified`.
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


def unverified(start: int, offset: int) -> bytes:
    """The `header` of packets whose checksum is not to be checked: it has only the sum of the pseudo header.

    The checksum begins to count at octet `start`, and lies `offset` octets behind that. Where such a packet is
    forwarded after all, the kernel completes it.
    """
    return _VNET_HEADER.pack(_NEEDS_CSUM, 0, 0, 0, start, offset)
