"""A super-packet: many packets of one flow under one header, as the kernel passes them to a device that cuts them."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from typing import Self

from ..wire.ip import MIN_OCTETS, TCP, UDP, checksum, ones_sum

CHECKSUM_OFFSETS = {TCP: 16, UDP: 6}  # octets, in the protocol's header
UDP_OCTETS = 8
FIN, PSH, CWR = 0x01, 0x08, 0x80

_SEQUENCE, _FLAGS = 4, 13  # in the TCP header
_LENGTH = 4  # in the UDP header
_WORD, _NUMBER = struct.Struct("!H"), struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class SuperPacket:
    """`octets` are one packet, or in transport mode what it carries; all its segments but the last are equally long.

    Its checksums mean nothing: those of the segments are made when it is cut.
    """

    octets: bytes
    protocol: int
    ip_octets: int  # of the IP header; 0 in transport mode, where it has none any more
    header_octets: int  # of all headers together
    segment: int  # octets of payload in each segment
    pseudo: int  # the sum of addresses and protocol
    checksums: bool = True  # else segments get none; in UDP only

    @classmethod
    def of(cls, packet: bytes, segment: int) -> Self | None:
        """An IPv4 packet as the kernel passes it, with `segment` octets in each part; None if it cannot be cut so."""
        ip_octets = (packet[0] & 0x0F) << 2
        protocol = packet[9]
        if protocol == TCP and len(packet) >= ip_octets + MIN_OCTETS:
            header_octets = ip_octets + (packet[ip_octets + 12] >> 4 << 2)
        elif protocol == UDP:
            header_octets = ip_octets + UDP_OCTETS
        else:
            return None
        if segment <= 0 or packet[0] >> 4 != 4 or ip_octets < MIN_OCTETS or len(packet) <= header_octets:
            return None
        return cls(packet, protocol, ip_octets, header_octets, segment, ones_sum(packet[12:20]) + protocol)

    @property
    def payload_octets(self) -> int:
        """Octets of payload in all segments."""
        return len(self.octets) - self.header_octets

    @property
    def count(self) -> int:
        """How many segments there are."""
        return -(-self.payload_octets // self.segment)

    @property
    def total_octets(self) -> int:
        """Octets of all segments with their headers."""
        return self.payload_octets + self.count * self.header_octets

    def fitting(self, most: int) -> SuperPacket | None:
        """The same in segments that with their headers have at most `most` octets; None if they cannot be made smaller.

        TCP is a stream, and a receiver does not see how it was cut.
        """
        if self.header_octets + self.segment <= most:
            return self
        if self.protocol != TCP or most <= self.header_octets:
            return None
        return dataclasses.replace(self, segment=most - self.header_octets)

    def with_octets(self, packet: bytes) -> SuperPacket:
        """The same with other addresses."""
        return dataclasses.replace(self, octets=packet, pseudo=ones_sum(packet[12:20]) + self.protocol)

    def without_ip(self, payload: bytes, *, checksums: bool) -> SuperPacket:
        """What transport mode carries of it: `payload`, in place of all behind the IP header."""
        return SuperPacket(
            payload, self.protocol, 0, self.header_octets - self.ip_octets, self.segment, self.pseudo, checksums
        )

    def header_of(self, number: int) -> bytearray:
        """The headers of a segment, in which its checksums are zero."""
        header = bytearray(self.octets[: self.header_octets])
        payload = min(self.segment, self.payload_octets - number * self.segment)
        at = self.ip_octets
        if at:
            (identification,) = _WORD.unpack_from(header, 4)
            _WORD.pack_into(header, 2, self.header_octets + payload)
            _WORD.pack_into(header, 4, identification + number & 0xFFFF)
            _WORD.pack_into(header, 10, 0)
        _WORD.pack_into(header, at + CHECKSUM_OFFSETS[self.protocol], 0)
        if self.protocol == UDP:
            _WORD.pack_into(header, at + _LENGTH, UDP_OCTETS + payload)
            return header
        (sequence,) = _NUMBER.unpack_from(header, at + _SEQUENCE)
        _NUMBER.pack_into(header, at + _SEQUENCE, sequence + number * self.segment & 0xFFFFFFFF)
        if number < self.count - 1:
            header[at + _FLAGS] &= ~(FIN | PSH) & 0xFF
        if number:
            header[at + _FLAGS] &= ~CWR & 0xFF
        return header

    def cut(self, number: int) -> bytes:
        """A segment, whole."""
        begin = self.header_octets + number * self.segment
        packet = self.header_of(number) + self.octets[begin : begin + self.segment]
        at = self.ip_octets
        if at:
            _WORD.pack_into(packet, 10, checksum(bytes(packet[:at])))
        if self.checksums:
            covered = bytes(packet[at:])
            total = (self.pseudo + len(covered) + ones_sum(covered)) % 0xFFFF
            _WORD.pack_into(packet, at + CHECKSUM_OFFSETS[self.protocol], 0xFFFF - total)
        return bytes(packet)


def inner_octets(packet: bytes | SuperPacket) -> int:
    """Octets that an SA counts for it."""
    return packet.total_octets if isinstance(packet, SuperPacket) else len(packet)


def inner_count(packet: bytes | SuperPacket) -> int:
    """Packets that an SA counts for it."""
    return packet.count if isinstance(packet, SuperPacket) else 1


def singly(packets: list[bytes | SuperPacket]) -> list[bytes]:
    """All packets for themselves, super-packets cut."""
    single: list[bytes] = []
    for packet in packets:
        if isinstance(packet, SuperPacket):
            single += map(packet.cut, range(packet.count))
        else:
            single.append(packet)
    return single
