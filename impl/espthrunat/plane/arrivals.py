"""Where datagrams arrive: memory that is made once, and what lies in it after the socket was read."""

from __future__ import annotations

import mmap

import msgspec

from .sadb import Address

SLOTS = 48  # each has room for the largest datagram, or for the largest train of small ones
SLOT_OCTETS = 65536
STRIDE = SLOT_OCTETS + 576  # a power of two would put all slots into the same few lines of the processor's caches


class Slots:
    """The memory of all slots. Pages that are never used cost nothing."""

    def __init__(self) -> None:
        self.octets = mmap.mmap(-1, SLOTS * STRIDE)
        self._whole = memoryview(self.octets)
        self.views = [self._whole[slot * STRIDE : slot * STRIDE + SLOT_OCTETS] for slot in range(SLOTS)]


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """Datagrams from one remote that are equally long but for the last, valid until the socket is read again.

    Either a train that the kernel joined (UDP_GRO) lies in slot `first`, or one datagram in each of several slots.
    """

    buffer: Slots
    remote: Address
    first: int
    slots: int
    octets: int  # of all datagrams together
    segment: int  # of each datagram but the last of a train

    @property
    def count(self) -> int:
        """How many datagrams there are; one without any octets is one."""
        if self.slots > 1:
            return self.slots
        return max(1, -(-self.octets // self.segment)) if self.segment else 1

    def datagrams(self, begin: int = 0, end: int | None = None) -> list[bytes]:
        """Copies of the datagrams from number `begin` to before `end`."""
        end = self.count if end is None else end
        views, segment = self.buffer.views, self.segment
        if self.slots > 1:
            return [bytes(views[self.first + number][:segment]) for number in range(begin, end)]
        whole = views[self.first][: self.octets]
        return [bytes(whole[number * segment : (number + 1) * segment]) for number in range(begin, end)]
