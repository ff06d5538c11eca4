"""Seals and opens many packets of one SA and one length at once; what comes out is what `sa` makes of each alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..wire.ip import NO_NEXT_HEADER
from .batch_gcm import BatchGcm
from .batch_hmac import BatchCbc, BatchNull
from .frames import Frames, Rows, are_equal
from .sa import PADDING, Drop, InboundSa, OutboundSa, trailer
from .suites import TRAILER_OCTETS
from .transforms import CbcHmac, Gcm, NullHmac, Transform


class BatchTransform(Protocol):
    """A `Transform` for rows: the same keys, the same running state, the same rules for IVs."""

    def plaintext(self, frames: Frames) -> Rows:
        """Where to put plaintexts, padded, before `seal`."""
        ...

    def seal(self, frames: Frames, count: int) -> None:
        """Make ESP packets of the first `count` plaintexts; their headers are there already."""
        ...

    def open(self, frames: Frames, begin: int, end: int) -> tuple[Rows, Sequence[int]]:
        """Plaintexts of some rows, which may be written to, and the rows among them that are not authentic."""
        ...


def _batch_transform(transform: Transform) -> BatchTransform:
    match transform:
        case Gcm():
            return BatchGcm(transform)
        case CbcHmac():
            return BatchCbc(transform)
        case NullHmac():
            return BatchNull(transform)
    raise TypeError(f"{type(transform).__name__} knows no batches")


def _outbound(sa: OutboundSa | InboundSa) -> BatchTransform:
    if sa.batch is None:
        sa.batch = _batch_transform(sa.transform)
    return sa.batch


@functools.lru_cache(maxsize=256)
def _trailer(alignment: int, remainder: int, next_header: int) -> Rows:
    return np.frombuffer(trailer(alignment, remainder, next_header), np.uint8)


def plaintext_of(sa: OutboundSa, frames: Frames) -> Rows:
    """Where inner packets go before `seal_rows`: one a row, from its first octet."""
    return _outbound(sa).plaintext(frames)


def seal_rows(sa: OutboundSa, frames: Frames, count: int, inner_octets: int, next_header: int) -> None:
    """Seal the first `count` rows of `frames`, which then are ESP packets behind their markers.

    Raises SequenceExhaustedError, with nothing sealed, if fewer sequence numbers than rows are left.
    """
    first = sa.claim(count)
    transform = _outbound(sa)
    alignment = sa.suite.cipher.alignment
    transform.plaintext(frames)[:count, inner_octets:] = _trailer(alignment, inner_octets % alignment, next_header)
    number = sa.spi << 32 | first
    frames.header_numbers[:count] = np.arange(number, number + count, dtype=np.uint64)
    transform.seal(frames, count)
    sa.account(count, count * inner_octets)


@dataclass(slots=True)
class Opened:
    """What came out of a batch."""

    groups: list[tuple[Rows, int]] = field(default_factory=list)
    """In order: inner packets of one length as writable rows, and their next header."""
    drops: list[tuple[Drop, int]] = field(default_factory=list)
    """Why others gave no inner packet, and how many."""

    def drop(self, why: Drop, number: int) -> None:
        """Note that `number` packets are lost."""
        self.drops.append((why, number))


def open_rows(sa: InboundSa, frames: Frames, begin: int, end: int) -> Opened | None:
    """Open the rows from `begin` to before `end`, all of which carry the SPI of `sa`.

    None, with nothing done, where they must be taken one by one: a length that the suite does not know, or sequence
    numbers that do not rise or are not fresh, so that each decides about the next.
    """
    if frames.body_octets < TRAILER_OCTETS or frames.body_octets % sa.suite.cipher.alignment:
        return None
    sequences: list[int] = frames.sequences[begin:end].tolist()
    if not sa.are_fresh(sequences):
        return None
    opened = Opened()
    plain, forged = _outbound(sa).open(frames, begin, end)
    if forged:
        opened.drop(Drop.ICV, len(forged))
        wrong = set(forged)
        good = [row for row in range(end - begin) if row not in wrong]
        plain, sequences = plain[good], [sequences[row] for row in good]
    sa.mark(sequences)
    if len(plain):
        _unwrap(sa, plain, opened)
    for why, number in opened.drops:
        sa.dropped[why.value] += number
    return opened


def _unwrap(sa: InboundSa, plain: Rows, opened: Opened) -> None:
    """Take padding and trailers from authentic rows, of which there is at least one."""
    pad_octets, next_header = plain[0, -TRAILER_OCTETS:].tolist()
    usual = PADDING[:pad_octets] + bytes((pad_octets, next_header))
    if are_equal(plain[:, -len(usual) :], usual):  # mostly all are of one kind and right, seen at one glance
        _hand_over(sa, plain[:, : -len(usual)], next_header, opened)
        return
    trailers = plain[:, -TRAILER_OCTETS:]
    edges = np.flatnonzero((trailers[1:] != trailers[:-1]).any(axis=1)) + 1
    for first, last in itertools.pairwise([0, *edges.tolist(), len(plain)]):
        _unwrap_kind(sa, plain[first:last], opened)


def _unwrap_kind(sa: InboundSa, plain: Rows, opened: Opened) -> None:
    """Take padding and trailer, which are of one kind, from authentic rows, and see whether they are right."""
    pad_octets, next_header = plain[0, -TRAILER_OCTETS:].tolist()
    inner_octets = plain.shape[1] - TRAILER_OCTETS - pad_octets
    if inner_octets < 0:
        opened.drop(Drop.PADDING, len(plain))
        return
    padding = np.frombuffer(PADDING[:pad_octets], np.uint8)
    wrong = (plain[:, inner_octets:-TRAILER_OCTETS] != padding).any(axis=1)
    if wrong.any():
        opened.drop(Drop.PADDING, int(wrong.sum()))
        plain = plain[~wrong]
    if len(plain):
        _hand_over(sa, plain[:, :inner_octets], next_header, opened)


def _hand_over(sa: InboundSa, inner: Rows, next_header: int, opened: Opened) -> None:
    """Inner packets of one length come out if the SA carries what they are."""
    if sa.next_header is not None and next_header != sa.next_header and next_header != NO_NEXT_HEADER:
        opened.drop(Drop.NEXT_HEADER, len(inner))
    elif next_header == NO_NEXT_HEADER and sa.next_header != NO_NEXT_HEADER:
        opened.drop(Drop.DUMMY, len(inner))
    else:
        sa.account(len(inner), inner.size)
        opened.groups.append((inner, next_header))
