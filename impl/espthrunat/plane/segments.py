"""Cuts a super-packet into rows: headers, payload and checksums of all its segments at once."""

from __future__ import annotations

import struct

import numpy as np

from ..esp.frames import Rows
from ..wire.ip import TCP, ones_sum
from .checksums import put_checksums, row_sums
from .super_packet import CHECKSUM_OFFSETS, CWR, SuperPacket


def fill_rows(packet: SuperPacket, first: int, rows: Rows) -> None:
    """Put as many segments as there are rows, from number `first` on, each at the beginning of a row.

    All must be full. What is behind them in a row becomes zero.
    """
    count, at, headers, segment = len(rows), packet.ip_octets, packet.header_octets, packet.segment
    begin = headers + first * segment
    payload = np.frombuffer(packet.octets, np.uint8, count * segment, begin).reshape(count, segment)
    template = packet.header_of(first)
    rows[:, :headers] = np.frombuffer(template, np.uint8)
    rows[:, headers : headers + segment] = payload
    rows[:, headers + segment :] = 0  # and so the sums below can run on to the end of the row, in whole words
    numbers = np.arange(count, dtype=np.uint32)
    if at:
        (identification,) = struct.unpack_from("!H", template, 4)
        identifications = numbers + np.uint32(identification) & np.uint32(0xFFFF)
        rows[:, 4:6].view(">u2")[:, 0] = identifications
        template[4:6] = b"\0\0"
        put_checksums(rows, 10, ones_sum(bytes(template[:at])) + identifications.astype(np.uint64))
    if packet.protocol == TCP:
        (sequence,) = struct.unpack_from("!I", template, at + 4)
        rows[:, at + 4 : at + 8].view(">u4")[:, 0] = numbers * np.uint32(segment) + np.uint32(sequence)  # modulo 2^32
        if first == 0:
            rows[1:, at + 13] &= ~CWR & 0xFF
        if first + count == packet.count:  # FIN and PSH belong to the last
            rows[-1, at + 13] = packet.octets[at + 13] & (0xFF if packet.count == 1 else ~CWR & 0xFF)
    if packet.checksums:
        sums = row_sums(rows[:, at:]) + np.uint64(packet.pseudo + headers - at + segment)
        put_checksums(rows, at + CHECKSUM_OFFSETS[packet.protocol], sums)
