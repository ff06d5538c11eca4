"""Configures the TUN device and its routes in the kernel, without the cost of starting a program for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct

from ..esp.policy import parse_network

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_IFF_UP = 0x1
_NAME = "16s"

_NETLINK_ROUTE = 0
_NLMSG_ERROR = 2
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_REPLACE, _NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 4, 253, 1
_NETLINK_HEADER = struct.Struct("=IHHII")
_ROUTE_MESSAGE = struct.Struct("=BBBBBBBBI")


def bring_up(name: str, mtu: int) -> None:
    """Set the device's MTU in octets and bring it up, without IPv6. Raises OSError."""
    # Without this the kernel sends router solicitations and the like into the tunnel.
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        disable_ipv6 = os.open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", os.O_WRONLY)
        os.write(disable_ipv6, b"1")
        os.close(disable_ipv6)
    set_mtu(name, mtu)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack(f"{_NAME}H22x", name.encode(), 0))
        (flags,) = struct.unpack_from("H", answer, 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack(f"{_NAME}H22x", name.encode(), flags | _IFF_UP))


def set_mtu(name: str, mtu: int) -> None:
    """Set the device's MTU in octets. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack(f"{_NAME}i20x", name.encode(), mtu))


def replace_route(network: str, device: str, source: str) -> None:
    """Like `ip route replace NETWORK dev DEVICE src SOURCE`, with "" for no source.

    Raises ValueError for what is no network, OSError for what the kernel refuses.
    """
    attributes = [(_RTA_PREFSRC, socket.inet_pton(socket.AF_INET, source))] if source else []
    _change_route(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, network, device, attributes)


def delete_route(network: str, device: str) -> None:
    """Like `ip route del NETWORK dev DEVICE`. Raises ValueError and OSError as `replace_route` does."""
    _change_route(_RTM_DELROUTE, 0, network, device, [])


def _change_route(kind: int, flags: int, network: str, device: str, attributes: list[tuple[int, bytes]]) -> None:
    address, bits = parse_network(network)
    body = _ROUTE_MESSAGE.pack(
        socket.AF_INET, bits, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_LINK, _RTN_UNICAST, 0
    )
    index = struct.pack("=I", socket.if_nametoindex(device))
    for number, value in [(_RTA_DST, address.to_bytes(4, "big")), (_RTA_OIF, index), *attributes]:
        body += struct.pack("=HH", 4 + len(value), number) + value  # all values have 4 octets: no padding
    flags |= _NLM_F_REQUEST | _NLM_F_ACK
    request = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(body), kind, flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as netlink:
        netlink.sendto(request, (0, 0))
        answer = netlink.recv(8192)
    _, answer_kind, *_ = _NETLINK_HEADER.unpack_from(answer)
    (code,) = struct.unpack_from("=i", answer, _NETLINK_HEADER.size)
    if answer_kind != _NLMSG_ERROR or code:
        raise OSError(-code, os.strerror(-code))
