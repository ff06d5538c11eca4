"""IPv4 packets (RFC 791, 3.1): what selectors need of a header, headers of our own, checksums (RFC 1071)."""

from __future__ import annotations

import struct
from typing import NamedTuple

ICMP = 1
IPV4 = 4  # IP in IP: the next header of tunnel mode ESP
TCP = 6
UDP = 17
ESP = 50
NO_NEXT_HEADER = 59  # a dummy packet (RFC 4303, 2.6)

ICMP_ERRORS = frozenset({3, 4, 11, 12})  # the types that quote the packet that is their cause (RFC 792)

NO_PORT = -1  # the packet shows no port: another protocol, a later fragment, or cut off too early

_HEADER = struct.Struct("!BxH2xHxB2xII")
_WHOLE_HEADER = struct.Struct("!BBHHHBBH4s4s")
_PORTS = struct.Struct("!HH")
WITH_PORTS = frozenset({TCP, UDP, 33, 132, 136})  # and DCCP, SCTP, UDP-Lite: all have the ports in front
_FRAGMENT_OFFSET = 0x1FFF
_FRAGMENT = 0x3FFF  # MF, or an offset
_DONT_FRAGMENT = 0x4000
MIN_OCTETS = 20
MAX_OCTETS = 65535
WITHOUT_OPTIONS = 0x45  # the first octet of a header of 20 octets: version and length


class IpHeader(NamedTuple):
    """An IPv4 packet as selectors see it; addresses are 32-bit numbers, ports are `NO_PORT` where there is none."""

    source: int
    destination: int
    protocol: int
    source_port: int
    destination_port: int
    dont_fragment: bool
    fragment: bool = False  # one piece of a larger packet, be it the first

    def __str__(self) -> str:
        source = _endpoint(self.source, self.source_port)
        return f"protocol {self.protocol} from {source} to {_endpoint(self.destination, self.destination_port)}"


def _endpoint(address: int, port: int) -> str:
    text = ".".join(map(str, address.to_bytes(4, "big")))
    return text if port == NO_PORT else f"{text} port {port}"


def parse_ipv4(packet: bytes) -> IpHeader | None:
    """The header of `packet`, or None if it is no IPv4 packet of exactly the length that it claims."""
    octets = len(packet)
    if octets < MIN_OCTETS:
        return None
    first, total, fragment, protocol, source, destination = _HEADER.unpack_from(packet)
    header_octets = (first & 0x0F) << 2
    if first >> 4 != 4 or total != octets or not MIN_OCTETS <= header_octets <= octets:
        return None
    if protocol in WITH_PORTS and not fragment & _FRAGMENT_OFFSET and octets >= header_octets + 4:
        source_port, destination_port = _PORTS.unpack_from(packet, header_octets)
    else:
        source_port = destination_port = NO_PORT
    return IpHeader(
        source,
        destination,
        protocol,
        source_port,
        destination_port,
        fragment & _DONT_FRAGMENT != 0,
        fragment & _FRAGMENT != 0,
    )


def ports_of(protocol: int, payload: bytes) -> tuple[int, int]:
    """Source and destination port of what an IP packet carries; `NO_PORT` where it shows none."""
    if protocol not in WITH_PORTS or len(payload) < _PORTS.size:
        return NO_PORT, NO_PORT
    source_port, destination_port = _PORTS.unpack_from(payload)
    return source_port, destination_port


def build_ipv4(source: bytes, destination: bytes, protocol: int, payload_octets: int, ttl: int = 64) -> bytes:
    """A header in front of `payload_octets` octets, which must fit.

    It forbids fragments, so it needs no identification: RFC 6864, 4.1 calls such packets atomic.
    """
    header = _WHOLE_HEADER.pack(
        0x45, 0, MIN_OCTETS + payload_octets, 0, _DONT_FRAGMENT, ttl, protocol, 0, source, destination
    )
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:]


def ones_sum(octets: bytes) -> int:
    """The ones' complement sum of 16-bit words; an odd octet at the end counts as if a zero followed."""
    if len(octets) % 2:
        octets += b"\0"
    # 0x10000 is 1 modulo 0xFFFF, so the remainder of the whole number is the sum of its words, 0 and 0xFFFF being one.
    return int.from_bytes(octets, "big") % 0xFFFF


def checksum(octets: bytes) -> int:
    """The Internet checksum of `octets`, whose checksum field is zero."""
    return 0xFFFF ^ ones_sum(octets)


def adjusted(old_checksum: int, old_word: int, new_word: int) -> int:
    """The checksum after one 16-bit word under it has changed (RFC 1624, equation 3)."""
    return 0xFFFF ^ ((0xFFFF ^ old_checksum) + (0xFFFF ^ old_word) + new_word) % 0xFFFF


def completed(packet: bytes, start: int, offset: int) -> bytes:
    """`packet` with the checksum finished that counts from octet `start` and lies `offset` octets behind it.

    Its field holds the sum of the pseudo header. 0 is written as 0xFFFF, which is the same number, and in UDP means
    that there is a checksum (RFC 768). Where the field does not lie in the packet, nothing is done.
    """
    at = start + offset
    if at + 2 > len(packet):
        return packet
    return packet[:at] + (0xFFFF - ones_sum(packet[start:])).to_bytes(2, "big") + packet[at + 2 :]
