"""Cuts a super-packet into rows: headers, payload and checksums of all its segments at once."""

from __future__ import annotations

import numpy as np

from ..esp.frames import Rows
from ..wire.ip import TCP, checksum
from .checksums import put_checksums, row_sums
from .header_train import following
from .super_packet import CHECKSUM_OFFSETS, CWR, SuperPacket

_CHECKSUM = slice(10, 12)  # in the IP header
_FLAGS = 13  # in the TCP header


def fill_rows(packet: SuperPacket, first: int, rows: Rows) -> None:
    """Put as many segments as there are rows, from number `first` on, each at the beginning of a row.

    All must be full. What is behind them in a row becomes zero.
    """
    count, at, headers, segment = len(rows), packet.ip_octets, packet.header_octets, packet.segment
    end = headers + segment
    payload = np.frombuffer(packet.octets, np.uint8, count * segment, headers + first * segment)
    rows[:, :headers] = np.frombuffer(_headers(packet, first, count), np.uint8).reshape(count, headers)
    rows[:, headers:end] = payload.reshape(count, segment)
    rows[:, end:] = 0  # and so the sums below can run on to the end of the row
    if packet.checksums:
        pseudo = packet.pseudo + end - at
        put_checksums(rows, at + CHECKSUM_OFFSETS[packet.protocol], row_sums(rows[:, at:]), pseudo)


def _headers(packet: SuperPacket, first: int, count: int) -> bytes | bytearray:
    """The headers of `count` segments, complete but for the checksum behind the IP header."""
    template = _with_checksum(packet, first)
    has_cwr = packet.protocol == TCP and not first and packet.octets[packet.ip_octets + _FLAGS] & CWR
    number = None
    if not has_cwr:  # which belongs to the first segment only
        number = following(template, count, packet.ip_octets, packet.protocol, packet.segment)
    if number is None:
        return b"".join(_with_checksum(packet, first + n) for n in range(count))
    headers = bytearray(number.to_bytes(count * len(template), "big"))
    if packet.protocol == TCP and first + count == packet.count:  # FIN and PSH belong to the last
        last = packet.octets[packet.ip_octets + _FLAGS]
        headers[(count - 1) * len(template) + packet.ip_octets + _FLAGS] = last & (0xFF if packet.count == 1 else ~CWR)
    return headers


def _with_checksum(packet: SuperPacket, number: int) -> bytes:
    """The headers of a segment with the IP header's checksum."""
    header = packet.header_of(number)
    if packet.ip_octets:
        header[_CHECKSUM] = checksum(bytes(header[: packet.ip_octets])).to_bytes(2, "big")
    return bytes(header)
