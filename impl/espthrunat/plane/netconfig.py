"""Configures the TUN device in the kernel, without the cost of starting a program for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct

from . import netlink

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_IFF_UP = 0x1
_NAME = "16s"
_QUEUE = 2000  # packets; the kernel's 500 are gone in a quarter of a second of a busy machine's inattention


def bring_up(name: str, mtu: int) -> None:
    """Set the device's MTU in octets and a long queue, and bring it up, without IPv6. Raises OSError."""
    # Without this the kernel sends router solicitations and the like into the tunnel.
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        disable_ipv6 = os.open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", os.O_WRONLY)
        os.write(disable_ipv6, b"1")
        os.close(disable_ipv6)
    set_mtu(name, mtu)
    netlink.set_queue(name, _QUEUE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack(f"{_NAME}H22x", name.encode(), 0))
        (flags,) = struct.unpack_from("H", answer, 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack(f"{_NAME}H22x", name.encode(), flags | _IFF_UP))


def set_segments(name: str, most: int) -> None:
    """Let the kernel make super-packets of at most so many segments. Raises OSError."""
    netlink.set_segments(name, most)


def set_mtu(name: str, mtu: int) -> None:
    """Set the device's MTU in octets. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack(f"{_NAME}i20x", name.encode(), mtu))
