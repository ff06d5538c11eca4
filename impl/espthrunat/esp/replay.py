"""The anti-replay window of an inbound SA (RFC 2406, 3.4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MIN_WINDOW = 64  # packets; RFC 2406 asks for 32 and prefers 64


class ReplayWindow:
    """Which of the last `size` sequence numbers were seen. Look first, authenticate the packet, then mark it."""

    def __init__(self, size: int) -> None:
        if size < MIN_WINDOW:
            raise ValueError(f"a replay window of {size} packets is too small: {MIN_WINDOW} is the least")
        self._size = size
        self._mask = (1 << size) - 1
        self._top = 0  # the highest authentic sequence number
        self._seen = 0  # bit n: top - n was seen

    @property
    def top(self) -> int:
        """The highest sequence number that was marked; 0 before the first."""
        return self._top

    def is_fresh(self, sequence: int) -> bool:
        """Whether `sequence` is neither seen nor older than the window. 0 is never sent, so never fresh."""
        age = self._top - sequence
        if age < 0:
            return True
        return sequence != 0 and age < self._size and not self._seen >> age & 1

    def mark(self, sequence: int) -> None:
        """Note that an authentic packet had `sequence`, which was fresh."""
        ahead = sequence - self._top
        if ahead <= 0:
            self._seen |= 1 << -ahead
            return
        self._top = sequence
        # A shift by a jump that empties the window anyway would build a number of as many bits as the jump.
        self._seen = (self._seen << ahead | 1) & self._mask if ahead < self._size else 1

    def are_fresh(self, sequences: Sequence[int]) -> bool:
        """Whether `sequences` rise, and `is_fresh` holds for each."""
        if not sequences:
            return True
        first, last = sequences[0], sequences[-1]
        # A run without gaps, the usual thing, needs no look at its members.
        rises = last - first == len(sequences) - 1 and sequences == list(range(first, last + 1))
        if not rises and not all(one < other for one, other in pairwise(sequences)):
            return False
        return first > self._top or all(map(self.is_fresh, sequences))

    def mark_all(self, sequences: Sequence[int]) -> None:
        """As `mark` for each of `sequences`, which rise."""
        count = len(sequences)
        if count and sequences[0] > self._top and sequences[-1] - sequences[0] == count - 1:
            ahead = sequences[-1] - self._top  # a run without gaps, all of it new: bits of its length at the end
            self._top = sequences[-1]
            before = self._seen << ahead if ahead < self._size else 0
            self._seen = (before | (1 << count) - 1) & self._mask
            return
        for sequence in sequences:
            self.mark(sequence)
