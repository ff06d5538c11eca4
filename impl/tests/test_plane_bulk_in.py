"""Trains of datagrams come to what the same datagrams come to one by one, whatever is in them."""

from __future__ import annotations

import struct

import pytest
from fuzz_world import fuzz
from hypothesis import given
from hypothesis import strategies as st
from inbound_world import ELSEWHERE, ENDING, LOCAL, PEER, ROAMING, SLOTS, TRANSPORT, TUNNEL, Sender, Way, arrivals
from plain_segments import ACK, PSH, cut, ip_packet, tcp, with_checksum

from espthrunat.esp.sa import OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import (
    AddSa,
    Direction,
    Encapsulation,
    Expire,
    Path,
    Rebound,
    Selector,
    Used,
)
from espthrunat.plane import bulk
from espthrunat.plane.arrivals import Arrival
from espthrunat.wire.ip import TCP, UDP
from espthrunat.wire.udp import ESP_MARKER, KEEPALIVE

bulk.load()


def both_ways(
    datagrams: list[tuple[bytes, tuple[str, int]]], *, in_slots: bool = False, selector: Selector | None = None
) -> tuple[Way, Way]:
    """The same datagrams one by one, each arriving alone, and in trains; what came of them must be the same.

    `selector` is another one for the SA of transport mode.
    """
    single, lone, bulk = (Way(selector=selector) for _ in range(3))
    for arrival in arrivals(datagrams, in_slots=in_slots):
        for datagram in arrival.datagrams():
            single.flow.datagrams([(datagram, arrival.remote)], LOCAL)
            SLOTS.views[47][: len(datagram)] = datagram
            lone.flow.arrivals([Arrival(SLOTS, arrival.remote, 47, 1, len(datagram), len(datagram))], LOCAL)
        bulk.flow.arrivals([arrival], LOCAL)
    for way in (lone, bulk):
        assert way.flows() == single.flows()
        assert way.ike == single.ike
        assert way.dropped() == single.dropped()
        assert way.said == single.said
        assert [(sa.spi, sa.packets, sa.octets, sa.dropped) for sa in way.sadb.stats()] == [
            (sa.spi, sa.packets, sa.octets, sa.dropped) for sa in single.sadb.stats()
        ]
    return single, bulk


def bulk_of(sender: Sender, spi: int, count: int, octets: int = 90) -> list[tuple[bytes, tuple[str, int]]]:
    return [(sender.tcp(spi, octets), PEER) for _ in range(count)]


@pytest.mark.parametrize("in_slots", [False, True], ids=["train", "slots"])
@pytest.mark.parametrize("spi", [TUNNEL, ROAMING, TRANSPORT])
def test_a_stream_becomes_one_super_packet(spi: int, in_slots: bool) -> None:
    """Otherwise the tests below would only compare one by one with one by one."""
    sender = Sender()
    _, bulk = both_ways([*bulk_of(sender, spi, 20), (sender.tcp(spi, 90, ACK | PSH), PEER)], in_slots=in_slots)
    assert (bulk.supers, len(bulk.kernel)) == (1, 21)


def test_the_shorter_last_segment_joins_the_others() -> None:
    sender = Sender()
    datagrams = [*bulk_of(sender, TUNNEL, 10), (sender.tcp(TUNNEL, 30, ACK | PSH), PEER)]
    _, bulk = both_ways(datagrams)
    assert (bulk.supers, len(bulk.kernel)) == (1, 11)


def test_a_kernel_that_takes_no_super_packets_gets_all_singly() -> None:
    sender = Sender()
    datagrams = [*bulk_of(sender, TUNNEL, 10), (sender.tcp(TUNNEL, 30, ACK | PSH), PEER), *bulk_of(sender, TUNNEL, 10)]
    single, bulk = Way(), Way(takes_supers=False)
    for arrival in arrivals(datagrams, in_slots=False):
        bulk.flow.arrivals([arrival], LOCAL)
    single.flow.datagrams(datagrams, LOCAL)
    assert bulk.kernel == single.kernel
    assert bulk.counters.values["fallback_tun_super_write"] == 1


