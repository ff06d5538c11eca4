"""Reads what selectors need from an IPv4 packet's header (RFC 791, 3.1)."""

from __future__ import annotations

import struct
from typing import NamedTuple

ICMP = 1
IPV4 = 4  # IP in IP: the next header of tunnel mode ESP
TCP = 6
UDP = 17
ESP = 50
NO_NEXT_HEADER = 59  # a dummy packet (RFC 4303, 2.6)

NO_PORT = -1  # the packet shows no port: another protocol, a later fragment, or cut off too early

_HEADER = struct.Struct("!BxH2xHxB2xII")
_PORTS = struct.Struct("!HH")
_WITH_PORTS = frozenset({TCP, UDP, 33, 132, 136})  # and DCCP, SCTP, UDP-Lite: all have the ports in front
_FRAGMENT_OFFSET = 0x1FFF
_DONT_FRAGMENT = 0x4000
_MIN_OCTETS = 20


class IpHeader(NamedTuple):
    """An IPv4 packet as selectors see it; addresses are 32-bit numbers, ports are `NO_PORT` where there is none."""

    source: int
    destination: int
    protocol: int
    source_port: int
    destination_port: int
    dont_fragment: bool

    def __str__(self) -> str:
        source = _endpoint(self.source, self.source_port)
        return f"protocol {self.protocol} from {source} to {_endpoint(self.destination, self.destination_port)}"


def _endpoint(address: int, port: int) -> str:
    text = ".".join(map(str, address.to_bytes(4, "big")))
    return text if port == NO_PORT else f"{text} port {port}"


def parse_ipv4(packet: bytes) -> IpHeader | None:
    """The header of `packet`, or None if it is no IPv4 packet of exactly the length that it claims."""
    octets = len(packet)
    if octets < _MIN_OCTETS:
        return None
    first, total, fragment, protocol, source, destination = _HEADER.unpack_from(packet)
    header_octets = (first & 0x0F) << 2
    if first >> 4 != 4 or total != octets or not _MIN_OCTETS <= header_octets <= octets:
        return None
    if protocol in _WITH_PORTS and not fragment & _FRAGMENT_OFFSET and octets >= header_octets + 4:
        source_port, destination_port = _PORTS.unpack_from(packet, header_octets)
    else:
        source_port = destination_port = NO_PORT
    return IpHeader(source, destination, protocol, source_port, destination_port, bool(fragment & _DONT_FRAGMENT))
