"""Memory in which many ESP packets of one length lie row by row, so that one step of numpy does all of them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .suites import HEADER_OCTETS, TRAILER_OCTETS, EspSuite

Rows = npt.NDArray[np.uint8]
"""Octets of equal packets: one row a packet."""
Items = npt.NDArray[np.void]
"""A few octets of each packet, as one item: numpy copies that faster than octets."""

FRONT_OCTETS = 8  # the marker of ESP in UDP lies in front of each packet; zeros, which nobody writes
BIG_ENDIAN = np.dtype(">u4")


class Frames:
    """Packets of one suite and one length in `array`: the marker, then from SPI to ICV.

    The lists of memoryviews cost a microsecond a packet to make, so they are made once and kept: one call of
    `map` over them then needs no bytecode for any packet.
    """

    def __init__(self, array: Rows, suite: EspSuite) -> None:
        self.array = array
        self.suite = suite
        self._body = FRONT_OCTETS + HEADER_OCTETS + suite.iv_octets  # where the ciphertext begins
        self._icv = array.shape[1] - suite.icv_octets
        self.body_octets = self._icv - self._body
        headers = array[:, FRONT_OCTETS : FRONT_OCTETS + HEADER_OCTETS]  # SPI, sequence number
        self.header_numbers = headers.view(">u8")[:, 0]  # both as one number
        self.sequences = headers.view(BIG_ENDIAN)[:, 1]
        self.ivs = array[:, FRONT_OCTETS + HEADER_OCTETS : self._body]
        self.bodies = array[:, self._body : self._icv]  # plaintext or ciphertext
        self.bodies_with_iv = array[:, FRONT_OCTETS + HEADER_OCTETS : self._icv]

    @cached_property
    def header_views(self) -> list[memoryview]:
        """SPI and sequence number of each packet."""
        return self._views(FRONT_OCTETS, FRONT_OCTETS + HEADER_OCTETS)

    @cached_property
    def body_views(self) -> list[memoryview]:
        """The ciphertext of each packet, or its plaintext in the same place."""
        return self._views(self._body, self._icv)

    @cached_property
    def sealed_views(self) -> list[memoryview]:
        """Ciphertext and ICV of each packet."""
        return self._views(self._body, self.array.shape[1])

    @cached_property
    def covered_views(self) -> list[memoryview]:
        """What the authenticator of each packet covers: from SPI to the end of the ciphertext."""
        return self._views(FRONT_OCTETS, self._icv)

    @cached_property
    def counters(self) -> npt.NDArray[np.uint32]:
        """The second half of each IV that is a number of 8 octets."""
        half: npt.NDArray[np.uint32] = self.ivs.view(BIG_ENDIAN)[:, 1]
        return half

    @cached_property
    def iv_numbers(self) -> npt.NDArray[np.uint64]:
        """Each IV of 8 octets as this machine reads a number."""
        numbers: npt.NDArray[np.uint64] = self.ivs.view("=u8")[:, 0]
        return numbers

    @cached_property
    def icvs(self) -> Items:
        """The ICV of each packet."""
        return _items(self.array[:, self._icv :])

    @cached_property
    def chain(self) -> Rows:
        """A block for the IV and the plaintext of each packet, without gaps: a cipher is fed all at once."""
        whole: Rows = self._chain[: -self.suite.iv_octets].reshape(self.array.shape[0], -1)
        return whole

    @cached_property
    def chain_blocks(self) -> Items:
        """The blocks for the IVs in `chain`."""
        return _items(self.chain[:, : self.suite.iv_octets])

    @cached_property
    def chain_memory(self) -> memoryview:
        """The memory of `chain`, and the block more that a cipher wants to have behind what it puts out."""
        return self._chain.data

    @cached_property
    def _chain(self) -> Rows:
        block = self.suite.iv_octets
        return np.empty(self.array.shape[0] * (block + self.body_octets) + block, np.uint8)

    def _views(self, begin: int, end: int) -> list[memoryview]:
        return [row.data for row in self.array[:, begin:end]]


def _items(rows: Rows) -> Items:
    items: Items = rows.view(f"V{rows.shape[1]}")[:, 0]
    return items


def are_equal(rows: npt.NDArray[Any], octets: bytes) -> bool:
    """Whether each row is `octets`: one comparison of plain memory, which no work of numpy's on short rows can beat."""
    return rows.tobytes() == octets * len(rows)


def inner_body_octets(suite: EspSuite, inner_octets: int) -> int:
    """Octets of the plaintext that carries `inner_octets`: padding and trailer included."""
    octets = inner_octets + TRAILER_OCTETS
    return octets + -octets % suite.cipher.alignment


def frame_octets(suite: EspSuite, inner_octets: int) -> int:
    """Octets of a row, which is the UDP payload, that carries `inner_octets`."""
    fixed = FRONT_OCTETS + HEADER_OCTETS + suite.iv_octets + suite.icv_octets
    return fixed + inner_body_octets(suite, inner_octets)


class FrameCache:
    """Frames of the lengths that were used last. They belong to no SA: thousands share them."""

    def __init__(self, most_octets: int, most_rows: int, kept: int = 16) -> None:
        self._most_octets = most_octets
        self._most_rows = most_rows
        self._kept = kept
        self._frames: dict[tuple[str, int], Frames] = {}

    def get(self, suite: EspSuite, inner_octets: int) -> Frames:
        """Frames with as many rows as fit in `most_octets`, at least one."""
        octets = frame_octets(suite, inner_octets)
        key = (suite.name, octets)
        frames = self._frames.pop(key, None)
        if frames is None:
            if len(self._frames) >= self._kept:
                del self._frames[next(iter(self._frames))]  # what was not used for longest comes first
            rows = max(1, min(self._most_rows, self._most_octets // octets))
            frames = Frames(np.zeros((rows, octets), np.uint8), suite)
        self._frames[key] = frames
        return frames
