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
_MAX_NAME = 15  # octets (IFNAMSIZ less its zero)
_MAX_PACKET = 65535


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
            fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", octets, _IFF_TUN | _IFF_NO_PI))
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
        try:
            while len(packets) < most:
                packets.append(os.read(self._fd, _MAX_PACKET))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise TunGoneError(f"the TUN device {self.name} was deleted") from error
            self._counters.failed("tun_read", error)
        self._counters.add(Count.TUN_IN, len(packets))
        return packets

    def write(self, packets: list[bytes]) -> None:
        """Hand `packets` to the kernel as if they had just arrived; those that it refuses are counted."""
        taken = 0
        for packet in packets:
            try:
                os.write(self._fd, packet)
                taken += 1
            except OSError as error:
                self._counters.failed("tun_write", error)
        self._counters.add(Count.TUN_OUT, taken)
