"""Puts fragments together again: transport mode protects whole datagrams only (RFC 2406, 3.3.1 and 3.3.2)."""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from collections.abc import Callable

from ..wire.ip import MAX_OCTETS, checksum

MAX_OCTETS_WAITING = 4 << 20  # of all that is incomplete
_MAX_PIECES = 1024  # of one datagram: even pieces of 64 octets make the largest
_SECONDS = 15.0  # RFC 791, 3.2

_MORE_FRAGMENTS = 0x2000
_DONT_FRAGMENT = 0x4000
_OFFSET = 0x1FFF

_Key = tuple[bytes, int, int]  # both addresses, protocol, identification


class _Datagram:
    """What there is of a datagram so far."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.header = b""  # of the first fragment
        self.pieces: dict[int, bytes] = {}  # by offset in octets
        self.octets = 0
        self.total: int | None = None  # octets, known from the last fragment


class Reassembler:
    """Takes fragments in any order. What comes twice, overlaps or takes too long is given up. `clock` gives seconds."""

    def __init__(self, lost: Callable[[str, int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._lost = lost
        self._clock = clock
        self._waiting: OrderedDict[_Key, _Datagram] = OrderedDict()  # oldest first
        self._octets = 0

    @property
    def octets(self) -> int:
        """What all incomplete datagrams hold."""
        return self._octets

    def add(self, packet: bytes) -> bytes | None:
        """The whole packet, if `packet`, a well-formed fragment, was the last that it lacked.

        Fragments that are given up are told to `lost`, with the reason and their number.
        """
        now = self._clock()
        self._expire(now)
        header_octets = (packet[0] & 0x0F) << 2
        identification, field = struct.unpack_from("!HH", packet, 4)
        key = (packet[12:20], packet[9], identification)
        offset, more = (field & _OFFSET) << 3, bool(field & _MORE_FRAGMENTS)
        piece = packet[header_octets:]
        datagram = self._waiting.get(key)
        if datagram is None:
            datagram = self._waiting[key] = _Datagram(now + _SECONDS)
        fault = _fault(datagram, offset, piece, more)
        if fault:
            self._give_up(key, fault, 1)
            return None
        datagram.pieces[offset] = piece
        datagram.octets += len(piece)
        self._octets += len(piece)
        if not offset:
            datagram.header = packet[:header_octets]
        if not more:
            datagram.total = offset + len(piece)
        if datagram.total == datagram.octets and datagram.header:
            self._forget(key)
            return self._whole(datagram)
        while self._octets > MAX_OCTETS_WAITING:
            self._give_up(next(iter(self._waiting)), "too many fragments wait for others")
        return None

    def _whole(self, datagram: _Datagram) -> bytes | None:
        payload = b"".join(piece for _, piece in sorted(datagram.pieces.items()))
        end = 0
        for offset in sorted(datagram.pieces):
            if offset != end:
                self._lost("fragments overlap", len(datagram.pieces))
                return None
            end += len(datagram.pieces[offset])
        first = datagram.header
        if len(first) + len(payload) > MAX_OCTETS:
            self._lost("fragments make too long a packet", len(datagram.pieces))
            return None
        (field,) = struct.unpack_from("!H", first, 6)
        octets = len(first) + len(payload)
        header = struct.pack("!2sH2sH2s2x", first[:2], octets, first[4:6], field & _DONT_FRAGMENT, first[8:10])
        header += first[12:]
        return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload

    def _expire(self, now: float) -> None:
        while self._waiting:
            key, datagram = next(iter(self._waiting.items()))
            if datagram.until > now:
                return
            self._give_up(key, "a fragment did not come in time")

    def _give_up(self, key: _Key, reason: str, more: int = 0) -> None:
        datagram = self._waiting[key]
        self._forget(key)
        self._lost(reason, len(datagram.pieces) + more)

    def _forget(self, key: _Key) -> None:
        self._octets -= self._waiting.pop(key).octets


def _fault(datagram: _Datagram, offset: int, piece: bytes, more: bool) -> str:
    """What is wrong with another piece; "" if nothing is, as far as can be seen yet."""
    if not piece or (more and len(piece) % 8) or offset + len(piece) > MAX_OCTETS:
        return "a malformed fragment"
    if offset in datagram.pieces or len(datagram.pieces) >= _MAX_PIECES:
        return "fragments overlap"
    end = offset + len(piece)
    if datagram.total is not None and (end > datagram.total or not more):
        return "fragments overlap"
    if not more and any(other + len(octets) > end for other, octets in datagram.pieces.items()):
        return "fragments overlap"
    return ""
