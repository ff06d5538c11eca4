"""What a path carries is learned from the kernel, told to senders, and agreed on by TCP from the start."""

from __future__ import annotations

import socket
import struct

import pytest
from fuzz_world import fuzz
from hypothesis import given
from hypothesis import strategies as st
from plain_segments import ACK, DESTINATION, SOURCE, ip_packet, is_right, tcp, udp, word_sum

from espthrunat.plane.path_mtu import KEPT_SECONDS, MIN_PATH_MTU, PathMtus, clamped, fragmentation_needed
from espthrunat.wire.ip import ICMP, TCP, UDP

SYN = 0x02
NOPS = st.lists(st.sampled_from([b"\1", b"\3\3\7", b"\4\2", b"\x08\x0a" + bytes(8)]), max_size=3).map(b"".join)


def syn(options: bytes, flags: int = SYN) -> bytes:
    options += bytes(-len(options) % 4)
    return ip_packet(TCP, tcp(b"", 5, flags, options))


@pytest.mark.draft("WIRE-6")
@fuzz(100)
@given(NOPS, st.integers(0, 0xFFFF), st.integers(68, 9000), st.sampled_from([SYN, SYN | ACK]))
def test_a_connection_is_opened_with_segments_that_fit(before: bytes, offered: int, mtu: int, flags: int) -> None:
    packet = syn(before + b"\2\4" + struct.pack("!H", offered), flags)
    expected = syn(before + b"\2\4" + struct.pack("!H", min(offered, mtu - 40)), flags)
    found = clamped(packet, mtu)
    assert found == expected
    assert is_right(found)


@fuzz(100)
@given(st.binary(max_size=40), st.binary(max_size=10))
def test_any_options_are_survived(options: bytes, payload: bytes) -> None:
    packet = syn(options[: len(options) & ~3])
    assert len(clamped(packet + payload, 100)) == len(packet + payload)
    for cut in range(20, len(packet)):
        assert len(clamped(packet[:cut], 100)) == cut


def test_all_other_packets_stay_as_they_are() -> None:
    offer = b"\2\4\x05\xb4"
    others = [
        ip_packet(TCP, tcp(b"", 5, ACK, offer)),
        ip_packet(UDP, udp(bytes(40))),
        syn(b"\0\0\0\0" + offer),
        syn(b"\2\3\x05\xb4"),
    ]
    assert [clamped(packet, 100) for packet in others] == others
    later_fragment = bytearray(syn(offer))
    later_fragment[7] = 1
    assert clamped(bytes(later_fragment), 100) == later_fragment


@fuzz(100)
@given(st.integers(68, 0xFFFF), st.binary(max_size=100))
def test_senders_are_told_by_icmp(mtu: int, payload: bytes) -> None:
    packet = ip_packet(UDP, udp(payload))
    message = fragmentation_needed(packet, mtu)
    assert message[9] == ICMP
    assert (message[12:16], message[16:20]) == (DESTINATION, SOURCE)
    assert len(message) == int.from_bytes(message[2:4], "big")
    assert word_sum(message[:20]) == word_sum(message[20:]) == 0xFFFF
    assert struct.unpack_from("!BB2xHH", message, 20) == (3, 4, 0, mtu)
    assert message[28:] == packet[:28]


def test_the_kernel_is_asked_and_its_answer_is_kept_for_a_while() -> None:
    """The loopback device carries whatever an IP packet can be."""
    now = 0.0
    paths = PathMtus(100_000, "127.0.0.1", clock=lambda: now)
    assert (paths.of("127.0.0.1"), paths.due()) == (100_000, None)
    assert paths.learn("127.0.0.1")
    assert (paths.of("127.0.0.1"), paths.due()) == (65535, KEPT_SECONDS)
    assert not paths.learn("127.0.0.1"), "no news"
    assert paths.of("127.0.0.2") == 100_000
    assert not paths.forget_old()
    now = KEPT_SECONDS
    assert paths.forget_old()
    assert (paths.of("127.0.0.1"), paths.due()) == (100_000, None)


def test_a_path_that_claims_next_to_nothing_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tiny(socket.socket):
        def getsockopt(self, *_: object) -> int:  # type: ignore[override]
            return 60

    monkeypatch.setattr(socket, "socket", Tiny)
    paths = PathMtus(1500, "127.0.0.1")
    paths.learn("127.0.0.1")
    assert paths.of("127.0.0.1") == MIN_PATH_MTU


def test_without_an_answer_nothing_changes() -> None:
    paths = PathMtus(1500, "203.0.113.77")
    assert not paths.learn("127.0.0.1")
    assert paths.of("127.0.0.1") == 1500
