"""The two halves of an SA pair: one seals inner packets into ESP, the other opens ESP packets (RFC 2406, 3.3, 3.4)."""

from __future__ import annotations

import enum
import functools
import struct
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..wire.ip import IPV4, NO_NEXT_HEADER
from .replay import ReplayWindow
from .suites import HEADER_OCTETS, TRAILER_OCTETS, EspSuite

if TYPE_CHECKING:
    from .batches import BatchTransform
    from .transforms import Transform

LAST_SEQUENCE = 0xFFFFFFFF  # an SA ends with it (RFC 2406, 3.3.3)
SOFT_SEQUENCE = 0xF0000000  # time to rekey: minutes are left at any rate that this implementation reaches
DEFAULT_WINDOW = 1024  # packets: several batches may overtake each other on the way

_HEADER = struct.Struct("!II")
PADDING = bytes(range(1, 256))  # 1, 2, 3 ...: the receiver can check it (RFC 2406, 2.4)


class Drop(enum.Enum):
    """Why an inbound ESP packet gave no inner packet; the values are the names of counters."""

    MALFORMED = "malformed"
    """Too short, or its ciphertext is no whole number of blocks."""
    REPLAY = "replay"
    """Its sequence number was seen, or is older than the window."""
    ICV = "icv"
    """It is not authentic."""
    PADDING = "padding"
    """Authentic, but its trailer is not what RFC 2406, 2.4 prescribes: the peer is broken."""
    NEXT_HEADER = "next_header"
    """It carries something else than was agreed."""
    DUMMY = "dummy"
    """A packet that the peer sent only to confuse watchers (next header 59); no fault."""


class SequenceExhaustedError(Exception):
    """The SA has too few sequence numbers left; it must not send any more (RFC 2406, 3.3.3)."""


@functools.lru_cache(maxsize=16)
def _trailers(alignment: int, next_header: int) -> tuple[bytes, ...]:
    """For each remainder of the packet's length by `alignment`: padding, pad length and next header."""
    lengths = [-(remainder + TRAILER_OCTETS) % alignment for remainder in range(alignment)]
    return tuple(PADDING[:length] + bytes((length, next_header)) for length in lengths)


def trailer(alignment: int, inner_octets: int, next_header: int) -> bytes:
    """What goes behind `inner_octets` octets before they are encrypted: padding, pad length and next header."""
    return _trailers(alignment, next_header)[inner_octets % alignment]


def _make_transform(suite: EspSuite, keymat: bytes) -> Transform:
    # Not imported above: cryptography takes longer to load than all else, and a plane can be ready before it is needed.
    from .transforms import make_transform

    return make_transform(suite, keymat)


class OutboundSa:
    """Seals inner packets. Sequence numbers begin with 1 and never repeat.

    Raises ValueError if `keymat` has the wrong length for `suite`.
    """

    def __init__(self, spi: int, suite: EspSuite, keymat: bytes, *, sequence: int = 0) -> None:
        self.spi = spi
        self.suite = suite
        self.packets = 0
        self.octets = 0  # of inner packets
        self.dropped: Counter[str] = Counter()  # by the one who feeds this SA
        self.batch: BatchTransform | None = None  # made when the first batch comes
        self._sequence = sequence  # the last one used
        self._transform = _make_transform(suite, keymat)
        self._trailers = _trailers(suite.cipher.alignment, IPV4)

    def __repr__(self) -> str:
        return f"OutboundSa(spi=0x{self.spi:08x}, suite={self.suite.name}, sequence={self._sequence})"

    @property
    def sequence(self) -> int:
        """The last sequence number that was used; 0 before the first packet."""
        return self._sequence

    @property
    def needs_replacement(self) -> bool:
        """Whether so many sequence numbers are used that a new SA should be negotiated."""
        return self._sequence >= SOFT_SEQUENCE

    @property
    def transform(self) -> Transform:
        """What seals one packet."""
        return self._transform

    def has_room_for(self, count: int) -> bool:
        """Whether `count` sequence numbers are left."""
        return self._sequence + count <= LAST_SEQUENCE

    def claim(self, count: int) -> int:
        """The first of `count` sequence numbers that belong to the caller from now on, used or not.

        Raises SequenceExhaustedError, with none taken, if fewer are left.
        """
        first = self._sequence + 1
        if not self.has_room_for(count):
            raise SequenceExhaustedError(f"SPI 0x{self.spi:08x}: the sequence numbers are used up")
        self._sequence += count
        return first

    def account(self, packets: int, octets: int) -> None:
        """Count inner packets that were sealed."""
        self.packets += packets
        self.octets += octets

    def seal(self, packets: Sequence[bytes], next_header: int = IPV4) -> list[bytes]:
        """One ESP packet, from SPI to ICV, for each of `packets`, in order.

        Raises SequenceExhaustedError, with nothing sealed, if fewer sequence numbers than packets are left.
        """
        # Numbers are taken before anything is sealed: whatever happens below, none is used twice.
        first = self.claim(len(packets))
        alignment = self.suite.cipher.alignment
        trailers = _trailers(alignment, next_header)
        spi, seed, seal = self.spi, self._transform.seed, self._transform.seal
        sealed = [
            seal(_HEADER.pack(spi, sequence), seed(sequence), packet + trailers[len(packet) % alignment])
            for sequence, packet in enumerate(packets, first)
        ]
        self.account(len(packets), sum(map(len, packets)))
        return sealed

    def seal_one(self, packet: bytes) -> bytes | None:
        """As `seal` for one packet of IPv4, which the caller accounts for; None once sequence numbers get scarce."""
        sequence = self._sequence + 1
        if sequence >= SOFT_SEQUENCE:
            return None
        self._sequence = sequence
        transform, trailers = self._transform, self._trailers
        plaintext = packet + trailers[len(packet) % len(trailers)]
        return transform.seal(_HEADER.pack(self.spi, sequence), transform.seed(sequence), plaintext)


