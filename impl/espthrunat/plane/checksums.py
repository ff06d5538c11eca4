"""Internet checksums of many packets at once (RFC 1071)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..esp.frames import Rows

Sums = npt.NDArray[np.uint64]


def row_sums(rows: Rows) -> Sums:
    """The sum of each row's 16-bit words, modulo 0xFFFF; an odd octet at the end counts as if a zero followed.

    It is not reduced yet: more may be added. 0x10000 is 1 modulo 0xFFFF, so sums may be of wider words, and of words
    whose octets are swapped: that swaps the sum's octets too, which is to multiply by 256.
    """
    octets = rows.shape[1]
    whole = octets & ~3
    sums: Sums = rows[:, :whole].view("<u4").sum(axis=1, dtype=np.uint64)
    if octets & 2:
        sums += rows[:, whole : whole + 2].view("<u2")[:, 0]
    if octets & 1:
        sums += rows[:, -1]
    return sums * 256


def put_checksums(rows: Rows, at: int, sums: Sums | int) -> None:
    """Write the checksums of rows whose words, the checksum's own being zero, sum up to `sums`, at octet `at`.

    0 is written as 0xFFFF, which is the same number, and in UDP means that there is a checksum (RFC 768).
    """
    rows[:, at : at + 2].view(">u2")[:, 0] = 0xFFFF - sums % 0xFFFF
