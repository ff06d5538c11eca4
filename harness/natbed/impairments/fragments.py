"""A datagram as the link carried it, before the kernel put it together for its NAT: in fragments (RFC 791, 3.2)."""

from __future__ import annotations

import struct

_DONT_FRAGMENT, _MORE_FRAGMENTS, _FRAGMENT = 0x4000, 0x2000, 0x3FFF  # Linux' own fragments have the first one too
_UNIT = 8  # octets in which offsets are counted


def in_fragments(packet: bytes, mtu: int) -> list[bytes]:
    """An IPv4 packet in pieces of at most `mtu` octets; one that fits is left as it is, and so is a fragment."""
    (flags,) = struct.unpack_from("!H", packet, 6)
    header = (packet[0] & 0x0F) * 4
    step = (mtu - header) // _UNIT * _UNIT
    if len(packet) <= mtu or flags & _FRAGMENT or step <= 0:
        return [packet]
    pieces = []
    for at in range(0, len(packet) - header, step):
        content = packet[header + at : header + at + step]
        more = _MORE_FRAGMENTS if header + at + step < len(packet) else 0
        pieces.append(_header(packet[:header], len(content), flags & _DONT_FRAGMENT | more | at // _UNIT) + content)
    return pieces


def _header(whole: bytes, octets: int, flags_and_offset: int) -> bytes:
    """The header of a fragment with so many octets behind it; the sum of all its 16-bit words is 0xFFFF."""
    changed = bytearray(whole)
    struct.pack_into("!H", changed, 2, len(whole) + octets)
    struct.pack_into("!H", changed, 6, flags_and_offset)
    struct.pack_into("!H", changed, 10, 0)
    struct.pack_into("!H", changed, 10, 0xFFFF - int.from_bytes(changed, "big") % 0xFFFF)
    return bytes(changed)
