"""IP fragments of a capture put together again, so that an audit sees what the ends saw (RFC 791, 3.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from natbed.capture import Frame

_LINK = 14  # octets of an Ethernet header
_MORE, _OFFSET = 0x2000, 0x1FFF
_IP = b"\x08\x00"


@dataclass
class _Packet:
    """The fragments of one packet that have come so far."""

    fragments: list[Frame] = field(default_factory=list)
    parts: dict[int, bytes] = field(default_factory=dict)  # by offset, in octets
    first: Frame | None = None
    length: int | None = None  # of the payload, known with the last part
    broken: bool = False

    def add(self, frame: Frame) -> None:
        """One more of its fragments."""
        _, payload, offset, more = _split(frame.data)
        self.fragments.append(frame)
        if offset in self.parts or (more and len(payload) % 8):
            self.broken = True
        self.parts[offset] = payload
        if offset == 0:
            self.first = frame
        if not more:
            self.length = offset + len(payload)

    def whole(self) -> Frame | None:
        """The packet with the number and time of its last fragment, if that is all of it without overlaps."""
        if self.broken or self.first is None or self.length is None:
            return None
        payload = b""
        for offset, part in sorted(self.parts.items()):
            if offset != len(payload):
                return None
            payload += part
        if len(payload) != self.length:
            return None
        header = bytearray(_split(self.first.data)[0])
        struct.pack_into("!H", header, 2, len(header) + len(payload))
        header[6:8] = header[10:12] = bytes(2)
        total = sum(struct.unpack(f"!{len(header) // 2}H", header))
        struct.pack_into("!H", header, 10, 0xFFFF - (total % 0xFFFF or 0xFFFF))
        last = self.fragments[-1]
        data = self.first.data[:_LINK] + bytes(header) + payload
        return Frame(last.number, last.nanoseconds, data, any(one.truncated for one in self.fragments))


def reassemble(frames: list[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Ethernet frames with whole packets in place of their last fragments, and the fragments that make none."""
    packets: dict[bytes, _Packet] = {}
    result: list[Frame] = []
    for frame in frames:
        if not is_fragment(frame.data):
            result.append(frame)
            continue
        ip = frame.data[_LINK:]
        of = ip[12:20] + ip[4:6] + ip[9:10]  # source, destination, identification, protocol
        packets.setdefault(of, _Packet()).add(frame)
        if whole := packets[of].whole():
            del packets[of]  # the identification may come again
            result.append(whole)
    return result, [frame for packet in packets.values() for frame in packet.fragments]


def is_fragment(data: bytes) -> bool:
    """Whether an Ethernet frame holds a fragment of an IPv4 packet."""
    is_ip = len(data) >= _LINK + 20 and data[12:14] == _IP and data[_LINK] >> 4 == 4
    return is_ip and bool(int.from_bytes(data[_LINK + 6 : _LINK + 8], "big") & (_MORE | _OFFSET))


def _split(data: bytes) -> tuple[bytes, bytes, int, bool]:
    """Header, payload, offset in octets, and whether more follow."""
    packet = data[_LINK:]
    length = (packet[0] & 15) * 4
    total, _, fragment = struct.unpack_from("!HHH", packet, 2)
    return packet[:length], packet[length:total], (fragment & _OFFSET) * 8, bool(fragment & _MORE)
