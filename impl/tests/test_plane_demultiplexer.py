"""IKE, ESP and keepalives share a port and are told apart by their first octets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espthrunat.wire.udp import ESP_MARKER, KEEPALIVE, Kind, classify


@pytest.mark.draft("WIRE-3")
@pytest.mark.parametrize(
    ("datagram", "kind"),
    [
        (b"", Kind.JUNK),
        (KEEPALIVE, Kind.KEEPALIVE),
        (b"\xfe", Kind.JUNK),
        (b"\xff\xff", Kind.JUNK),
        (bytes(7), Kind.JUNK),
        (ESP_MARKER, Kind.JUNK),
        (bytes(9), Kind.ESP),
        (b"\xff" * 8, Kind.IKE),
    ],
)
def test_edges(datagram: bytes, kind: Kind) -> None:
    assert classify(datagram) is kind


@given(st.binary(max_size=64))
def test_any_octets_are_something(datagram: bytes) -> None:
    assert classify(datagram) in Kind


@pytest.mark.draft("WIRE-1")
@given(st.binary(min_size=1))
def test_all_behind_the_marker_is_esp(packet: bytes) -> None:
    assert classify(ESP_MARKER + packet) is Kind.ESP


@pytest.mark.draft("WIRE-2")
@given(st.binary(min_size=8, max_size=8).filter(any), st.binary())
def test_all_behind_a_cookie_is_ike(cookie: bytes, rest: bytes) -> None:
    assert classify(cookie + rest) is Kind.IKE


@pytest.mark.draft("WIRE-4")
@given(st.integers(0, 63), st.binary(min_size=1))
def test_a_damaged_marker_is_ike(bit: int, packet: bytes) -> None:
    marker = (1 << bit).to_bytes(8, "big")
    assert classify(marker + packet) is Kind.IKE
