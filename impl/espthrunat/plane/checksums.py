"""Internet checksums of many packets at once (RFC 1071)."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from ..esp.frames import Rows, are_equal

Sums = npt.NDArray[np.uint32]
"""Sums of 16-bit words as this machine reads them, modulo 0xFFFF, not reduced yet.

That the octets of all words are swapped only swaps the octets of the sum (RFC 1071, 2 B).
"""


def row_sums(rows: Rows) -> Sums:
    """The sum of each row, of 64 kB at most; an odd octet at the end counts as if a zero followed."""
    octets = rows.shape[1]
    whole = octets & ~1
    sums: Sums = np.add.reduce(rows[:, :whole].view("<u2"), axis=1, dtype=np.uint32)
    if octets & 1:
        sums += rows[:, -1]
    return sums


def put_checksums(rows: Rows, at: int, sums: Sums) -> None:
    """Write checksums at octet `at` of rows that, with whatever was there before, sum up to `sums`.

    What was there is zero, or the sum of a pseudo header that belongs to it. 0 is written as 0xFFFF, which is the
    same number, and in UDP means that there is a checksum (RFC 768).
    """
    rows[:, at : at + 2].view("<u2")[:, 0] = ~(sums % 0xFFFF)  # of which the lower half counts


def are_wrong(sums: Sums, more: int) -> npt.NDArray[np.bool_]:
    """Which rows have a wrong checksum: with it and `more` their `sums` should be zero."""
    wrong: npt.NDArray[np.bool_] = sums % 0xFFFF != _missing(more)
    return wrong


def are_right(sums: Sums, more: int) -> bool:
    """Whether `are_wrong` is true for no row: one comparison of plain memory."""
    return are_equal(sums % 0xFFFF, _missing(more).to_bytes(sums.itemsize, sys.byteorder))


def _missing(more: int) -> int:
    """What swapped words must sum up to where words in network order that sum up to `more` would make it zero."""
    return -more * 256 % 0xFFFF
