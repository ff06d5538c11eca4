"""Joins packets of one flow that follow each other into a super-packet, so that the kernel takes them in one piece.

Only what the kernel would cut into the very same packets again is joined: equal headers, numbers that count up, equal
lengths but for the last, and checksums that are right.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..esp.frames import Rows, are_equal
from ..wire.ip import MAX_OCTETS, MIN_OCTETS, TCP, UDP, checksum, ones_sum
from .checksums import are_right, are_wrong, row_sums
from .header_train import are_following
from .super_packet import CHECKSUM_OFFSETS, PSH, UDP_OCTETS

_ACK = 0x10
_ONLY_ACK, _ACK_PSH = b"\x10", b"\x18"
_WORD = struct.Struct("!H")
_SEQUENCE = slice(4, 8)  # in the TCP header
_FLAGS = 13


@dataclass(slots=True)
class Train:
    """Packets that may be one: `header` is that of the first; with `ip_octets` 0 they have no IP header."""

    header: bytes
    ip_octets: int
    protocol: int
    segment: int  # octets of payload in each packet but the last
    payload: Rows  # of all rows that were joined
    tail: bytes = b""  # payload of a last, shorter packet
    count: int = 0
    pushes: bool = False  # the last has TCP's flag PSH

    @property
    def payload_octets(self) -> int:
        """Octets of payload in all."""
        return self.payload.size + len(self.tail)

    def append(self, packet: bytes) -> bool:
        """Join one more packet if it continues the train; whether it did. Nothing can follow it."""
        at, octets = self.ip_octets, len(self.header)
        payload = len(packet) - octets
        if (
            self.tail
            or self.pushes
            or not 0 < payload <= self.segment
            or octets + self.payload_octets + payload + (0 if at else MIN_OCTETS) > MAX_OCTETS
        ):
            return False
        mask = _tail_mask(at, octets, self.protocol)
        if (int.from_bytes(packet[:octets], "big") ^ int.from_bytes(self.header, "big")) & mask:
            return False
        if self.protocol == TCP:
            sequence = int.from_bytes(self.header[at:][_SEQUENCE], "big") + self.payload.size
            if int.from_bytes(packet[at:][_SEQUENCE], "big") != sequence & 0xFFFFFFFF:
                return False
            if packet[at + _FLAGS] & ~PSH != _ACK:
                return False
        elif _WORD.unpack_from(packet, at + 4)[0] != UDP_OCTETS + payload:
            return False
        if at:
            (first,) = _WORD.unpack_from(self.header, 4)
            if _WORD.unpack_from(packet, 4)[0] != first + self.count & 0xFFFF:
                return False
            if not _is_right(packet, at, self.protocol):
                return False
        self.tail = packet[octets:]
        self.count += 1
        self.pushes = self.protocol == TCP and bool(packet[at + _FLAGS] & PSH)
        return True

    def kernel_header(self, packet: bytes) -> bytes:
        """The super-packet's headers, where `packet` is the first packet as the kernel gets it, IP header and all.

        The checksum has the sum of the pseudo header only: the kernel completes it wherever somebody looks at it.
        """
        at = MIN_OCTETS
        headers = len(self.header) + (0 if self.ip_octets else MIN_OCTETS)
        total = headers + self.payload_octets
        header = bytearray(packet[:headers])
        _WORD.pack_into(header, 2, total)
        _WORD.pack_into(header, 10, 0)
        _WORD.pack_into(header, 10, checksum(bytes(header[:at])))
        if self.protocol == UDP:
            _WORD.pack_into(header, at + 4, total - at)
        elif self.pushes:
            header[at + _FLAGS] |= PSH
        pseudo = (ones_sum(bytes(header[12:20])) + self.protocol + total - at) % 0xFFFF
        _WORD.pack_into(header, at + CHECKSUM_OFFSETS[self.protocol], pseudo)
        return bytes(header)


def _is_right(packet: bytes, at: int, protocol: int) -> bool:
    """Whether both checksums of a whole packet are right, and there are two."""
    pseudo = packet[12:20] + bytes((0, protocol)) + _WORD.pack(len(packet) - at)
    field = at + CHECKSUM_OFFSETS[protocol]
    has_one = protocol != UDP or packet[field : field + 2] != b"\0\0"
    return has_one and not ones_sum(packet[:at]) and not (ones_sum(pseudo) + ones_sum(packet[at:])) % 0xFFFF


def leading_train(rows: Rows, ip_octets: int, protocol: int) -> Train | None:
    """What the first rows have in common: as many of them as can be joined; None if that is not even two.

    `rows` are IPv4 packets with headers of `ip_octets` octets (20), whose lengths are right, or with `ip_octets` 0 what
    transport mode carries, whose checksums nobody checks (the draft, 5).
    """
    first = rows[0]
    octets = _header_octets(first, ip_octets, protocol)
    segment = rows.shape[1] - octets
    if not octets or segment <= 0 or len(rows) < 2:
        return None
    at = ip_octets
    most = (MAX_OCTETS - MIN_OCTETS - octets) // segment
    rows = rows[:most]
    heads = rows[:, :octets].tobytes()
    header = heads[:octets]
    is_plain = protocol != TCP or header[at + _FLAGS] == _ACK
    if is_plain and are_following(heads, header, at, protocol, segment):  # the usual thing, seen at one glance
        count = len(rows)
        if at and (ones_sum(header[:at]) or not _are_right(rows, header, at, protocol)):
            count = _with_right_checksums(rows, at, protocol)
    else:
        count = _leading_alike(rows, octets, at, protocol)
    if count < 2:
        return None
    pushes = protocol == TCP and bool(heads[(count - 1) * octets + at + _FLAGS] & PSH)
    payload = np.ascontiguousarray(rows[:count, octets:])
    return Train(header, at, protocol, segment, payload, b"", count, pushes)


def _leading_alike(rows: Rows, octets: int, at: int, protocol: int) -> int:
    """How many of the first packets can be joined, found field by field."""
    heads, segment = rows[:, :octets], rows.shape[1] - octets
    masked = heads & _mask(at, octets, protocol)
    count = len(rows) if are_equal(masked, masked[0].tobytes()) else _leading(masked == masked[0])
    if protocol == TCP:
        count = _leading_flags(heads[:count, at + _FLAGS].tobytes())
        count = _count_up(heads[:count, at + 4 : at + 8].view(">u4")[:, 0], segment, 1 << 32)
    if at:
        count = _count_up(heads[:count, 4:6].view(">u2")[:, 0], 1, 1 << 16)
        count = _with_right_checksums(rows[:count], at, protocol) if count > 1 else 0
    return count


def _leading(is_equal: npt.NDArray[np.bool_]) -> int:
    """How many rows are all true before the first that is not."""
    wrong = np.flatnonzero(~is_equal.all(axis=1))
    return int(wrong[0]) if len(wrong) else len(is_equal)


def _count_up(numbers: npt.NDArray[np.unsignedinteger], step: int, modulus: int) -> int:
    """How many of the first numbers are each `step` more than the one before."""
    found: list[int] = numbers.tolist()
    first = found[0] if found else 0
    if found == list(range(first, first + step * len(found), step)):
        return len(found)
    return next((n for n, number in enumerate(found) if number != (first + n * step) % modulus), len(found))


def _leading_flags(flags: bytes) -> int:
    """How many of the first segments may be one: nothing but ACK, and PSH in the last."""
    count = len(flags) - len(flags.lstrip(_ONLY_ACK))
    return count + (flags[count : count + 1] == _ACK_PSH)


def _are_right(rows: Rows, header: bytes, at: int, protocol: int) -> bool:
    """Whether all packets, which agree with `header` in all else, have transport checksums and right ones."""
    sums = row_sums(rows[:, at:])
    return are_right(sums, _pseudo(rows, header, at, protocol)) and not (protocol == UDP and _have_none(rows, at).any())


def _transport_is_wrong(rows: Rows, at: int, protocol: int) -> npt.NDArray[np.bool_]:
    """Which packets, which agree in all else, have no transport checksum or a wrong one."""
    wrong = are_wrong(row_sums(rows[:, at:]), _pseudo(rows, rows[0, :at].tobytes(), at, protocol))
    if protocol == UDP:
        wrong |= _have_none(rows, at)
    return wrong


def _pseudo(rows: Rows, header: bytes, at: int, protocol: int) -> int:
    """The sum of the pseudo header of packets that all have the addresses of `header`."""
    octets: int = rows.shape[1] - at
    return ones_sum(header[12:20]) + protocol + octets


def _have_none(rows: Rows, at: int) -> npt.NDArray[np.bool_]:
    """Which UDP packets have no checksum."""
    none: npt.NDArray[np.bool_] = rows[:, at + 6 : at + 8].view(">u2")[:, 0] == 0
    return none


def _with_right_checksums(rows: Rows, at: int, protocol: int) -> int:
    """How many of the first packets, which agree in all else, have checksums and right ones."""
    wrong = are_wrong(row_sums(rows[:, :at]), 0) | _transport_is_wrong(rows, at, protocol)
    return int(wrong.argmax()) if wrong.any() else len(rows)


def _header_octets(row: Rows, at: int, protocol: int) -> int:
    """Octets of all headers; 0 where they are not there or nothing may be joined."""
    if protocol == UDP:
        octets = at + UDP_OCTETS
        return octets if len(row) >= octets and _WORD.unpack(row[at + 4 : at + 6].tobytes())[0] == len(row) - at else 0
    if protocol != TCP or len(row) < at + MIN_OCTETS:
        return 0
    octets = at + (int(row[at + 12]) >> 4 << 2)
    return octets if at + MIN_OCTETS <= octets <= len(row) else 0


@functools.lru_cache(maxsize=32)
def _mask(at: int, octets: int, protocol: int) -> Rows:
    """Ones where headers of one length must be equal, zeros where their numbers, flags and checksums are."""
    mask = np.full(octets, 0xFF, np.uint8)
    if at:
        mask[4:6] = mask[10:12] = 0
    if protocol == TCP:
        mask[at + 4 : at + 8] = 0
        mask[at + _FLAGS] = 0
    field = at + CHECKSUM_OFFSETS[protocol]
    mask[field : field + 2] = 0
    return mask


@functools.lru_cache(maxsize=32)
def _tail_mask(at: int, octets: int, protocol: int) -> int:
    """As `_mask`, as a number, for a packet of another length."""
    mask = _mask(at, octets, protocol).copy()
    if at:
        mask[2:4] = 0
    if protocol == UDP:
        mask[at + 4 : at + 6] = 0
    return int.from_bytes(mask.tobytes(), "big")
