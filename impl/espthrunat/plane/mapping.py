"""Inner packets between a peer's own network and the one that it appears as here (the draft, 1 and 7; RFC 3022, 4).

One's complement sums make it cheap: a new address changes a checksum by the difference of the two networks, whatever
the packet (RFC 1624). What was damaged before stays so, and its receiver sees it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ..esp.policy import netmask, parse_network
from ..wire.ip import ICMP, ICMP_ERRORS, MIN_OCTETS, TCP, UDP

_HEADER_CHECKSUM, _SOURCE, _DESTINATION = 10, 12, 16  # offsets in the IP header
_CHECKSUMS = {TCP: 16, UDP: 6, 33: 6, 136: 6}  # offsets of those that cover addresses: DCCP's and UDP-Lite's too
_ICMP_CHECKSUM, _QUOTED = 2, 8  # offsets in an ICMP error
_FRAGMENT_OFFSET = 0x1FFF
_WORD, _ADDRESS = struct.Struct("!H"), struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class _Step:
    """Addresses of the network `old` become those of `new`, host for host."""

    old: int
    new: int
    mask: int
    change: int = field(init=False)  # what the sum of an address's 16-bit words gains

    def __post_init__(self) -> None:
        object.__setattr__(self, "change", (self.new - self.old) % 0xFFFF)


class Mapping:
    """The network `real`, which appears as `mapped`. Raises ValueError unless both are networks of one size."""

    def __init__(self, real: str, mapped: str) -> None:
        (inner, bits), (outer, outer_bits) = parse_network(real), parse_network(mapped)
        if bits != outer_bits:
            raise ValueError(f"{real} cannot appear as {mapped}: they differ in size")
        self._arriving = _Step(inner, outer, netmask(bits))
        self._leaving = _Step(outer, inner, netmask(bits))

    def arrived(self, packet: bytes) -> bytes:
        """A whole IPv4 packet of the peer, as the kernel gets it: with another source."""
        return _translated(packet, self._arriving, _SOURCE, _DESTINATION)

    def leaving(self, packet: bytes) -> bytes:
        """A whole IPv4 packet of the kernel, as the peer gets it: with another destination."""
        return _translated(packet, self._leaving, _DESTINATION, _SOURCE)


def _translated(packet: bytes, step: _Step, at: int, at_quoted: int) -> bytes:
    """A packet with the address at octet `at` replaced; what an ICMP error quotes went the other way."""
    octets = bytearray(packet)
    _replace_address(octets, 0, step, at)
    payload = (octets[0] & 0x0F) << 2
    quoted = payload + _QUOTED
    if (
        octets[9] == ICMP
        and not _WORD.unpack_from(octets, 6)[0] & _FRAGMENT_OFFSET
        and len(octets) >= quoted + MIN_OCTETS
        and octets[payload] in ICMP_ERRORS
        and octets[quoted] >> 4 == 4
    ):
        gain = _replace_address(octets, quoted, step, at_quoted)
        _adjust(octets, payload + _ICMP_CHECKSUM, gain)
    return bytes(octets)


def _replace_address(octets: bytearray, start: int, step: _Step, at: int) -> int:
    """Replace an address of the IP header at `start` if it is one of the old network; what all the words gain by it."""
    (address,) = _ADDRESS.unpack_from(octets, start + at)
    if address & step.mask != step.old:
        return 0
    _ADDRESS.pack_into(octets, start + at, step.new | address & ~step.mask)
    _adjust(octets, start + _HEADER_CHECKSUM, step.change)  # and so the header as a whole gains nothing
    protocol = octets[start + 9]
    if protocol not in _CHECKSUMS:
        return 0
    fragment = (_WORD.unpack_from(octets, start + 6)[0] & _FRAGMENT_OFFSET) << 3
    payload = start + ((octets[start] & 0x0F) << 2)
    checksum = payload + _CHECKSUMS[protocol] - fragment
    if not payload <= checksum <= len(octets) - 2:
        return 0  # it is in another fragment, or was not quoted
    if protocol == UDP and octets[checksum : checksum + 2] == b"\0\0":
        return 0  # there is none (RFC 768)
    _adjust(octets, checksum, step.change)
    return -step.change


def _adjust(octets: bytearray, at: int, gain: int) -> None:
    """Correct the checksum at octet `at` for words that have gained `gain` (RFC 1624, equation 3)."""
    (old,) = _WORD.unpack_from(octets, at)
    _WORD.pack_into(octets, at, 0xFFFF ^ ((0xFFFF ^ old) + gain) % 0xFFFF)
