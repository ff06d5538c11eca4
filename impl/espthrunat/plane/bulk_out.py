"""The way out for many packets at once: super-packets and runs of equal packets become trains of ESP datagrams."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from ..esp.batches import plaintext_of, seal_rows
from ..esp.frames import FRONT_OCTETS, FrameCache, Frames
from ..esp.sa import OutboundSa
from ..wire.udp import ESP_MARKER
from .segments import fill_rows
from .super_packet import SuperPacket
from .udp_socket import MAX_TRAIN, MAX_TRAIN_OCTETS

Train = tuple[list[bytes | memoryview], int, int]
"""Octets in parts, the octets of each datagram but the last, and how many datagrams there are; markers included."""

_FEWEST = 6  # packets that are worth the fixed cost of a batch


class BulkSealer:
    """Seals for any number of SAs, one after the other, in the same memory."""

    def __init__(self) -> None:
        self._cache = FrameCache(MAX_TRAIN_OCTETS, MAX_TRAIN)

    def seal(self, sa: OutboundSa, packets: list[bytes | SuperPacket], next_header: int) -> Iterator[Train]:
        """Trains of the ESP packets of `packets`, in order. Each must be sent before the next is asked for.

        Raises SequenceExhaustedError if sequence numbers run out; see to it before that they do not.
        """
        for length, group in groupby(packets, _length):
            alike = list(group)
            if length == _SUPER:
                for packet in alike:
                    if isinstance(packet, SuperPacket):
                        yield from self._super(sa, packet, next_header)
            else:
                yield from self._equal(sa, [p for p in alike if isinstance(p, bytes)], length, next_header)

    def _equal(self, sa: OutboundSa, packets: list[bytes], length: int, next_header: int) -> Iterator[Train]:
        if len(packets) < _FEWEST:
            parts: list[bytes | memoryview] = []
            for sealed in sa.seal(packets, next_header):
                parts += (ESP_MARKER, sealed)
            octets = FRONT_OCTETS + len(sealed)
            for begin in range(0, len(packets), most := max(1, MAX_TRAIN_OCTETS // octets)):
                some = parts[2 * begin : 2 * (begin + most)]
                yield some, octets, len(some) // 2
            return
        frames = self._cache.get(sa.suite, length)
        most = len(frames.array)
        plaintext = plaintext_of(sa, frames)
        for begin in range(0, len(packets), most):
            part = packets[begin : begin + most]
            plaintext[: len(part), :length] = np.frombuffer(b"".join(part), np.uint8).reshape(len(part), length)
            yield _sealed(sa, frames, len(part), length, next_header)

    def _super(self, sa: OutboundSa, packet: SuperPacket, next_header: int) -> Iterator[Train]:
        """All segments but a last, shorter one go in rows; that one follows in the same train where there is room."""
        length = packet.header_octets + packet.segment
        full, has_tail = divmod(packet.payload_octets, packet.segment)
        if not full:
            tail = _tail(sa, packet, next_header)
            yield tail, sum(map(len, tail)), 1
            return
        frames = self._cache.get(sa.suite, length)
        most = len(frames.array)
        plaintext = plaintext_of(sa, frames)
        for first in range(0, full, most):
            count = min(most, full - first)
            fill_rows(packet, first, plaintext[:count])
            parts, octets, _ = train = _sealed(sa, frames, count, length, next_header)
            if not has_tail or first + count < full:
                yield train
                continue
            tail = _tail(sa, packet, next_header)
            rest = sum(map(len, tail))
            if count * octets + rest <= MAX_TRAIN_OCTETS and count < MAX_TRAIN:
                yield [*parts, *tail], octets, count + 1
            else:
                yield train
                yield tail, rest, 1


def _tail(sa: OutboundSa, packet: SuperPacket, next_header: int) -> list[bytes | memoryview]:
    """The datagram of the last segment, which is not full."""
    return [ESP_MARKER, *sa.seal([packet.cut(packet.count - 1)], next_header)]


_SUPER = -1


def _length(packet: bytes | SuperPacket) -> int:
    return len(packet) if isinstance(packet, bytes) else _SUPER


def _sealed(sa: OutboundSa, frames: Frames, count: int, length: int, next_header: int) -> Train:
    seal_rows(sa, frames, count, length, next_header)
    return [frames.array[:count].data], frames.array.shape[1], count
