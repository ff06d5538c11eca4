"""The headers of a whole train as one number: what counts up from one packet to the next is a sum of two numbers.

All headers, one behind the other, are read as one big integer. The first header as often as there are packets is
another; their difference, in which each field grows by its step from packet to packet, depends on nothing but the
shape of the train. So one addition makes all headers, and one comparison finds whether headers are a train.
"""

from __future__ import annotations

import functools
import struct

from ..wire.ip import TCP
from .super_packet import CHECKSUM_OFFSETS, PSH

_WORD, _NUMBER = struct.Struct("!H"), struct.Struct("!I")
_IDENTIFICATION, _CHECKSUM = 4, 10  # in the IP header
_SEQUENCE, _FLAGS = 4, 13  # in the TCP header


def following(first: bytes, count: int, ip_octets: int, protocol: int, segment: int) -> int | None:
    """The headers of `count` packets with `segment` octets of payload each, of which `first` is the first, as a number.

    The identification counts up, so the IP checksum counts down, and TCP's sequence number goes with the payload; all
    else stays. With `ip_octets` 0 there is no IP header. None where a field would overflow into the one before it.
    """
    if ip_octets:
        (identification,) = _WORD.unpack_from(first, _IDENTIFICATION)
        (checksum,) = _WORD.unpack_from(first, _CHECKSUM)
        if identification + count > 0x10000 or not count <= checksum < 0xFFFF:
            return None
    if protocol == TCP:
        (sequence,) = _NUMBER.unpack_from(first, ip_octets + _SEQUENCE)
        if sequence + count * segment > 1 << 32:
            return None
    return int.from_bytes(first * count, "big") + _steps(len(first), count, ip_octets, protocol, segment)


def are_following(headers: bytes, first: bytes, ip_octets: int, protocol: int, segment: int) -> bool:
    """Whether `headers` are those of a train that begins with `first`, whatever their transport checksums are.

    The last one of TCP may have PSH besides.
    """
    expected = following(first, count := len(headers) // len(first), ip_octets, protocol, segment)
    if expected is None:
        return False
    difference = int.from_bytes(headers, "big") ^ expected
    return not difference & _looked_at(len(first), count, ip_octets, protocol)


@functools.lru_cache(maxsize=256)
def _steps(octets: int, count: int, ip_octets: int, protocol: int, segment: int) -> int:
    """How much more the headers of `count` packets are than `count` times the first header."""
    step = 0  # from a header to the next

    def grow(by: int, at: int, width: int) -> None:
        nonlocal step
        step += by << 8 * (octets - at - width)

    if ip_octets:
        grow(1, _IDENTIFICATION, 2)
        grow(-1, _CHECKSUM, 2)
    if protocol == TCP:
        grow(segment, ip_octets + _SEQUENCE, 4)
    steps = 0
    for number in range(count):
        steps = (steps << 8 * octets) + number * step
    return steps


@functools.lru_cache(maxsize=256)
def _looked_at(octets: int, count: int, ip_octets: int, protocol: int) -> int:
    """Ones for all bits that a comparison looks at."""
    mask = bytearray(b"\xff" * octets)
    field = ip_octets + CHECKSUM_OFFSETS[protocol]
    mask[field : field + 2] = b"\0\0"
    masks = mask * count
    if protocol == TCP:
        masks[(count - 1) * octets + ip_octets + _FLAGS] &= ~PSH & 0xFF
    return int.from_bytes(masks, "big")
