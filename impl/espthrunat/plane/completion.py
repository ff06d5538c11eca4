"""Finishes checksums that the kernel left to the device, for a whole read of packets at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from .checksums import put_checksums, row_sums


class Unfinished(NamedTuple):
    """A packet whose checksum counts from octet `start` and lies `offset` behind it, unfinished."""

    position: int  # in the list of all packets
    octets: bytes
    start: int
    offset: int


def complete(unfinished: Sequence[Unfinished]) -> dict[int, bytes]:
    """The finished packets by their positions. Neighbours of one length are the rows of one sum."""
    finished: dict[int, bytes] = {}
    for (octets, start, offset), group in groupby(unfinished, _shape):
        alike = list(group)
        if not 0 <= start + offset <= octets - 2:
            finished.update((packet.position, packet.octets) for packet in alike)
            continue
        joined = bytearray().join(packet.octets for packet in alike)
        rows = np.frombuffer(joined, np.uint8).reshape(len(alike), octets)
        put_checksums(rows, start + offset, row_sums(rows[:, start:]))
        for number, packet in enumerate(alike):
            finished[packet.position] = bytes(joined[number * octets : (number + 1) * octets])
    return finished


def _shape(packet: Unfinished) -> tuple[int, int, int]:
    return len(packet.octets), packet.start, packet.offset
