"""Trains of datagrams come to what the same datagrams come to one by one, whatever is in them."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from fuzz_world import fuzz
from hypothesis import given
from hypothesis import strategies as st
from plain_segments import ACK, PSH, cut, ip_packet, tcp, udp, with_checksum

from espthrunat.esp.sa import OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import (
    AddSa,
    Direction,
    Encapsulation,
    Expire,
    FromPlane,
    Mode,
    Path,
    Rebound,
    Selector,
    Used,
)
from espthrunat.plane import bulk
from espthrunat.plane.arrivals import Arrival, Slots
from espthrunat.plane.counters import Counters
from espthrunat.plane.inbound import InboundFlow
from espthrunat.plane.keepalive import Keepalives
from espthrunat.plane.sadb import SaDatabase
from espthrunat.wire.ip import TCP, UDP
from espthrunat.wire.udp import ESP_MARKER, KEEPALIVE

bulk.load()

LOCAL, PEER, ELSEWHERE = ("203.0.113.18", 500), ("203.0.113.2", 1024), ("203.0.113.66", 4500)
TUNNEL, ROAMING, TRANSPORT, ENDING = 0x1001, 0x1002, 0x1003, 0x1004
SPIS = {TUNNEL: "aes128gcm16", ROAMING: "aes128-sha256", TRANSPORT: "3des-sha1", ENDING: "null-sha256"}
SLOTS = Slots()


def keymat(spi: int) -> bytes:
    return bytes([spi & 0xFF]) * SUITES[SPIS[spi]].keymat_octets


@dataclass
class Way:
    """A way in whose kernel cuts super-packets as a real one does, and keeps all packets."""

    kernel: list[bytes] = field(default_factory=list)
    supers: int = 0
    takes_supers: bool = True
    selector: Selector | None = None  # of transport mode
    ike: list[bytes] = field(default_factory=list)
    said: list[FromPlane] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counters = Counters(lambda: 0.0)
        self.sadb = SaDatabase(lambda: 0.0)
        keepalives = Keepalives(lambda: 0.0)
        self.flow = InboundFlow(self.sadb, self, self, self.counters, keepalives)  # type: ignore[arg-type]
        for spi, suite in SPIS.items():
            transport = spi == TRANSPORT
            self.sadb.add(
                AddSa(
                    spi,
                    Direction.INBOUND,
                    suite,
                    keymat(spi),
                    Path(*LOCAL, *PEER),
                    Encapsulation.UDP,
                    self.selector or Selector(f"{LOCAL[0]}/32", f"{PEER[0]}/32")
                    if transport
                    else Selector("10.99.0.1/32", "10.1.0.1/32"),
                    f"policy{spi}",
                    Mode.TRANSPORT if transport else Mode.TUNNEL,
                    soft_octets=2000 if spi == ENDING else 0,
                    hard_octets=4000 if spi == ENDING else 0,
                    rebinding=spi == ROAMING,
                )
            )

    def write(self, packets: list[bytes], header: bytes = b"") -> None:
        self.kernel += packets

    def write_super(self, parts: Sequence[bytes], count: int) -> bool:
        if not self.takes_supers:
            return False
        whole = b"".join(bytes(part) for part in parts)
        segment = int.from_bytes(whole[4:6], "little")
        packets = cut(whole[10:], segment)
        assert len(packets) == count
        self.kernel += packets
        self.supers += 1
        return True

    def send(self, message: FromPlane) -> None:
        self.said.append(message)

    def send_datagrams(self, items: list[tuple[Path, bytes]]) -> None:
        self.ike += [datagram for _, datagram in items]

    def flows(self) -> dict[bytes, list[bytes]]:
        """What the kernel got, by addresses and ports, in order."""
        flows: dict[bytes, list[bytes]] = defaultdict(list)
        for packet in self.kernel:
            transport = packet[12:16] != bytes((10, 1, 0, 1))
            at = {TCP: 36, UDP: 26}.get(packet[9], 0)
            if transport:  # the kernel checks no checksum of these, and an atomic packet's identification means nothing
                packet = packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:at] + b"\0\0" + packet[at + 2 :]
            flows[packet[9:10] + packet[12:24]].append(packet)
        return flows

    def dropped(self) -> dict[str, int]:
        return {name: value for name, value in self.counters.values.items() if value}


def arrivals(datagrams: list[tuple[bytes, tuple[str, int]]], *, in_slots: bool) -> Iterator[Arrival]:
    """As the kernel joins them: equally long ones of one remote, and a shorter one behind them.

    Each is valid until the next, as with a real socket.
    """
    groups: list[list[tuple[bytes, tuple[str, int]]]] = []
    for datagram, remote in datagrams:
        group = groups[-1] if groups else []
        fits = group and group[0][1] == remote and len(group[-1][0]) == len(group[0][0]) and len(group) < 40
        shorter_ok = not in_slots and len(datagram) > 0
        if fits and (len(datagram) == len(group[0][0]) or (shorter_ok and len(datagram) < len(group[0][0]))):
            group.append((datagram, remote))
        else:
            groups.append([(datagram, remote)])
    for group in groups:
        segment, remote = len(group[0][0]), group[0][1]
        octets = sum(len(datagram) for datagram, _ in group)
        if in_slots and len(group) > 1:
            for slot, (datagram, _) in enumerate(group, 3):
                SLOTS.views[slot][:segment] = datagram
            arrival = Arrival(SLOTS, remote, 3, len(group), octets, segment)
        else:
            SLOTS.views[1][:octets] = b"".join(datagram for datagram, _ in group)
            arrival = Arrival(SLOTS, remote, 1, 1, octets, segment)
        assert arrival.datagrams() == [datagram for datagram, _ in group]
        yield arrival


class Sender:
    """The peer: seals streams whose numbers go on."""

    def __init__(self) -> None:
        self.sas = {spi: OutboundSa(spi, SUITES[suite], keymat(spi)) for spi, suite in SPIS.items()}
        self.sequence = 0xFFFFFF00
        self.identification = 0xFFF0

    def tcp(self, spi: int, octets: int, flags: int = ACK) -> bytes:
        inner = tcp(bytes([self.sequence & 0xFF]) * octets, self.sequence, flags)
        self.sequence = (self.sequence + octets) % (1 << 32)
        return self._seal(spi, TCP, inner)

    def udp(self, spi: int, octets: int) -> bytes:
        return self._seal(spi, UDP, udp(bytes([self.identification & 0xFF]) * octets))

    def other(self, spi: int, octets: int) -> bytes:
        return self._seal(spi, 1, b"\x03\x03" + bytes(octets))

    def wrong(self, spi: int, octets: int) -> bytes:
        """An inner packet of somebody else."""
        return ESP_MARKER + self.sas[spi].seal([ip_packet(TCP, bytes(octets)).replace(b"\x0a\x01", b"\x0a\x07", 1)])[0]

    def _seal(self, spi: int, protocol: int, inner: bytes) -> bytes:
        packet = ip_packet(protocol, inner, self.identification)
        self.identification = (self.identification + 1) % (1 << 16)
        content, next_header = (inner, protocol) if spi == TRANSPORT else (packet, 4)
        return ESP_MARKER + self.sas[spi].seal([content], next_header)[0]


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
