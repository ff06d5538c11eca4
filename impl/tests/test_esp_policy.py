"""A packet reaches the SA of its selector, and no other."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espthrunat.esp.policy import PolicyTable, Selectors, parse_network
from espthrunat.messages import Selector
from espthrunat.wire.ip import ICMP, NO_PORT, TCP, UDP, IpHeader, parse_ipv4


def number(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


def header(source: str, destination: str, protocol: int = ICMP, sport: int = NO_PORT, dport: int = NO_PORT) -> IpHeader:
    return IpHeader(number(source), number(destination), protocol, sport, dport, False)


def ipv4(payload: bytes, protocol: int = UDP, fragment: int = 0, options: bytes = b"") -> bytes:
    first = 0x45 + len(options) // 4
    total = 20 + len(options) + len(payload)
    source, destination = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
    return (
        struct.pack("!BBHHHBBH4s4s", first, 0, total, 7, fragment, 64, protocol, 0, source, destination)
        + options
        + payload
    )


PORTS = struct.pack("!HH", 1111, 500)


@pytest.mark.parametrize(
    ("packet", "ports", "dont_fragment", "fragment"),
    [
        (ipv4(PORTS + bytes(4)), (1111, 500), False, False),
        (ipv4(PORTS, TCP, fragment=0x4000), (1111, 500), True, False),
        (ipv4(PORTS, fragment=0x2000), (1111, 500), False, True),
        (ipv4(PORTS, fragment=0x0001), (NO_PORT, NO_PORT), False, True),
        (ipv4(PORTS, options=bytes(40)), (1111, 500), False, False),
        (ipv4(PORTS, ICMP), (NO_PORT, NO_PORT), False, False),
        (ipv4(PORTS[:3]), (NO_PORT, NO_PORT), False, False),
    ],
    ids=["UDP", "DF", "first fragment", "later fragment", "options", "ICMP", "cut off"],
)
def test_ipv4_headers(packet: bytes, ports: tuple[int, int], dont_fragment: bool, fragment: bool) -> None:
    parsed = parse_ipv4(packet)
    assert parsed == (number("10.0.0.1"), number("10.0.0.2"), packet[9], *ports, dont_fragment, fragment)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        bytes(19),
        ipv4(PORTS)[:-1],
        ipv4(PORTS) + b"\0",
        b"\x65" + ipv4(b"")[1:],
        b"\x44" + ipv4(b"")[1:],
        b"\x46" + ipv4(b"")[1:],
    ],
    ids=["empty", "short", "cut", "longer than it says", "version 6", "IHL 4", "IHL past the end"],
)
def test_what_is_no_ipv4_packet(packet: bytes) -> None:
    assert parse_ipv4(packet) is None


@given(st.binary(max_size=80))
def test_any_octets_can_be_looked_at(octets: bytes) -> None:
    parsed = parse_ipv4(octets)
    assert parsed is None or len(octets) == int.from_bytes(octets[2:4], "big")


def test_headers_in_logs_can_be_read() -> None:
    assert str(header("10.0.0.1", "10.0.0.2", UDP, 1, 2)) == "protocol 17 from 10.0.0.1 port 1 to 10.0.0.2 port 2"
    assert str(header("10.0.0.1", "10.0.0.2")) == "protocol 1 from 10.0.0.1 to 10.0.0.2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3/8", (10 << 24, 8)),
        ("10.0.0.1", (10 << 24 | 1, 32)),
        ("0.0.0.0/0", (0, 0)),
        ("1.2.3.4/32", (0x01020304, 32)),
    ],
)
def test_networks(text: str, expected: tuple[int, int]) -> None:
    assert parse_network(text) == expected


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "10.0.0.0/x", "::1/128", "host"]
)
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="is no IPv4 network"):
        parse_network(text)


@pytest.mark.parametrize(
    "selector",
    [Selector("x", "10.0.0.1"), Selector("10.0.0.1", "10.0.0.1", 256), Selector("10.0.0.1", "10.0.0.1", 6, 65536)],
)
def test_what_is_no_selector(selector: Selector) -> None:
    with pytest.raises(ValueError, match="is no"):
        Selectors.of(selector)


@pytest.mark.draft("SEC-3")
def test_directions_are_mirrored() -> None:
    selectors = Selectors.of(Selector("10.1.0.0/16", "10.2.0.0/16"))
    there, back = header("10.1.0.1", "10.2.0.1"), header("10.2.0.1", "10.1.0.1")
    assert selectors.matches_outbound(there)
    assert not selectors.matches_outbound(back)
    assert selectors.matches_inbound(back)
    assert not selectors.matches_inbound(there)
    # A client must not claim an address of the protected network, nor reach past it.
    assert not selectors.matches_inbound(header("10.1.0.9", "10.1.0.1"))
    assert not selectors.matches_inbound(header("10.2.0.1", "10.3.0.1"))


def test_ports_and_protocol() -> None:
    selectors = Selectors.of(Selector("0.0.0.0/0", "0.0.0.0/0", UDP, 0, 1701))
    assert selectors.matches_outbound(header("1.1.1.1", "2.2.2.2", UDP, 5, 1701))
    assert selectors.matches_inbound(header("2.2.2.2", "1.1.1.1", UDP, 1701, 5))
    assert not selectors.matches_outbound(header("1.1.1.1", "2.2.2.2", UDP, 1701, 5))
    assert not selectors.matches_outbound(header("1.1.1.1", "2.2.2.2", TCP, 5, 1701))
    assert not selectors.matches_outbound(header("1.1.1.1", "2.2.2.2", UDP))
    assert not selectors.matches_inbound(header("2.2.2.2", "1.1.1.1", UDP))


@given(st.integers(0, 32), st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
def test_a_network_has_the_addresses_with_its_prefix(bits: int, network: int, address: int) -> None:
    text = f"{socket.inet_ntoa(network.to_bytes(4, 'big'))}/{bits}"
    selectors = Selectors.of(Selector("0.0.0.0/0", text))
    expected = f"{network:032b}"[:bits] == f"{address:032b}"[:bits]
    assert selectors.matches_outbound(IpHeader(0, address, ICMP, NO_PORT, NO_PORT, False)) is expected


@pytest.mark.draft("QM-7")
def test_the_first_policy_that_matches_counts() -> None:
    table = PolicyTable()
    packet = header("10.1.0.1", "10.2.0.1", TCP, 5, 80)
    assert table.lookup(packet) is None
    table.add("web", Selectors.of(Selector("10.1.0.0/16", "10.2.0.0/16", TCP, 0, 80)))
    table.add("rest", Selectors.of(Selector("10.1.0.0/16", "10.2.0.0/16")))
    assert table.lookup(packet) == "web"
    assert table.lookup(packet._replace(destination_port=81)) == "rest"
    table.remove("web")
    assert table.lookup(packet) == "rest"
    table.remove("rest")
    table.remove("never there")
    assert table.lookup(packet) is None


def test_a_fallback_comes_after_all_others_whenever_they_came() -> None:
    table = PolicyTable()
    packet = header("10.1.0.1", "10.2.0.1", TCP, 5, 80)
    table.add("pool", Selectors.of(Selector("10.1.0.0/16", "10.2.0.0/16")), fallback=True)
    assert table.lookup(packet) == "pool"
    table.add("peer", Selectors.of(Selector("10.1.0.0/16", "10.2.0.1/32")))
    assert table.lookup(packet) == "peer"
    table.remove("peer")
    assert table.lookup(packet) == "pool"
    table.add("pool", Selectors.of(Selector("10.1.0.0/16", "10.2.0.0/16")))  # no fallback any more
    table.add("peer", Selectors.of(Selector("10.1.0.0/16", "10.2.0.1/32")))
    assert table.lookup(packet) == "pool"
    table.add("pool", Selectors.of(Selector("10.1.0.0/16", "10.2.0.0/16")), fallback=True)  # once again
    assert table.lookup(packet) == "peer"


def test_the_cache_does_not_grow_with_a_scan() -> None:
    table = PolicyTable()
    for port in range(10_000):
        assert table.lookup(header("10.1.0.1", "10.2.0.1", TCP, 5, port)) is None
    assert len(table._cache) <= 4096
