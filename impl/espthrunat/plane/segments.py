"""Cuts a super-packet into rows: headers, payload and checksums of all its segments at once."""

from __future__ import annotations

import struct

import numpy as np

from ..esp.frames import Rows
from ..wire.ip import TCP, checksum
from .checksums import put_checksums, row_sums
from .header_train import following
from .super_packet import CHECKSUM_OFFSETS, CWR, SuperPacket

_WORD = struct.Struct("!H")
_CHECKSUM = 10  # in the IP header
_FLAGS = 13  # in the TCP header


def fill_rows(packet: SuperPacket, first: int, rows: Rows) -> None:
    """Put as many segments as there are rows, from number `first` on, each at the beginning of a row.

    All must be full. What is behind them in a row stays as it is.
    """
    count, at, headers, segment = len(rows), packet.ip_octets, packet.header_octets, packet.segment
    end = headers + segment
    payload = np.frombuffer(packet.octets, np.uint8, count * segment, headers + first * segment)
    rows[:, :headers] = np.frombuffer(_headers(packet, first, count), np.uint8).reshape(count, headers)
    rows[:, headers:end] = payload.reshape(count, segment)
    if packet.checksums:
        put_checksums(rows, at + CHECKSUM_OFFSETS[packet.protocol], row_sums(rows[:, at:end]))


def _headers(packet: SuperPacket, first: int, count: int) -> bytes | bytearray:
    """The headers of `count` segments, complete but for the checksum behind the IP header.

    In its place is the sum of the pseudo header, so that the sum of a segment needs nothing more.
    """
    template = _with_sums(packet, first)
    is_tcp = packet.protocol == TCP
    flags = packet.octets[packet.ip_octets + _FLAGS] if is_tcp else 0
    number = None
    if first or not flags & CWR:  # which belongs to the first segment only
        number = following(template, count, packet.ip_octets, packet.protocol, packet.segment)
    if number is None:
        return b"".join(_with_sums(packet, first + n) for n in range(count))
    octets = number.to_bytes(count * len(template), "big")
    if not is_tcp or first + count < packet.count:
        return octets
    headers = bytearray(octets)  # FIN and PSH belong to the last
    headers[(count - 1) * len(template) + packet.ip_octets + _FLAGS] = flags & ~CWR
    return headers


def _with_sums(packet: SuperPacket, number: int) -> bytes:
    """The headers of a full segment with the IP header's checksum, and the sum of the pseudo header if it is needed."""
    header = packet.header_of(number)
    at = packet.ip_octets
    if at:
        _WORD.pack_into(header, _CHECKSUM, checksum(bytes(header[:at])))
    if packet.checksums:
        pseudo = packet.pseudo + packet.header_octets + packet.segment - at
        _WORD.pack_into(header, at + CHECKSUM_OFFSETS[packet.protocol], pseudo % 0xFFFF)
    return bytes(header)