class InboundSa:
    """Opens ESP packets that carry `next_header`, or anything if that is None. One bad packet costs that packet only.

    `window` is the anti-replay window in packets. Raises ValueError if it is too small or `keymat` has the wrong
    length for `suite`.
    """

    def __init__(
        self, spi: int, suite: EspSuite, keymat: bytes, *, window: int = DEFAULT_WINDOW, next_header: int | None = IPV4
    ) -> None:
        self.spi = spi
        self.suite = suite
        self.packets = 0
        self.octets = 0  # of inner packets
        self.dropped: Counter[str] = Counter()
        self.next_header = next_header
        self.batch: BatchTransform | None = None  # made when the first batch comes
        self._replay = ReplayWindow(window)
        self._carried = IPV4  # the next header of the last packet, where it is not fixed
        self._transform = _make_transform(suite, keymat)
        self._overhead = HEADER_OCTETS + suite.iv_octets + suite.icv_octets

    def __repr__(self) -> str:
        return f"InboundSa(spi=0x{self.spi:08x}, suite={self.suite.name}, sequence={self._replay.top})"

    @property
    def sequence(self) -> int:
        """The highest sequence number of an authentic packet; 0 before the first."""
        return self._replay.top

    @property
    def transform(self) -> Transform:
        """What opens one packet."""
        return self._transform

    def account(self, packets: int, octets: int) -> None:
        """Count inner packets that were opened."""
        self.packets += packets
        self.octets += octets

    def are_fresh(self, sequences: Sequence[int]) -> bool:
        """Whether these sequence numbers rise and each of them is fresh, so that none decides about another."""
        return self._replay.are_fresh(sequences)

    def mark(self, sequences: Sequence[int]) -> None:
        """Note that authentic packets had these sequence numbers, for which `are_fresh` was true."""
        self._replay.mark_all(sequences)

    def is_ahead(self, packet: bytes) -> bool:
        """Whether an ESP packet, authentic or not, claims a higher sequence number than all authentic ones before."""
        return len(packet) >= HEADER_OCTETS and _HEADER.unpack_from(packet)[1] > self._replay.top

    def open_any(self, packets: Sequence[bytes]) -> list[tuple[int, bytes] | Drop]:
        """Like `open`, with the next header of each packet, for an SA whose next header is not fixed."""
        opened: list[tuple[int, bytes] | Drop] = []
        for packet in packets:
            (inner,) = self.open((packet,))
            opened.append(inner if isinstance(inner, Drop) else (self._carried, inner))
        return opened

    def open(self, packets: Sequence[bytes]) -> list[bytes | Drop]:
        """For each ESP packet, from SPI to ICV: its inner packet, or why there is none."""
        return [self.open_one(packet) for packet in packets]

    def open_one(self, packet: bytes) -> bytes | Drop:
        """As `open` for one packet."""
        inner = self._open(packet)
        if isinstance(inner, Drop):
            self.dropped[inner.value] += 1
        else:
            self.packets += 1
            self.octets += len(inner)
        return inner

    def _open(self, packet: bytes) -> bytes | Drop:
        ciphertext_octets = len(packet) - self._overhead
        if ciphertext_octets < TRAILER_OCTETS or ciphertext_octets % self.suite.cipher.alignment:
            return Drop.MALFORMED
        spi, sequence = _HEADER.unpack_from(packet)
        if spi != self.spi:
            return Drop.MALFORMED
        if not self._replay.is_fresh(sequence):
            return Drop.REPLAY
        plaintext = self._transform.open(packet)
        if plaintext is None:
            return Drop.ICV
        self._replay.mark(sequence)
        pad_octets, next_header = plaintext[-2], plaintext[-1]
        end = len(plaintext) - TRAILER_OCTETS - pad_octets
        if end < 0 or plaintext[end:-TRAILER_OCTETS] != PADDING[:pad_octets]:
            return Drop.PADDING
        if next_header != self.next_header:
            if next_header == NO_NEXT_HEADER:
                return Drop.DUMMY
            if self.next_header is not None:
                return Drop.NEXT_HEADER
            self._carried = next_header
        return plaintext[:end]
