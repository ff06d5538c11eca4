"""What cutting and joining must come to, written as plainly as can be: one packet after the other, word by word."""

from __future__ import annotations

import struct

from espthrunat.wire.ip import TCP, UDP

FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
SOURCE, DESTINATION = bytes((10, 1, 0, 1)), bytes((10, 99, 0, 1))


def word_sum(octets: bytes) -> int:
    """The ones' complement sum, with the carry added at each step (RFC 1071, 4.1)."""
    total = 0
    for (word,) in struct.iter_unpack("!H", octets + bytes(len(octets) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def with_checksum(octets: bytes, at: int, before: bytes = b"") -> bytes:
    """`octets` with their checksum at octet `at`, over what comes `before` them too."""
    octets = octets[:at] + b"\0\0" + octets[at + 2 :]
    value = 0xFFFF ^ word_sum(before + octets) or 0xFFFF
    return octets[:at] + struct.pack("!H", value) + octets[at + 2 :]


def ip_packet(protocol: int, payload: bytes, identification: int = 0, tos: int = 0, ttl: int = 64) -> bytes:
    """A packet without options from `SOURCE` to `DESTINATION`."""
    header = struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(payload), identification, 0x4000, ttl, protocol, 0)
    return with_checksum(header + SOURCE + DESTINATION, 10) + payload


def pseudo(protocol: int, octets: int) -> bytes:
    return SOURCE + DESTINATION + struct.pack("!HH", protocol, octets)


def tcp(
    payload: bytes,
    sequence: int = 1,
    flags: int = ACK,
    options: bytes = b"",
    ports: tuple[int, int] = (4000, 80),
    acknowledgement: int = 7,
) -> bytes:
    """A TCP segment with a right checksum."""
    offset = (20 + len(options)) << 2
    header = struct.pack("!HHIIBBHHH", *ports, sequence, acknowledgement, offset, flags, 500, 0, 0) + options
    return with_checksum(header + payload, 16, pseudo(TCP, len(header) + len(payload)))


def udp(payload: bytes, ports: tuple[int, int] = (4000, 80)) -> bytes:
    """A UDP datagram with a right checksum."""
    octets = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    return with_checksum(octets, 6, pseudo(UDP, len(octets)))


def cut(packet: bytes, segment: int) -> list[bytes]:
    """What a kernel makes of a super-packet with an IP header of 20 octets: its packets, as they go out."""
    protocol = packet[9]
    header_octets = 20 + (packet[32] >> 4 << 2) if protocol == TCP else 28
    payload = packet[header_octets:]
    parts = [payload[at : at + segment] for at in range(0, len(payload), segment)]
    packets = []
    for number, part in enumerate(parts):
        (identification,) = struct.unpack_from("!H", packet, 4)
        inner = bytearray(packet[20:header_octets] + part)
        if protocol == TCP:
            (sequence,) = struct.unpack_from("!I", packet, 24)
            struct.pack_into("!I", inner, 4, (sequence + number * segment) % (1 << 32))
            if number != len(parts) - 1:
                inner[13] &= 0xFF ^ FIN ^ PSH
            if number != 0:
                inner[13] &= 0xFF ^ CWR
        else:
            struct.pack_into("!H", inner, 4, len(inner))
        addresses = packet[12:20] + struct.pack("!HH", protocol, len(inner))
        whole = with_checksum(bytes(inner), 16 if protocol == TCP else 6, addresses)
        length = struct.pack("!HH", 20 + len(whole), (identification + number) % (1 << 16))
        header = packet[:2] + length + packet[6:10] + b"\0\0" + packet[12:20]
        packets.append(with_checksum(header, 10) + whole)
    return packets


def is_right(packet: bytes) -> bool:
    """Whether the checksums of a packet without IP options are right."""
    protocol = packet[9]
    addresses = packet[12:20] + struct.pack("!HH", protocol, len(packet) - 20)
    return word_sum(packet[:20]) == 0xFFFF and word_sum(addresses + packet[20:]) == 0xFFFF
