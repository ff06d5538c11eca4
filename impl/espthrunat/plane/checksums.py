"""Internet checksums of many packets at once (RFC 1071)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..esp.frames import Rows

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


def put_checksums(rows: Rows, at: int, sums: Sums, more: int = 0) -> None:
    """Write the checksums of rows that, the checksum's own words being zero, sum up to `sums` and `more` at octet `at`.

    0 is written as 0xFFFF, which is the same number, and in UDP means that there is a checksum (RFC 768).
    """
    rows[:, at : at + 2].view("<u2")[:, 0] = 0xFFFF - (sums + _swapped(more)) % 0xFFFF


def are_wrong(sums: Sums, more: int) -> npt.NDArray[np.bool_]:
    """Which rows have a wrong checksum: with it and `more` their `sums` should be zero."""
    wrong: npt.NDArray[np.bool_] = (sums + _swapped(more)) % 0xFFFF != 0
    return wrong


def _swapped(total: int) -> int:
    """A sum of words in network order as it is of swapped ones."""
    return total * 256 % 0xFFFF
