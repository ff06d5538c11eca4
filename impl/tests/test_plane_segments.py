"""Cutting super-packets and joining packets agrees with the plain versions of both, and joining loses no detail."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from fuzz_world import fuzz
from hypothesis import given
from hypothesis import strategies as st
from plain_segments import ACK, CWR, FIN, PSH, cut, ip_packet, is_right, tcp, udp, with_checksum, word_sum

from espthrunat.esp.frames import Rows
from espthrunat.plane.checksums import put_checksums, row_sums
from espthrunat.plane.coalesce import Train, leading_train
from espthrunat.plane.completion import Unfinished, complete
from espthrunat.plane.segments import fill_rows
from espthrunat.plane.super_packet import SuperPacket, singly
from espthrunat.wire.ip import TCP, UDP, completed

TIMESTAMPS = b"\1\1\x08\x0a" + bytes(range(8))
lengths = st.integers(1, 90)


def as_rows(packets: list[bytes], width: int) -> Rows:
    rows = np.full((len(packets), width), 0xEE, np.uint8)
    for row, packet in zip(rows, packets, strict=True):
        row[: len(packet)] = np.frombuffer(packet, np.uint8)
    return rows


@fuzz(100)
@given(st.lists(st.binary(min_size=9, max_size=9), min_size=1, max_size=9), st.integers(0, 9), st.integers(1, 4))
def test_row_sums_are_those_of_each_row(rows: list[bytes], width: int, stride: int) -> None:
    """Any width, any distance between rows."""
    array = np.frombuffer(b"".join(rows * stride), np.uint8).reshape(-1, 9)[::stride, :width]
    expected = [word_sum(row.tobytes()) * 256 % 0xFFFF for row in array]  # the octets of each word swapped
    assert (row_sums(array) % 0xFFFF).tolist() == expected


@fuzz(100)
@given(st.binary(min_size=4, max_size=40), st.integers(0, 1))
def test_checksums_are_put_where_they_belong(octets: bytes, at: int) -> None:
    at *= 2
    plain = octets[:at] + b"\0\0" + octets[at + 2 :]
    rows = np.frombuffer(bytearray(plain), np.uint8).reshape(1, -1)
    put_checksums(rows, at, row_sums(rows))
    assert rows.tobytes() == with_checksum(octets, at)


@st.composite
def supers(draw: st.DrawFn) -> tuple[bytes, int]:
    """A super-packet, with whatever in its checksums, and the octets of a segment."""
    payload = draw(st.binary(min_size=1, max_size=600))
    identification = draw(st.sampled_from([0, 1, 0xFFFE, 0xFFFF]))
    if draw(st.booleans()):
        inner = tcp(
            payload,
            draw(st.sampled_from([0, 1, 0xFFFFFF00, 0xFFFFFFFF])),
            draw(st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | CWR | PSH | FIN])),
            draw(st.sampled_from([b"", TIMESTAMPS])),
        )
        return ip_packet(TCP, inner[:16] + b"\xab\xcd" + inner[18:], identification), draw(lengths)
    inner = udp(payload)
    return ip_packet(UDP, inner[:6] + b"\xab\xcd" + inner[8:], identification), draw(lengths)


@fuzz(300)
@given(supers(), st.integers(0, 5))
def test_cutting_is_what_a_kernel_does(packet_and_segment: tuple[bytes, int], extra: int) -> None:
    packet, segment = packet_and_segment
    expected = cut(packet, segment)
    parts = SuperPacket.of(packet, segment)
    assert parts is not None
    assert (parts.count, parts.total_octets) == (len(expected), sum(map(len, expected)))
    assert singly([parts]) == expected
    full = parts.payload_octets // segment
    for first in range(0, full, 3):
        count = min(3, full - first)
        rows = as_rows([b""] * count, parts.header_octets + segment + extra)
        fill_rows(parts, first, rows)
        rest = b"\xee" * extra
        assert [row.tobytes() for row in rows] == [packet + rest for packet in expected[first : first + count]]


@pytest.mark.parametrize("first", [0xFFFF, 1, 2, 3, 4, 5])
def test_the_checksum_of_a_header_may_turn_over_within_a_train(first: int) -> None:
    """It counts down as the identification counts up."""
    (with_zero,) = struct.unpack_from("!H", ip_packet(UDP, udp(bytes(8))), 10)
    packet = ip_packet(UDP, udp(bytes(40)), (with_zero - first) % 0xFFFF)
    expected = cut(packet, 8)
    assert expected[0][10:12] == first.to_bytes(2, "big")
    parts = SuperPacket.of(packet, 8)
    assert parts is not None
    rows = as_rows([b""] * 5, 36)
    fill_rows(parts, 0, rows)
    assert [row.tobytes() for row in rows] == expected
    train = joined(expected, protocol=UDP)
    assert train is not None
    assert again(train, expected[0]) == expected


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_the_sum_of_a_pseudo_header_may_turn_over(protocol: int) -> None:
    """Whatever addresses come to, with the length of a segment and the protocol."""
    packet = ip_packet(protocol, tcp(bytes(30)) if protocol == TCP else udp(bytes(30)))
    for gap in range(60):
        last_word = (0xFFFF - gap - word_sum(packet[12:18])) % 0xFFFF
        odd = packet[:18] + struct.pack("!H", last_word) + packet[20:]
        assert word_sum(odd[12:20]) == 0xFFFF - gap
        parts = SuperPacket.of(odd, 10)
        assert parts is not None
        expected = cut(odd, 10)
        rows = as_rows([b""] * 3, len(expected[0]))
        fill_rows(parts, 0, rows)
        assert [row.tobytes() for row in rows] == expected
        assert all(map(is_right, expected))
        train = joined(expected, protocol=protocol)
        assert train is not None
        assert train.count == 3


@fuzz(100)
@given(supers(), st.booleans())
def test_in_transport_mode_only_the_ip_header_is_missing(
    packet_and_segment: tuple[bytes, int], checksums: bool
) -> None:
    packet, segment = packet_and_segment
    whole = SuperPacket.of(packet, segment)
    assert whole is not None
    parts = whole.without_ip(packet[20:], checksums=checksums)
    expected = [packet[20:] for packet in cut(packet, segment)]
    if not checksums:
        at = 16 if packet[9] == TCP else 6
        expected = [packet[:at] + b"\0\0" + packet[at + 2 :] for packet in expected]
    assert singly([parts]) == expected
    full = parts.payload_octets // segment
    rows = as_rows([b""] * full, parts.header_octets + segment)
    if full:
        fill_rows(parts, 0, rows)
        assert [row.tobytes() for row in rows] == expected[:full]


@fuzz(100)
@given(supers(), st.integers(20, 700))
def test_tcp_is_cut_smaller_for_a_narrow_path(packet_and_segment: tuple[bytes, int], most: int) -> None:
    packet, segment = packet_and_segment
    parts = SuperPacket.of(packet, segment)
    assert parts is not None
    fitting = parts.fitting(most)
    if fitting is None:
        assert packet[9] == UDP or most <= parts.header_octets
    else:
        assert fitting.octets == packet
        assert fitting.segment <= segment
        assert fitting is parts or fitting.header_octets + fitting.segment == most


@pytest.mark.parametrize("packet", [ip_packet(1, bytes(30)), ip_packet(UDP, bytes(8)), ip_packet(TCP, bytes(10))])
def test_what_cannot_be_cut_is_no_super_packet(packet: bytes) -> None:
    assert SuperPacket.of(packet, 5) is None


@fuzz(100)
@given(st.binary(max_size=50))
def test_a_missing_checksum_is_completed(payload: bytes) -> None:
    for protocol, inner, at in ((TCP, tcp(payload), 16), (UDP, udp(payload), 6)):
        right = ip_packet(protocol, inner)
        addresses = right[12:20] + struct.pack("!HH", protocol, len(inner))
        half = right[: 20 + at] + struct.pack("!H", word_sum(addresses)) + right[22 + at :]
        assert completed(half, 20, at) == right
    assert completed(b"short", 20, 16) == b"short"


@fuzz(100)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 31, 32, 33]), st.booleans(), st.sampled_from([20, 24, 600])), max_size=20)
)
def test_missing_checksums_are_completed_for_many_at_once(plan: list[tuple[int, bool, int]]) -> None:
    unfinished, expected = [], {}
    for position, (octets, is_tcp, start) in enumerate(plan):
        payload = bytes([position]) * octets
        protocol, offset = (TCP, 16) if is_tcp else (UDP, 6)
        right = ip_packet(protocol, tcp(payload) if is_tcp else udp(payload))
        sum_of_pseudo = word_sum(right[12:20] + struct.pack("!HH", protocol, len(right) - 20))
        half = right[: 20 + offset] + struct.pack("!H", sum_of_pseudo) + right[22 + offset :]
        unfinished.append(Unfinished(position, half, start, offset))
        # A place that is not there is left alone; one that is wrong is what the kernel asked for.
        expected[position] = completed(half, start, offset)
        if start == 20:
            assert expected[position] == right
    assert complete(unfinished) == expected


def joined(packets: list[bytes], ip_octets: int = 20, protocol: int = TCP) -> Train | None:
    """A train of the packets, which are equally long but for the last."""
    length = len(packets[0])
    full = [packet for packet in packets if len(packet) == length]
    train = leading_train(as_rows(full, length), ip_octets, protocol)
    if train is not None and train.count == len(full):
        for packet in packets[len(full) :]:
            if not train.append(packet):
                break
    return train


def again(train: Train, packet: bytes) -> list[bytes]:
    """What a kernel cuts the super-packet into whose first packet was `packet`."""
    whole = train.kernel_header(packet) + train.payload.tobytes() + train.tail
    assert len(whole) == int.from_bytes(whole[2:4], "big")
    assert word_sum(whole[:20]) == 0xFFFF
    at = 20 + (16 if packet[9] == TCP else 6)
    addresses = whole[12:20] + struct.pack("!HH", packet[9], len(whole) - 20)
    assert int.from_bytes(whole[at : at + 2], "big") == word_sum(addresses), "the kernel goes on from the pseudo header"
    return cut(whole, train.segment)


def segments(payload: bytes, segment: int, last_flags: int = ACK, identification: int = 0xFFFD) -> list[bytes]:
    """Packets of one TCP connection, whose numbers run over."""
    packet = ip_packet(TCP, tcp(payload, 0xFFFFFFF0, last_flags, TIMESTAMPS), identification)
    return cut(packet, segment)


@fuzz(100)
@given(st.binary(min_size=40, max_size=600), st.integers(10, 90), st.sampled_from([ACK, ACK | PSH]))
def test_tcp_packets_are_joined_and_come_apart_as_they_were(payload: bytes, segment: int, last_flags: int) -> None:
    packets = segments(payload, segment, last_flags)
    train = joined(packets)
    if len([packet for packet in packets if len(packet) == len(packets[0])]) < 2:
        assert train is None
        return
    assert train is not None
    assert train.count == len(packets)
    assert again(train, packets[0]) == packets


@fuzz(100)
@given(st.binary(min_size=40, max_size=600), st.integers(10, 90))
def test_udp_packets_are_joined_and_come_apart_as_they_were(payload: bytes, segment: int) -> None:
    packets = cut(ip_packet(UDP, udp(payload), 0xFFFE), segment)
    train = joined(packets, protocol=UDP)
    if len([packet for packet in packets if len(packet) == len(packets[0])]) < 2:
        assert train is None
        return
    assert train is not None
    assert train.count == len(packets)
    assert again(train, packets[0]) == packets


@fuzz(400)
@given(st.sampled_from([TCP, UDP]), st.integers(0, 5), st.integers(0, 69), st.integers(1, 255), st.booleans())
def test_a_packet_with_any_other_octet_is_not_joined_or_comes_out_as_it_was(
    protocol: int, number: int, position: int, change: int, mend: bool
) -> None:
    """Also where its checksums are mended, so that only the difference itself can give it away."""
    text = bytes(range(200))
    packets = segments(text, 40) if protocol == TCP else cut(ip_packet(UDP, udp(text)), 40)
    odd = bytearray(packets[number % len(packets)])
    position %= len(odd)
    odd[position] ^= change
    other = bytes(odd)
    if mend:
        inner = with_checksum(
            other[20:], 16 if protocol == TCP else 6, other[12:20] + struct.pack("!HH", protocol, len(other) - 20)
        )
        other = with_checksum(other[:20], 10) + inner
    packets[number % len(packets)] = other
    if other[0] != 0x45 or other[9] != protocol or int.from_bytes(other[2:4], "big") != len(other):
        return  # never asked of: no such packet is given to joining
    train = joined(packets, protocol=protocol)
    if train is not None:
        assert again(train, packets[0]) == packets[: train.count]


def test_nothing_is_joined_behind_a_push_a_gap_or_another_flag() -> None:
    packets = segments(bytes(400), 40)
    assert len(packets) == 10

    def count_with(number: int, packet: bytes) -> int:
        train = joined([*packets[:number], packet, *packets[number + 1 :]])
        return 1 if train is None else train.count

    def like(number: int, flags: int, sequence_gain: int = 0, identification_gain: int = 0) -> bytes:
        sequence = (0xFFFFFFF0 + number * 40 + sequence_gain) % (1 << 32)
        identification = (0xFFFD + number + identification_gain) % (1 << 16)
        return ip_packet(TCP, tcp(bytes(40), sequence, flags, TIMESTAMPS), identification)

    assert like(4, ACK) == packets[4]
    assert count_with(4, like(4, ACK | PSH)) == 5
    for flags in (ACK | FIN, ACK | 0x02, ACK | 0x04, ACK | 0x20, ACK | 0x40, ACK | CWR, 0):
        assert count_with(4, like(4, flags)) == 4
    assert count_with(4, like(4, ACK, sequence_gain=1)) == 4
    assert count_with(4, like(4, ACK, identification_gain=1)) == 4
    assert count_with(9, like(9, ACK, identification_gain=1)) == 9


def test_what_would_be_too_long_is_not_joined() -> None:
    packets = cut(ip_packet(TCP, tcp(bytes(1400) * 44)), 1400)
    more = [*packets, *cut(ip_packet(TCP, tcp(bytes(1400) * 5, 1 + 1400 * 44), 44), 1400)]
    train = joined(more)
    assert train is not None
    assert train.count == 46
    assert len(train.header) + train.payload_octets <= 65535
    assert not train.append(more[46])


def test_wrong_and_missing_checksums_are_left_to_their_receiver() -> None:
    packets = cut(ip_packet(UDP, udp(bytes(400))), 40)
    assert all(map(is_right, packets))
    packets[3] = packets[3][:26] + b"\0\0" + packets[3][28:]
    train = joined(packets, protocol=UDP)
    assert train is not None
    assert train.count == 3
    # All its words sum up to 0xFFFF as if there were a right one, but there is none.
    packets = cut(ip_packet(UDP, udp(bytes(400))), 40)
    odd = bytearray(packets[3])
    total = word_sum(bytes(odd[12:20]) + struct.pack("!HH", UDP, 48) + bytes(odd[20:26] + odd[28:]))
    odd[26:30] = b"\0\0" + struct.pack("!H", 0xFFFF ^ total)
    packets[3] = bytes(odd)
    train = joined(packets, protocol=UDP)
    assert train is not None
    assert train.count == 3
    # Two wrong checksums whose sum is right are two wrong checksums.
    packets = segments(bytes(400), 40)
    odd = bytearray(packets[3])
    struct.pack_into("!H", odd, 10, (int.from_bytes(odd[10:12], "big") + 1) % 0xFFFF)
    struct.pack_into("!H", odd, 36, (int.from_bytes(odd[36:38], "big") - 1) % 0xFFFF)
    packets[3] = bytes(odd)
    train = joined(packets)
    assert train is not None
    assert train.count == 3


def test_transport_mode_joins_without_a_look_at_checksums() -> None:
    """The draft, 5: they were made for addresses that a NAT has changed."""
    packets = [packet[20:36] + b"\xba\xad" + packet[38:] for packet in segments(bytes(390), 40)]
    train = joined(packets, ip_octets=0)
    assert train is not None
    assert train.count == len(packets) == 10
