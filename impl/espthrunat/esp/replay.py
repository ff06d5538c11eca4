"""The anti-replay window of an inbound SA (RFC 2406, 3.4.3)."""

from __future__ import annotations

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
