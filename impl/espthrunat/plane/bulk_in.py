"""The way in for many packets at once: trains of ESP datagrams are opened together and joined for the kernel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..esp.batches import open_rows
from ..esp.frames import BIG_ENDIAN, Frames, Rows, are_equal
from ..esp.sa import Drop
from ..messages import Encapsulation, Mode
from ..wire.ip import MIN_OCTETS, TCP, UDP, WITHOUT_OPTIONS, parse_ipv4
from ..wire.udp import ESP_MARKER
from . import transport
from .arrivals import SLOT_OCTETS, SLOTS, STRIDE, Arrival
from .coalesce import Train, leading_train
from .sadb import Address, Inbound, SaDatabase
from .super_packet import CHECKSUM_OFFSETS
from .tun import Tun
from .vnet import GSO_TCPV4, GSO_UDP_L4, super_header

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_FEWEST = 4  # packets of one SA that are worth the fixed cost of a batch
_KEPT = 64  # frames
_GSO = {TCP: GSO_TCPV4, UDP: GSO_UDP_L4}
_HEADS = 16  # octets: marker, SPI, sequence number
_MARKER = len(ESP_MARKER)
_MOST_MISSES = 4


class OneByOne(Protocol):
    """What deals with packets that no batch may have, and counts what is lost."""

    def datagrams(self, received: Sequence[tuple[bytes, Address]], local: Address) -> None:
        """Deal with datagrams of any kind."""
        ...

    def deliver(self, inbound: Inbound, opened: Sequence[tuple[int, bytes] | Drop]) -> None:
        """Hand what came out of ESP packets, with its next headers, to the kernel as far as it is allowed."""
        ...

    def refuse(self, inbound: Inbound, drop: Drop, number: int = 1) -> None:
        """Count ESP packets that gave no inner packet."""
        ...

    def cannot_join(self) -> None:
        """Note that the kernel takes no super-packets of some kind."""
        ...

    def account(self, inbound: Inbound) -> None:
        """Tell the daemon what it must know of an SA that was used."""
        ...


class BulkOpener:
    """Takes arrivals of many datagrams. What cannot be joined goes one by one, in its place in the order."""

    def __init__(self, sadb: SaDatabase, tun: Tun, one_by_one: OneByOne) -> None:
        self._sadb = sadb
        self._tun = tun
        self._one_by_one = one_by_one
        self._rows: dict[tuple[int, int], Rows] = {}
        self._frames: dict[tuple[int, int, int, int], Frames] = {}
        self._joins = {TCP, UDP}  # what the kernel takes in super-packets, as far as is known

    def arrival(self, arrival: Arrival, local: Address) -> None:
        """Deal with the datagrams of an arrival, in order."""
        segment = arrival.segment
        full = arrival.slots if arrival.slots > 1 else arrival.octets // segment
        if segment < _HEADS + 4:
            self._singly(arrival, 0, arrival.count, local)
            return
        begin = arrival.first if arrival.slots > 1 else 0
        heads = self._rows_of(arrival)[begin : begin + full, :_HEADS].view(BIG_ENDIAN)
        borders = [0, full]
        if not are_equal(heads[:, :3], heads[0, :3].tobytes()):
            # Where the marker is broken or the SPI changes, another run begins: the kernel joins all of one 5-tuple.
            edges = np.flatnonzero((heads[1:, :3] != heads[:-1, :3]).any(axis=1)) + 1
            borders = [0, *edges.tolist(), full]
        if len(borders) * _FEWEST > full + 2 * _FEWEST:  # too short for batches
            self._singly(arrival, 0, arrival.count, local)
            return
        for first, last in itertools.pairwise(borders):
            tail = arrival.count if last == full else last  # a shorter last datagram goes with the last run
            zero, also_zero, spi, _ = heads[first].tolist()
            inbound = None if zero or also_zero else self._sadb.find_inbound(spi, arrival.remote, local)
            if inbound is None or last - first < _FEWEST or self._may_end(inbound, arrival):
                self._singly(arrival, first, tail, local)
            elif not self._run(arrival, inbound, first, last):
                self._singly(arrival, last, tail, local)

    def _singly(self, arrival: Arrival, begin: int, end: int, local: Address) -> None:
        received = [(datagram, arrival.remote) for datagram in arrival.datagrams(begin, end)]
        if received:
            self._one_by_one.datagrams(received, local)

    @staticmethod
    def _may_end(inbound: Inbound, arrival: Arrival) -> bool:
        """Whether the SA's octets might run out amid these packets."""
        return bool(inbound.limits.hard) and inbound.sa.octets + arrival.octets >= inbound.limits.hard

    def _rows_of(self, arrival: Arrival) -> Rows:
        """All rows that this kind of arrival could have."""
        slot = -1 if arrival.slots > 1 else arrival.first
        key = (slot, arrival.segment)
        rows = self._rows.get(key)
        if rows is None:
            if len(self._rows) >= _KEPT:
                self._rows.clear()
            octets = np.frombuffer(arrival.buffer.octets, np.uint8)
            if slot < 0:
                rows = octets.reshape(SLOTS, STRIDE)[:, : arrival.segment]
            else:
                begin, most = slot * STRIDE, SLOT_OCTETS // arrival.segment
                rows = octets[begin : begin + most * arrival.segment].reshape(most, arrival.segment)
            self._rows[key] = rows
        return rows

    def _frames_of(self, arrival: Arrival, inbound: Inbound) -> Frames:
        suite = inbound.sa.suite
        key = (-1 if arrival.slots > 1 else arrival.first, arrival.segment, suite.iv_octets, suite.icv_octets)
        frames = self._frames.get(key)
        if frames is None:
            if len(self._frames) >= _KEPT:
                self._frames.clear()
            frames = self._frames[key] = Frames(self._rows_of(arrival), suite)
        return frames

    def _run(self, arrival: Arrival, inbound: Inbound, first: int, last: int) -> bool:
        """Open datagrams of one SA, and a shorter one behind them if it is the SA's too: whether that was done."""
        offset = arrival.first if arrival.slots > 1 else 0
        opened = open_rows(inbound.sa, self._frames_of(arrival, inbound), offset + first, offset + last)
        if opened is None:
            received = [datagram[_MARKER:] for datagram in arrival.datagrams(first, last)]
            self._one_by_one.deliver(inbound, inbound.sa.open_any(received))
            self._one_by_one.account(inbound)
            return False
        for drop, number in opened.drops:
            self._one_by_one.refuse(inbound, drop, number)
        following = self._open_last(arrival, inbound, last)
        joined = False
        for number, (rows, next_header) in enumerate(opened.groups, 1):
            is_last = number == len(opened.groups)
            joined = self._deliver(inbound, rows, next_header, following if is_last else None)
        if following is not None and not joined:
            self._one_by_one.deliver(inbound, [following])
        self._one_by_one.account(inbound)
        return following is not None

    def _open_last(self, arrival: Arrival, inbound: Inbound, number: int) -> tuple[int, bytes] | Drop | None:
        """What is in datagram `number`, if there is one behind the full ones and it is this SA's."""
        if arrival.slots > 1 or (number + 1) * arrival.segment <= arrival.octets:
            return None
        for datagram in arrival.datagrams(number):
            if datagram.startswith(ESP_MARKER + inbound.sa.spi.to_bytes(4, "big")):
                (inner,) = inbound.sa.open_any([datagram[_MARKER:]])
                return inner
        return None

    def _deliver(
        self, inbound: Inbound, rows: Rows, next_header: int, following: tuple[int, bytes] | Drop | None
    ) -> bool:
        """Write rows of inner packets to the kernel; whether `following` went with the last of them."""
        joined = False
        misses = 0
        while len(rows):
            train, packet = self._train(inbound, rows, next_header)
            if train is None:
                # A train may follow, but a mixture must not cost a look for each packet.
                misses += 1
                alone = 1 if misses < _MOST_MISSES else len(rows)
                self._one_by_one.deliver(inbound, [(next_header, row.tobytes()) for row in rows[:alone]])
                rows = rows[alone:]
                continue
            taken, rows = rows[: train.count], rows[train.count :]
            if not len(rows) and isinstance(following, tuple) and following[0] == next_header:
                joined = train.append(following[1])
            header = train.kernel_header(packet)
            offset = CHECKSUM_OFFSETS[train.protocol]
            vnet = super_header(_GSO[train.protocol], len(header), train.segment, MIN_OCTETS, offset)
            parts: list[Buffer] = [vnet, header, train.payload.data, train.tail]
            if not self._tun.write_super(parts, train.count):
                self._joins.discard(train.protocol)
                self._one_by_one.cannot_join()
                joined = False
                self._one_by_one.deliver(inbound, [(next_header, row.tobytes()) for row in taken])
        return joined

    def _train(self, inbound: Inbound, rows: Rows, next_header: int) -> tuple[Train | None, bytes]:
        """The packets that can be joined with the first, if any, and the first as the kernel gets it."""
        first = rows[0].tobytes()
        if inbound.mode is Mode.TUNNEL:
            header = parse_ipv4(first)
            if (
                header is None
                or header.protocol not in self._joins
                or header.fragment
                or first[0] != WITHOUT_OPTIONS
                or not inbound.selectors.matches_inbound(header)
            ):
                return None, first
            train = leading_train(rows, MIN_OCTETS, header.protocol)
            if train is not None and inbound.mapping is not None:
                first = inbound.mapping.arrived(first)
            return train, first
        # Bare ESP met no NAT, so the checksums of what it carries count; it comes in no trains anyway.
        if next_header not in self._joins or inbound.encapsulation is not Encapsulation.UDP:
            return None, first
        train = leading_train(rows, 0, next_header)
        if train is None:
            return None, first
        try:
            return train, transport.arrived(inbound, next_header, first, self._sadb.flows)[0]
        except transport.Refused:
            return None, first  # one by one they are counted
