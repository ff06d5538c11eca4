"""Packets that come alone, or few at a time, fare as they would among many, by a shorter way."""

from __future__ import annotations

import weakref
from unittest.mock import Mock

import msgspec
import pytest
from inbound_world import LOCAL, PEER, TUNNEL, Sender, Way
from outbound_world import WayOut
from plain_segments import ip_packet, tcp, udp

from espthrunat.esp.policy import Selectors
from espthrunat.esp.sa import SOFT_SEQUENCE, InboundSa, OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import AddSa, DeleteSa, Direction, Encapsulation, Expire, Path, Selector
from espthrunat.plane import bulk, inbound
from espthrunat.plane.sadb import Outbound
from espthrunat.wire.ip import ICMP, TCP, UDP, parse_ipv4
from espthrunat.wire.udp import ESP_MARKER

SYN = 0x02

bulk.load()

FLOWS = {
    "UDP": [ip_packet(UDP, udp(bytes(octets)), octets) for octets in (5, 6, 200)],
    "TCP": [ip_packet(TCP, tcp(b"data", sequence)) for sequence in (5, 9, 13)],
    # What pings have where others have ports: a checksum, which is another one each time.
    "ICMP": [ip_packet(ICMP, bytes((8, 0, number, 255, 0, 7, 0, number)) + bytes(56), number) for number in range(3)],
}
OTHERWISE = ["later fragment", "fragment much later", "IP options"]
every_flow = pytest.mark.parametrize("packets", FLOWS.values(), ids=FLOWS)
every_suite = pytest.mark.parametrize("suite", SUITES)


def changed(packet: bytes, at: int, octets: bytes) -> bytes:
    return packet[:at] + octets + packet[at + len(octets) :]


def known_flow(way: WayOut) -> None:
    """A first packet, which the policies are asked for."""
    way.flow.packets([ip_packet(UDP, udp(b"first"))])
    assert len(way.wire.datagrams) == 1
    way.wire.datagrams.clear()


@every_suite
def test_packets_that_come_alone_leave_as_they_are(suite: str) -> None:
    way = WayOut(suite)
    packets = [ip_packet(UDP, udp(bytes([octets]) * octets), octets) for octets in (0, 1, 200, 200)]
    for packet in packets:
        way.flow.packets([packet])
    assert way.arrived() == packets
    (outbound,) = way.sadb.outbound()
    assert (outbound.sa.packets, outbound.sa.octets) == (4, sum(map(len, packets)))
    assert way.counters.values["udp_out"] == 3, "the first went by the socket's own method, which counts"


@pytest.mark.draft("KA-2")
def test_a_packet_that_leaves_alone_puts_off_the_keepalive() -> None:
    way = WayOut("aes128gcm16")
    known_flow(way)
    way.keepalives.set(way.sa.path, 10.0)
    way.now = 5.0
    way.flow.packets([FLOWS["UDP"][0]])
    way.now = 10.0
    assert not way.keepalives.take_due()
    way.now = 15.0
    assert way.keepalives.take_due() == [way.sa.path]


