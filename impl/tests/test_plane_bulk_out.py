"""Super-packets and runs of packets leave in trains of ESP datagrams that hold what they would hold one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from plain_segments import ACK, PSH, cut, ip_packet, tcp, udp

from espthrunat.esp.policy import Selectors
from espthrunat.esp.sa import LAST_SEQUENCE, SOFT_SEQUENCE, Drop, InboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import (
    Acquire,
    AddSa,
    Direction,
    Encapsulation,
    Expire,
    FromPlane,
    Mode,
    Path,
    Selector,
)
from espthrunat.plane import bulk
from espthrunat.plane.counters import Counters
from espthrunat.plane.keepalive import Keepalives
from espthrunat.plane.outbound import OutboundFlow
from espthrunat.plane.sadb import Outbound, SaDatabase
from espthrunat.plane.super_packet import SuperPacket
from espthrunat.plane.udp_socket import TooLongError
from espthrunat.wire.ip import TCP, UDP
from espthrunat.wire.udp import ESP_MARKER

SYN = 0x02

bulk.load()

LOCAL = ("203.0.113.18", 500)


@dataclass
class Wire:
    """A socket that keeps the datagrams of each train as a real one sends them."""

    local: tuple[str, int] = LOCAL
    datagrams: list[bytes] = field(default_factory=list)
    trains: int = 0
    sent: list[tuple[tuple[str, int], int]] = field(default_factory=list)  # to whom, and how many, by call
    most: int = 65507  # octets that the path carries

    def send(self, datagrams: Sequence[bytes], remote: tuple[str, int]) -> int:
        if any(len(datagram) > self.most for datagram in datagrams):
            raise TooLongError
        self.sent.append((remote, len(datagrams)))
        self.datagrams += datagrams
        return len(datagrams)

    def send_train(self, parts: Sequence[bytes], segment: int, count: int, remote: tuple[str, int]) -> int:
        whole = b"".join(bytes(part) for part in parts)
        assert len(whole) <= 65507
        assert count <= 64
        self.datagrams += (made := [whole[at : at + segment] for at in range(0, len(whole), segment)])
        assert len(made) == count
        self.trains += 1
        return count


class WayOut:
    """A way out with one SA for all traffic, and the peer's end of it."""

    def __init__(self, suite: str, mode: Mode = Mode.TUNNEL, hard_octets: int = 0) -> None:
        self.wire = Wire()
        self.said: list[FromPlane] = []
        self.counters = Counters(lambda: 0.0)
        self.sadb = SaDatabase(lambda: 0.0)
        keys = bytes(SUITES[suite].keymat_octets)
        selector = Selector("10.1.0.1/32", "10.99.0.1/32")
        path = Path("10.1.0.1", 500, "10.99.0.1", 500)
        udp_encapsulation = Encapsulation.UDP
        self.sa = AddSa(
            7, Direction.OUTBOUND, suite, keys, path, udp_encapsulation, selector, "p", mode, 0, hard_octets
        )
        self.sadb.add(self.sa)
        self.sadb.policies.add("p", Selectors.of(selector))
        keepalives = Keepalives(lambda: 0.0)
        self.flow = OutboundFlow(self.sadb, self.wire, self, self.counters, keepalives)  # type: ignore[arg-type]
        self.receiver = self.new_receiver()

    def new_receiver(self) -> InboundSa:
        return InboundSa(7, SUITES[self.sa.suite], self.sa.keymat, next_header=None)

    def send(self, message: FromPlane) -> None:
        self.said.append(message)

    def dropped(self) -> dict[str, int]:
        return {name: value for name, value in self.counters.values.items() if name.startswith("drop")}

    def arrived(self) -> list[bytes]:
        """What the peer finds in all datagrams."""
        assert all(datagram.startswith(ESP_MARKER) for datagram in self.wire.datagrams)
        opened = self.receiver.open_any([datagram[8:] for datagram in self.wire.datagrams])
        return [inner if isinstance(inner, Drop) else inner[1] for inner in opened]  # type: ignore[misc]


def super_packet(octets: int, segment: int, protocol: int = TCP, flags: int = ACK | PSH) -> SuperPacket:
    payload = random.Random(octets).randbytes(octets)
    packet = ip_packet(protocol, tcp(payload, 5, flags) if protocol == TCP else udp(payload), 9)
    made = SuperPacket.of(packet, segment)
    assert made is not None
    return made


every_suite = pytest.mark.parametrize("suite", SUITES)


@every_suite
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_super_packets_leave_as_the_packets_that_they_stand_for(suite: str, protocol: int) -> None:
    """Full trains, one that has room for its short last datagram and one that has not, and one segment alone."""
    way = WayOut(suite)
    expected = []
    for octets, segment in (
        (61000, 1378),
        (1378 * 44, 1378),
        (60000, 1000),
        (9000, 8900),
        (50, 1378),
        (8, 7),
        (200, 3),
    ):
        packet = super_packet(octets, segment, protocol)
        expected += cut(packet.octets, segment)
        way.flow.packets([packet])
    assert way.arrived() == expected
    assert way.wire.trains < len(expected) / 4
    assert not way.dropped()


