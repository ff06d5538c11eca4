"""Translated packets are those that would have been made with the other address, judged by checksums in full."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from espthrunat.esp.suites import SUITES
from espthrunat.messages import AddSa, Direction, Encapsulation, Mode, Path, Selector
from espthrunat.plane.mapping import Mapping
from espthrunat.plane.sadb import SaDatabase

REAL, MAPPED = "192.168.1.0/24", "10.200.7.0/24"
HOST, SERVER = "192.168.1.11", "10.99.0.1"
SEEN = "10.200.7.11"

Payload = Callable[[str, str], bytes]  # what an IP packet carries, by source and destination


def total(octets: bytes) -> int:
    """RFC 1071, word by word: 0xFFFF where the checksum is right."""
    result = 0
    for (word,) in struct.iter_unpack("!H", octets + b"\0" * (len(octets) % 2)):
        result += word
        if result > 0xFFFF:
            result -= 0xFFFF
    return result


def checksum(octets: bytes) -> bytes:
    """Never 0, which is as good as 0xFFFF and means "none" in UDP."""
    return ((0xFFFF - total(octets)) or 0xFFFF).to_bytes(2, "big")


def address(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def packet(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    offset: int = 0,
    more: bool = False,
    options: int = 0,
) -> bytes:
    octets = 20 + 4 * options
    head = struct.pack("!BBHHHBB", 0x45 + options, 0, octets + len(payload), 7, more << 13 | offset >> 3, 64, protocol)
    tail = address(source) + address(destination) + b"\x01" * 4 * options
    return head + checksum(head + tail) + tail + payload


def over_addresses(protocol: int, at: int, segment: bytes) -> Payload:
    """TCP, UDP and others whose checksum at octet `at` covers the addresses."""

    def build(source: str, destination: str) -> bytes:
        pseudo = address(source) + address(destination) + bytes((0, protocol)) + len(segment).to_bytes(2, "big")
        blank = segment[:at] + b"\0\0" + segment[at + 2 :]
        return blank[:at] + checksum(pseudo + blank) + blank[at + 2 :]

    return build


def transports(most: int = 60) -> st.SearchStrategy[tuple[int, Payload]]:
    def kind(protocol: int, at: int, least: int) -> st.SearchStrategy[tuple[int, Payload]]:
        segments = st.binary(min_size=least, max_size=least + most)
        return segments.map(lambda segment: (protocol, over_addresses(protocol, at, segment)))

    return st.one_of(kind(6, 16, 20), kind(17, 6, 8), kind(33, 6, 12), kind(136, 6, 8))


def without_addresses() -> st.SearchStrategy[tuple[int, Payload]]:
    """UDP without a checksum, echo requests, and a protocol that nobody knows."""

    def fixed(protocol: int, segment: bytes) -> tuple[int, Payload]:
        return protocol, lambda source, destination: segment

    return st.one_of(
        st.binary(max_size=50).map(lambda data: fixed(17, struct.pack("!HHHH", 7, 7, 8 + len(data), 0) + data)),
        st.binary(min_size=4, max_size=50).map(lambda rest: fixed(1, b"\x08\0" + checksum(b"\x08\0" + rest) + rest)),
        st.binary(max_size=50).map(lambda data: fixed(47, data)),
    )


HOSTS = st.integers(0, 255)
MAPPING = Mapping(REAL, MAPPED)


@pytest.mark.draft("SEC-1")
@given(st.one_of(transports(), without_addresses()), HOSTS, st.integers(0, 10))
def test_packets_are_as_if_they_were_made_with_the_other_address(
    carried: tuple[int, Payload], host: int, options: int
) -> None:
    protocol, payload = carried
    inside, seen = f"192.168.1.{host}", f"10.200.7.{host}"
    arriving, wanted = (packet(a, SERVER, protocol, payload(a, SERVER), options=options) for a in (inside, seen))
    assert MAPPING.arrived(arriving) == wanted
    leaving, wanted = (packet(SERVER, a, protocol, payload(SERVER, a), options=options) for a in (seen, inside))
    assert MAPPING.leaving(leaving) == wanted


@given(transports(), st.integers(1, 9))
def test_fragments_make_the_same_whole(carried: tuple[int, Payload], eights: int) -> None:
    protocol, payload = carried
    whole, wanted = payload(HOST, SERVER), payload(SEEN, SERVER)
    assume(eights * 8 < len(whole))
    got = b""
    for offset, part in ((0, whole[: eights * 8]), (eights * 8, whole[eights * 8 :])):
        fragment = MAPPING.arrived(packet(HOST, SERVER, protocol, part, offset=offset, more=not offset))
        assert fragment[:20] == packet(SEEN, SERVER, protocol, part, offset=offset, more=not offset)[:20]
        got += fragment[20:]
    assert got == wanted


@pytest.mark.parametrize("kind", [3, 4, 11, 12])
@given(st.one_of(transports(), without_addresses()), st.integers(0, 40).map(lambda n: 2 * n), st.integers(0, 2))
def test_what_errors_quote_is_translated_too(kind: int, carried: tuple[int, Payload], most: int, options: int) -> None:
    protocol, payload = carried

    def error(quoted: bytes) -> bytes:
        blank = bytes((kind, 4)) + b"\0\0" + struct.pack("!HH", 0, 1300) + quoted[: 20 + 4 * options + most]
        return blank[:2] + checksum(blank) + blank[4:]

    # The peer, or a router before it, refuses what was sent from here.
    to_inside, to_seen = (packet(SERVER, a, protocol, payload(SERVER, a), options=options) for a in (HOST, SEEN))
    arriving = packet("192.168.1.1", SERVER, 1, error(to_inside))
    assert MAPPING.arrived(arriving) == packet("10.200.7.1", SERVER, 1, error(to_seen))
    # This side, or a router behind it, refuses what the peer sent.
    from_inside, from_seen = (packet(a, SERVER, protocol, payload(a, SERVER), options=options) for a in (HOST, SEEN))
    leaving = packet("10.99.0.254", SEEN, 1, error(from_seen))
    assert MAPPING.leaving(leaving) == packet("10.99.0.254", HOST, 1, error(from_inside))


@given(transports(), st.integers(1, 0xFFFF))
def test_what_was_damaged_stays_damaged(carried: tuple[int, Payload], damage: int) -> None:
    protocol, payload = carried
    at = {6: 16, 17: 6, 33: 6, 136: 6}[protocol]
    segment = payload(HOST, SERVER)
    wrong = int.from_bytes(segment[at : at + 2], "big") ^ damage
    assume(wrong not in (0, 0xFFFF))
    damaged = segment[:at] + wrong.to_bytes(2, "big") + segment[at + 2 :]
    got = MAPPING.arrived(packet(HOST, SERVER, protocol, damaged))[20:]
    pseudo = address(SEEN) + address(SERVER) + bytes((0, protocol)) + len(got).to_bytes(2, "big")
    assert total(pseudo + got) not in (0, 0xFFFF)


@given(st.binary(min_size=20, max_size=80))
def test_a_tcp_checksum_of_zero_is_a_checksum(data: bytes) -> None:
    """Its last two octets are chosen so that the checksum is 0."""
    pseudo = address(HOST) + address(SERVER) + bytes((0, 6)) + (len(data) // 2 * 2 + 2).to_bytes(2, "big")
    blank = data[:16] + b"\0\0" + data[18 : len(data) // 2 * 2]
    segment = blank + checksum(pseudo + blank)
    got = MAPPING.arrived(packet(HOST, SERVER, 6, segment))[20:]
    seen = address(SEEN) + pseudo[4:]
    assert total(seen + got) == 0xFFFF


def unreachable(quoted: bytes) -> bytes:
    blank = b"\x03\x03" + bytes(6) + quoted
    return blank[:2] + checksum(blank) + blank[4:]


@pytest.mark.parametrize("octets", range(20))
def test_a_quotation_without_a_whole_header_stays_as_it_is(octets: int) -> None:
    error = unreachable(packet(SERVER, HOST, 17, bytes(8))[:octets])
    assert MAPPING.arrived(packet(HOST, SERVER, 1, error)) == packet(SEEN, SERVER, 1, error)


def test_a_later_fragment_is_no_error_however_it_looks() -> None:
    looks = unreachable(packet(SERVER, HOST, 17, bytes(8)))
    assert MAPPING.arrived(packet(HOST, SERVER, 1, looks, offset=64)) == packet(SEEN, SERVER, 1, looks, offset=64)


def test_what_is_quoted_of_somebody_elses_traffic_stays_as_it_is() -> None:
    error = unreachable(packet(SERVER, "10.200.8.11", 17, bytes(8)))
    assert MAPPING.arrived(packet(HOST, SERVER, 1, error)) == packet(SEEN, SERVER, 1, error)


HOSTILE = st.builds(
    lambda head, length, rest: bytes((0x45 + head,)) + b"\0" + length.to_bytes(2, "big") + rest,
    st.integers(0, 10),
    st.integers(0, 0xFFFF),
    st.binary(min_size=56, max_size=120),
)


@given(HOSTILE, st.integers(0, 120))
def test_whatever_it_holds_it_keeps_its_length(octets: bytes, cut: int) -> None:
    """What comes here is a whole packet by its header; what that carries, and quotes, may be cut off anywhere."""
    octets = octets[: max(cut, (octets[0] & 0x0F) << 2)]
    assert len(MAPPING.arrived(octets)) == len(octets)
    assert len(MAPPING.leaving(octets)) == len(octets)


def test_single_addresses_are_mapped() -> None:
    mapping = Mapping("192.168.1.11/32", "10.200.0.1/32")
    assert mapping.arrived(packet(HOST, SERVER, 47, b"x")) == packet("10.200.0.1", SERVER, 47, b"x")
    assert mapping.leaving(packet(SERVER, "10.200.0.1", 47, b"x")) == packet(SERVER, HOST, 47, b"x")


def test_networks_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        Mapping("192.168.1.0/24", "10.200.0.0/25")


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(
    ("mode", "mapped", "says"),
    [
        (Mode.TRANSPORT, "10.200.0.1/32", "in tunnel mode only"),
        (Mode.TUNNEL, "10.200.0.0/24", "differ in size"),
        (Mode.TUNNEL, "nowhere", "is no IPv4 network"),
    ],
)
def test_an_sa_that_makes_no_sense_is_not_taken(direction: Direction, mode: Mode, mapped: str, says: str) -> None:
    suite = SUITES["aes128gcm16"]
    sadb = SaDatabase()
    selector = Selector(f"{SERVER}/32", f"{HOST}/32")
    path = Path(SERVER, 500, HOST, 500)
    keymat = bytes(suite.keymat_octets)
    with pytest.raises(ValueError, match=says):
        sadb.add(
            AddSa(0x1001, direction, suite.name, keymat, path, Encapsulation.UDP, selector, "x", mode, mapped=mapped)
        )
    assert not sadb.stats()