@pytest.mark.draft("WIRE-4", "SEC-3")
def test_each_kind_of_fault_costs_one_packet_of_the_train() -> None:
    sender = Sender()
    datagrams = [datagram for datagram, _ in bulk_of(sender, TUNNEL, 40)]
    octets = len(datagrams[0])
    datagrams[3] = datagrams[3][:-1] + bytes([datagrams[3][-1] ^ 1])  # its ICV
    datagrams[9] = b"\1" + datagrams[9][1:]  # its marker
    datagrams[15] = datagrams[15][:8] + b"\0\0\x99\x99" + datagrams[15][12:]  # its SPI
    datagrams[21] = datagrams[20]  # a replay
    datagrams[27] = (b"\x07" * 16).ljust(octets, b"\0")  # IKE, as far as a plane can tell
    assert {len(datagram) for datagram in datagrams} == {octets}
    _, bulk = both_ways([(datagram, PEER) for datagram in datagrams])
    assert len(bulk.kernel) == 35
    assert len(bulk.ike) == 2
    assert bulk.dropped() == {
        "drop_esp_icv": 1,
        "drop_unknown_spi": 1,
        "drop_esp_replay": 1,
        **{name: value for name, value in bulk.dropped().items() if not name.startswith("drop")},
    }


def test_a_marker_with_less_than_an_spi_behind_it_is_junk() -> None:
    """Even where the octets that are there, taken for a number, are that of an SA which is in use."""
    datagrams = [Sender().tcp(TUNNEL, 90), ESP_MARKER + TUNNEL.to_bytes(3, "big")]
    single, _ = both_ways([(datagram, PEER) for datagram in datagrams])
    assert single.counters.values["drop_junk"] == 1


@pytest.mark.draft("WIRE-4")
def test_a_train_with_broken_markers_is_ike() -> None:
    """All alike, so that it looks like a train of ESP in everything else."""
    sender = Sender()
    for position in range(8):
        broken = []
        for datagram, remote in bulk_of(sender, TUNNEL, 10):
            octets = bytearray(datagram)
            octets[position] = 1
            broken.append((bytes(octets), remote))
        _, bulk = both_ways(broken)
        assert len(bulk.ike) == 10
        assert not bulk.kernel


@pytest.mark.draft("SEC-3")
@pytest.mark.parametrize("spi", [TUNNEL, TRANSPORT])
def test_a_train_that_the_sa_must_not_carry_is_dropped(spi: int) -> None:
    """Packets that could be joined, from an address, or with a protocol, that is not in the selector."""
    sender, datagrams = Sender(), []
    for packet in cut(ip_packet(TCP, tcp(bytes(1000))), 100):
        source = packet[:12] + bytes((10, 7, 0, 1)) + packet[16:20]
        inner = with_checksum(packet[20:], 16, source[12:20] + struct.pack("!HH", TCP, len(packet) - 20))
        content, next_header = (packet[20:], TCP) if spi == TRANSPORT else (with_checksum(source, 10) + inner, 4)
        datagrams.append((ESP_MARKER + sender.sas[spi].seal([content], next_header)[0], PEER))
    selector = Selector(f"{LOCAL[0]}/32", f"{PEER[0]}/32", UDP) if spi == TRANSPORT else None
    _, bulk = both_ways(datagrams, selector=selector)
    assert not bulk.kernel
    assert bulk.dropped()["drop_inner_selector"] == 10


@pytest.mark.draft("SEC-4")
def test_a_train_from_elsewhere_moves_what_may_move() -> None:
    sender = Sender()
    datagrams = bulk_of(sender, ROAMING, 10)
    moved = [(datagram, ELSEWHERE) for datagram, _ in bulk_of(sender, ROAMING, 10)]
    back = bulk_of(sender, TUNNEL, 5)
    _, bulk = both_ways([*datagrams, *moved, *back])
    assert [type(message) for message in bulk.said] == [Used, Rebound, Used]
    assert len(bulk.kernel) == 25