@every_suite
def test_the_order_of_packets_and_super_packets_is_kept(suite: str) -> None:
    way = WayOut(suite)
    packets: list[bytes | SuperPacket] = []
    for number in range(8):
        packets += [ip_packet(UDP, udp(bytes([number]) * 50), n) for n in range(number * 2)]
        packets.append(super_packet(1000 + number, 300))
        packets += [ip_packet(UDP, udp(bytes([number]) * (50 + n)), n) for n in range(number)]
    way.flow.packets(packets)
    assert way.arrived() == [
        inner
        for packet in packets
        for inner in (cut(packet.octets, 300) if isinstance(packet, SuperPacket) else [packet])
    ]


@every_suite
def test_transport_mode_leaves_out_ip_headers_and_udp_checksums(suite: str) -> None:
    way = WayOut(suite, Mode.TRANSPORT)
    stream, datagrams = super_packet(5000, 900), super_packet(5000, 900, UDP)
    way.flow.packets([stream, datagrams])
    expected = [packet[20:] for packet in cut(stream.octets, 900)]
    expected += [packet[20:26] + b"\0\0" + packet[28:] for packet in cut(datagrams.octets, 900)]
    assert way.arrived() == expected


@pytest.mark.draft("SA-5")
def test_an_outbound_sa_ends_amid_a_super_packet() -> None:
    way = WayOut("aes128gcm16", hard_octets=3000)
    packet = super_packet(5000, 900)
    way.flow.packets([packet])
    assert way.arrived() == cut(packet.octets, 900)[:3]
    assert [type(message) for message in way.said] == [Expire, Acquire]
    assert way.dropped() == {"drop_no_sa": 3}


def test_the_rest_of_a_super_packet_waits_for_the_next_sa() -> None:
    way = WayOut("aes128gcm16", hard_octets=3000)
    way.flow.add_on_demand_policy("p")
    packet = super_packet(5000, 900)
    way.flow.packets([packet])
    assert not way.dropped()
    way.sadb.add(way.sa)
    way.flow.release("p")
    before, after = way.wire.datagrams[:3], way.wire.datagrams[3:]
    way.wire.datagrams = before
    assert way.arrived() == cut(packet.octets, 900)[:3]
    way.wire.datagrams, way.receiver = after, way.new_receiver()
    assert way.arrived() == cut(packet.octets, 900)[3:]


def test_a_super_packet_without_an_sa_waits_for_one() -> None:
    way = WayOut("aes128gcm16")
    way.flow.add_on_demand_policy("p")
    (outbound,) = way.sadb.outbound()
    way.sadb.remove(outbound)
    packet = super_packet(5000, 900)
    way.flow.packets([packet])
    assert not way.wire.datagrams
    way.sadb.add(way.sa)
    way.flow.release("p")
    assert way.arrived() == cut(packet.octets, 900)


@pytest.mark.draft("SA-5")
def test_sequence_numbers_that_do_not_suffice_send_nothing() -> None:
    way = WayOut("aes128gcm16")
    (outbound,) = way.sadb.outbound()
    outbound.sa.claim(LAST_SEQUENCE - 5)
    way.flow.packets([super_packet(5400, 900)])
    assert not way.wire.datagrams
    assert way.dropped() == {"drop_no_sa": 6}
    assert [message.reason for message in way.said if isinstance(message, Expire)] == ["sequence"]


@pytest.mark.draft("WIRE-6")
def test_what_a_path_does_not_carry_is_cut_smaller_or_its_sender_is_told() -> None:
    way = WayOut("aes128gcm16")
    (outbound,) = way.sadb.outbound()
    outbound.room = 600
    told: list[tuple[bytes, int]] = []
    way.flow.tell_sender = lambda packet, most: told.append((packet, most))
    stream, datagrams = super_packet(5000, 900), super_packet(5000, 900, UDP)
    small, large = (ip_packet(UDP, udp(bytes(octets))) for octets in (572, 573))
    way.flow.packets([stream, datagrams, small, large])
    assert way.arrived() == [*cut(stream.octets, 560), small]
    assert told == [(datagrams.octets, 600), (large, 600)]
    assert way.dropped() == {"drop_too_long": 7}


def test_until_numpy_is_there_super_packets_are_cut_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "is_ready", lambda: False)
    way = WayOut("aes128gcm16")
    packet = super_packet(61000, 1378)
    way.flow.packets([packet])
    assert way.arrived() == cut(packet.octets, 1378)
    assert way.wire.trains == 0


# packets that come alone, after others of their flow


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


def test_a_later_fragment_alone_is_not_taken_for_a_packet_of_the_flow_that_its_octets_look_like() -> None:
    way = WayOut("aes128gcm16")
    way.sadb.policies.add("p", Selectors.of(Selector("10.1.0.1/32", "10.99.0.1/32", UDP, 0, 80)))
    first = ip_packet(UDP, udp(b"first"))
    way.flow.packets([first])
    assert way.arrived() == [first]
    way.flow.packets([first[:6] + b"\x00\x09" + first[8:]])
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
