"""Super-packets and runs of packets leave in trains of ESP datagrams that hold what they would hold one by one."""

from __future__ import annotations

import pytest
from outbound_world import WayOut, super_packet
from plain_segments import cut, ip_packet, udp

from espthrunat.esp.sa import LAST_SEQUENCE
from espthrunat.esp.suites import SUITES
from espthrunat.messages import (
    Acquire,
    Expire,
    Mode,
)
from espthrunat.plane import bulk
from espthrunat.plane.super_packet import SuperPacket
from espthrunat.wire.ip import TCP, UDP

SYN = 0x02

bulk.load()

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