@every_flow
def test_the_packets_of_a_flow_ask_the_policies_once(packets: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Until something changes."""
    way = WayOut("aes128gcm16")
    lookup = Mock(wraps=way.sadb.policies.lookup)
    monkeypatch.setattr(way.sadb.policies, "lookup", lookup)
    for packet in packets:
        way.flow.packets([packet])
    assert lookup.call_count == 1
    way.sadb.policies.add("p", Selectors.of(Selector("10.1.0.1/32", "10.99.0.1/32")))
    way.flow.packets(packets[:1])
    assert lookup.call_count == 2
    assert way.arrived() == [*packets, packets[0]]


@pytest.mark.parametrize("octets", range(24))
def test_what_is_too_short_for_a_flow_is_no_packet(octets: int) -> None:
    way = WayOut("aes128gcm16")
    known_flow(way)
    way.flow.packets([ip_packet(UDP, udp(b"first"))[:octets]])
    assert way.dropped() == {"drop_not_ipv4": 1}
    assert not way.wire.datagrams


@pytest.mark.parametrize("refused_by", ["the SA", "the kernel"])
def test_the_sender_of_a_lone_packet_that_is_too_long_is_told(refused_by: str) -> None:
    way = WayOut("aes128gcm16")
    known_flow(way)
    (outbound,) = way.sadb.outbound()
    told: list[tuple[bytes, int]] = []
    learned: list[object] = []

    def learn(of: object) -> None:
        learned.append(of)
        outbound.room = 600

    way.flow.tell_sender = lambda packet, most: told.append((packet, most))
    way.flow.learn_path = learn
    if refused_by == "the SA":
        outbound.room = 600
    else:
        way.wire.most = 700
    packet = ip_packet(UDP, udp(bytes(900)))
    way.flow.packets([packet])
    assert told == [(packet, 600)]
    assert learned == ([] if refused_by == "the SA" else [outbound])
    assert way.dropped() == {"drop_too_long": 1}


def test_a_connection_that_opens_alone_is_told_what_fits() -> None:
    way = WayOut("aes128gcm16")
    (outbound,) = way.sadb.outbound()
    outbound.room = 600
    for sequence in (5, 6):  # the second SYN is of a known flow
        way.flow.packets([ip_packet(TCP, tcp(b"", sequence, SYN, b"\2\4\x05\xb4"))])
    first, second = (packet[42:44] for packet in way.arrived())
    assert first == second == (560).to_bytes(2, "big")


@pytest.mark.parametrize(("at", "octets"), [(6, b"\x00\x09"), (6, b"\x01\x00"), (0, b"\x46")], ids=OTHERWISE)
def test_what_has_other_octets_for_ports_is_not_taken_for_a_packet_of_a_flow(at: int, octets: bytes) -> None:
    way = WayOut("aes128gcm16")
    way.sadb.policies.add("p", Selectors.of(Selector("10.1.0.1/32", "10.99.0.1/32", UDP, 0, 80)))
    first = ip_packet(UDP, udp(b"first"))
    way.flow.packets([first])
    assert way.arrived() == [first]
    way.flow.packets([changed(first, at, octets)])
    assert way.dropped() == {"drop_no_policy": 1}


def test_a_lone_packet_goes_by_the_newest_sa() -> None:
    way = WayOut("aes128gcm16")
    known_flow(way)
    newer = msgspec.structs.replace(way.sa, spi=8)
    way.sadb.add(newer)
    way.flow.packets([ip_packet(UDP, udp(b"second"))])
    assert [datagram[8:12] for datagram in way.wire.datagrams] == [b"\0\0\0\x08"]


@pytest.mark.draft("SA-5")
def test_lone_packets_end_an_sa_as_others_do() -> None:
    way = WayOut("aes128gcm16")
    known_flow(way)
    (outbound,) = way.sadb.outbound()
    outbound.sa.claim(SOFT_SEQUENCE)
    way.flow.packets([ip_packet(UDP, udp(b"soft"))])
    assert [(message.reason, message.hard) for message in way.said if isinstance(message, Expire)] == [
        ("sequence", False)
    ]
    way = WayOut("aes128gcm16", hard_octets=100)
    for octets in (50, 1):
        way.flow.packets([ip_packet(UDP, udp(bytes(octets)))])
    assert len(way.arrived()) == 1
    assert [(message.reason, message.hard) for message in way.said if isinstance(message, Expire)] == [("octets", True)]


# the way in


def alone(way: Way, peer: OutboundSa, packet: bytes) -> None:
    """A packet arrives as the only one."""
    way.flow.lone(ESP_MARKER + peer.seal([packet])[0], PEER, LOCAL)


def known_peer(way: Way, packet: bytes) -> OutboundSa:
    """The peer of an SA that was used: by its first packet, and by one that came alone."""
    peer = Sender().sas[TUNNEL]
    for _ in range(2):
        alone(way, peer, packet)
    return peer


@every_flow
def test_packets_of_a_flow_that_come_alone_are_looked_at_once(
    packets: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    way = Way()
    peer = known_peer(way, packets[0])
    parse = Mock(wraps=parse_ipv4)
    monkeypatch.setattr(inbound, "parse_ipv4", parse)
    for packet in packets:
        alone(way, peer, packet)
    assert not parse.called
    assert way.kernel == [packets[0], packets[0], *packets]
    assert not [name for name in way.dropped() if name.startswith("drop")]


DATA, PING = FLOWS["TCP"][0], FLOWS["ICMP"][0]
ODD = {
    "shorter than it says": DATA[:-1],
    "longer than it says": DATA + b"x",
    "a first fragment": changed(DATA, 6, b"\x20\x00"),
    "a later fragment": changed(DATA, 6, b"\x00\x09"),
    "of IPv6": changed(DATA, 0, b"\x65"),
    "with options": changed(DATA, 0, b"\x46"),
    "of other ports": changed(DATA, 20, b"\x11\x11"),
    "from elsewhere": changed(DATA, 12, b"\x0a\x07"),
    "of another protocol": changed(DATA, 9, b"\x11"),
    "a SYN": ip_packet(TCP, tcp(b"", 5, SYN, b"\2\4\x05\xb4")),
    "a cut TCP header": ip_packet(TCP, tcp(b"")[:12]),
    "of no octets": b"",
    "of few octets": DATA[:9],
    "without ports": DATA[:20],
    "another ping": changed(PING, 12, b"\x0a\x07"),
}


@pytest.mark.parametrize(("at", "octets"), [(6, b"\x00\x09"), (6, b"\x01\x00"), (0, b"\x46")], ids=OTHERWISE)
def test_what_arrives_with_other_octets_for_ports_is_not_taken_for_a_packet_of_a_flow(at: int, octets: bytes) -> None:
    way = Way()
    peer = narrow_peer(way)
    first = ip_packet(UDP, udp(b"f" * 12))
    for packet in (first, first, changed(first, at, octets)):
        alone(way, peer, packet)
    assert way.kernel == [first, first]
    assert way.dropped()["drop_inner_selector"] == 1


def test_a_flow_of_one_sa_is_none_of_another() -> None:
    way = Way()
    peer = known_peer(way, DATA)
    narrow = narrow_peer(way)
    for _ in range(2):
        alone(way, narrow, FLOWS["UDP"][0])
    for sender in (peer, narrow, narrow):
        alone(way, sender, DATA)
    assert way.kernel[-1] == DATA
    assert way.dropped()["drop_inner_selector"] == 2


def test_keys_do_not_outlive_their_sas() -> None:
    """Whatever is kept to know the next packet of a flow."""
    way_in, way_out = Way(), WayOut("aes128gcm16")
    known_peer(way_in, DATA)
    known_flow(way_out)
    path = Path(*LOCAL, *PEER)
    inbound, outbound = way_in.sadb.find_inbound(TUNNEL, PEER, LOCAL), next(way_out.sadb.outbound())
    assert inbound is not None
    inbound_sa, outbound_sa = weakref.ref(inbound.sa), weakref.ref(outbound.sa)
    del inbound, outbound
    way_in.sadb.delete(DeleteSa(TUNNEL, Direction.INBOUND, path))
    way_out.sadb.delete(DeleteSa(way_out.sa.spi, Direction.OUTBOUND, way_out.sa.path))
    assert inbound_sa() is None
    assert outbound_sa() is None


def narrow_peer(way: Way) -> OutboundSa:
    """The peer of an SA that carries only UDP to port 80."""
    selector, suite = Selector("10.99.0.1/32", "10.1.0.1/32", UDP, 80), "aes128gcm16"
    keys = bytes(SUITES[suite].keymat_octets)
    way.sadb.add(AddSa(9, Direction.INBOUND, suite, keys, Path(*LOCAL, *PEER), Encapsulation.UDP, selector, "narrow"))
    return OutboundSa(9, SUITES[suite], keys)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_packets_that_come_alone_fare_as_they_would_among_others(odd: bytes) -> None:
    """Though they look like others of a flow that is known."""
    lone, long = Way(), Way()
    for way in (lone, long):
        way.flow.mtu = 1000
        peer = Sender().sas[TUNNEL]
        for packet in (DATA, DATA, PING, PING):
            alone(way, peer, packet)
        sealed = ESP_MARKER + peer.seal([odd])[0]
        if way is lone:
            way.flow.lone(sealed, PEER, LOCAL)
        else:
            way.flow.datagrams([(sealed, PEER)], LOCAL)
    assert lone.kernel == long.kernel
    assert lone.dropped() == long.dropped()


# a few packets of many SAs


def with_second_sa(peer: str = "10.99.0.1") -> WayOut:
    """Packets to port 81 go by SPI 8, all others by 7; both SAs may lead to one peer."""
    way = WayOut("aes128gcm16")
    way.sadb.policies.add("p", Selectors.of(Selector("10.1.0.1/32", "10.99.0.1/32", UDP, 0, 80)))
    way.sadb.policies.add("q", Selectors.of(Selector("10.1.0.1/32", "10.99.0.1/32", UDP, 0, 81)))
    way.sadb.add(msgspec.structs.replace(way.sa, spi=8, policy="q", path=Path("10.1.0.1", 500, peer, 500)))
    return way


def mixed(octets: int = 30) -> list[bytes]:
    return [ip_packet(UDP, udp(bytes(octets), (4000, port)), n) for n, port in enumerate((80, 81, 80, 81, 81))]


def by_spi(way: WayOut) -> dict[int, list[bytes]]:
    """What the peer finds in the datagrams of each SA."""
    found: dict[int, list[bytes]] = {}
    for spi in (7, 8):
        mine = [packet[8:] for packet in way.wire.datagrams if packet[8:12] == spi.to_bytes(4, "big")]
        opened = InboundSa(spi, SUITES[way.sa.suite], way.sa.keymat).open(mine)
        found[spi] = [inner for inner in opened if isinstance(inner, bytes)]
    return found


@pytest.mark.parametrize("peer", ["10.99.0.1", "10.99.0.2"])
def test_few_packets_of_several_sas_with_one_peer_go_together(peer: str) -> None:
    way = with_second_sa(peer)
    packets = mixed()
    way.flow.packets(packets)
    assert by_spi(way) == {7: packets[0:3:2], 8: [packets[1], *packets[3:]]}
    if peer == "10.99.0.1":
        assert way.wire.sent == [((peer, 500), 5)]
    else:
        assert way.wire.sent == [(("10.99.0.1", 500), 2), ((peer, 500), 3)]


def test_all_senders_are_told_when_packets_that_go_together_are_too_long() -> None:
    way = with_second_sa()
    way.wire.most = 700
    told: list[tuple[bytes, int]] = []
    learned: list[int] = []

    def learn(of: Outbound) -> None:
        learned.append(of.sa.spi)
        of.room = 600

    way.flow.tell_sender = lambda packet, most: told.append((packet, most))
    way.flow.learn_path = learn
    packets = mixed(900)
    way.flow.packets(packets)
    assert learned == [7, 8]
    assert sorted(told) == sorted((packet, 600) for packet in packets)
    assert way.dropped() == {"drop_too_long": 5}


def test_few_packets_of_an_sa_that_nears_its_end_go_by_themselves_and_say_so() -> None:
    way = with_second_sa()
    ending = next(outbound for outbound in way.sadb.outbound() if outbound.sa.spi == 8)
    ending.sa.claim(SOFT_SEQUENCE)
    way.flow.packets(mixed())
    assert [number for _, number in way.wire.sent] == [3, 2]
    assert [message.spi for message in way.said if isinstance(message, Expire)] == [8]