@pytest.mark.draft("SA-5")
def test_an_sa_ends_amid_a_train() -> None:
    sender = Sender()
    _, bulk = both_ways(bulk_of(sender, ENDING, 39))
    assert [message.hard for message in bulk.said if isinstance(message, Expire)] == [False, True]
    assert 0 < len(bulk.kernel) < 39
    assert len(bulk.kernel) + bulk.dropped()["drop_unknown_spi"] == 39


spis = st.sampled_from([TUNNEL, TUNNEL, ROAMING, TRANSPORT, ENDING])
steps = st.lists(
    st.tuples(
        st.sampled_from(["tcp", "tcp", "tcp", "udp", "push", "other", "wrong", "ike", "keepalive", "random", "again"]),
        spis,
        st.integers(1, 12),
        st.sampled_from([40, 60, 60, 61]),
        st.sampled_from([None, None, None, 0, 8, 12, 16, -1, 30]),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.draft("WIRE-3")
@fuzz(300)
@given(steps, st.booleans())
def test_any_mixture_comes_to_the_same(plan: list[tuple[str, int, int, int, int | None, bool]], in_slots: bool) -> None:
    sender = Sender()
    datagrams: list[tuple[bytes, tuple[str, int]]] = []
    for what, spi, count, octets, damage, elsewhere in plan:
        made = [KEEPALIVE] * count
        if what == "tcp":
            made = [sender.tcp(spi, octets) for _ in range(count)]
        elif what == "push":
            made = [sender.tcp(spi, octets, ACK | PSH) for _ in range(count)]
        elif what == "udp":
            made = [sender.udp(spi, octets) for _ in range(count)]
        elif what == "other":
            made = [sender.other(spi, octets) for _ in range(count)]
        elif what == "wrong":
            made = [sender.wrong(spi, octets) for _ in range(count)]
        elif what == "ike":
            made = [b"cookie##" + bytes(octets)] * count
        elif what == "random":
            made = [ESP_MARKER + spi.to_bytes(4, "big") + bytes([octets]) * octets] * count
        elif what == "again" and datagrams:
            made = [datagram for datagram, _ in datagrams[-count:]]
        if damage is not None and len(made[0]) > abs(damage):
            odd = bytearray(made[count // 2 % len(made)])
            odd[damage] ^= 0x40
            made[count // 2 % len(made)] = bytes(odd)
        datagrams += [(datagram, ELSEWHERE if elsewhere and octets == 61 else PEER) for datagram in made]
    both_ways(datagrams, in_slots=in_slots)


def test_a_thousand_sas_share_the_memory() -> None:
    """What a train leaves in memory does no harm to the next, of another SA with the same lengths."""
    way = Way()
    suite = SUITES["aes128gcm16"]
    peers = []
    for spi in range(0x5000, 0x5000 + 1000):
        path = Path(*LOCAL, *PEER)
        selector = Selector("10.99.0.1/32", "10.1.0.1/32")
        keys = spi.to_bytes(4, "big") * 5
        way.sadb.add(AddSa(spi, Direction.INBOUND, suite.name, keys, path, Encapsulation.UDP, selector, f"p{spi}"))
        peers.append(OutboundSa(spi, suite, keys))
    expected = []
    for number, peer in enumerate(peers):
        packets = cut(ip_packet(TCP, tcp(number.to_bytes(2, "big") * 300)), 100)
        expected += packets
        made = [(ESP_MARKER + sealed, PEER) for sealed in peer.seal(packets)]
        way.flow.arrivals(list(arrivals(made, in_slots=bool(number % 2))), LOCAL)
    assert way.kernel == expected


def test_until_numpy_is_there_trains_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "is_ready", lambda: False)
    sender = Sender()
    _, way = both_ways([*bulk_of(sender, TUNNEL, 20), *bulk_of(sender, TRANSPORT, 20)])
    assert (way.supers, len(way.kernel)) == (0, 40)
