"""Packets without an SA wait for one: a few, in order, and not for long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

import msgspec
import pytest
from plane_world import (
    HERE,
    INNER,
    OUTER,
    Namespace,
    keymat,
    plane,
    two_namespaces,
    udp_packet,
    what_is_missing,
)

from espthrunat.esp.sa import InboundSa, OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import Acquire, DeletePolicy, Direction, Used
from espthrunat.plane.counters import Counters
from espthrunat.plane.held import HeldPackets
from espthrunat.wire.ip import IpHeader, parse_ipv4
from espthrunat.wire.udp import ESP_MARKER

missing = what_is_missing()
needs_devices = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
SUITE = SUITES["aes128gcm16"]


class World:
    """Packets on a clock that goes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.counters = Counters(lambda: self.now)
        self.held = HeldPackets(self.counters, lambda: self.now)

    def hold(self, policy: str, *payloads: bytes, destination: str = INNER[1]) -> None:
        for payload in payloads:
            packet = udp_packet(INNER[0], destination, payload)
            header = parse_ipv4(packet)
            assert header is not None
            self.held.hold(policy, header, packet)

    def take(self, policy: str, destination: str = "") -> list[bytes]:
        def covered(header: IpHeader) -> bool:
            return not destination or header.destination == int.from_bytes(
                bytes(map(int, destination.split("."))), "big"
            )

        return [packet[28:] for packet in self.held.take(policy, covered)]

    @property
    def dropped(self) -> int:
        return self.counters.values["drop_no_sa"]


@pytest.fixture
def world() -> World:
    return World()


def test_they_come_in_order_and_once(world: World) -> None:
    world.hold("a", b"1", b"2")
    world.hold("b", b"x")
    world.hold("a", b"3")
    assert (world.take("a"), world.take("a"), world.take("b")) == ([b"1", b"2", b"3"], [], [b"x"])
    assert (world.dropped, world.held.due()) == (0, None)


def test_those_that_the_sa_does_not_cover_go_on_waiting(world: World) -> None:
    """One policy may have many peers, each with an SA of its own."""
    world.hold("a", b"hers", destination="10.2.0.7")
    world.hold("a", b"his", destination="10.2.0.8")
    assert world.take("a", "10.2.0.8") == [b"his"]
    assert world.take("a", "10.2.0.7") == [b"hers"]


def test_two_seconds_are_the_end(world: World) -> None:
    world.hold("a", b"old")
    world.now += 1.5
    world.hold("a", b"young")
    assert world.held.due() == 1002.0
    world.held.expire()
    assert world.dropped == 0
    world.now = 1002.0
    world.held.expire()
    assert (world.dropped, world.held.due(), world.take("a")) == (1, 1003.5, [b"young"])


def test_a_policy_that_goes_takes_its_packets_along(world: World) -> None:
    world.hold("a", b"1", b"2")
    world.hold("b", b"x")
    world.held.forget("a")
    assert (world.dropped, world.take("a"), world.take("b")) == (2, [], [b"x"])


def test_one_policy_may_have_so_many_and_leaves_room_to_others(world: World) -> None:
    world.hold("a", *(b"%d" % number for number in range(200)))
    assert world.dropped == 72
    world.hold("b", b"x")
    assert world.take("a") == [b"%d" % number for number in range(128)], "those that came first"
    world.hold("a", b"again")
    assert (world.take("a"), world.take("b")) == ([b"again"], [b"x"])


def test_memory_is_bounded_whatever_the_number_of_policies(world: World) -> None:
    for number in range(1000):
        world.hold(f"peer@{number}", *[bytes(60_000)] * 2)
    kept = 2000 - world.dropped
    assert 60 < kept < 70, "of 60 kB each, in 4 MiB"
    world.now += 2
    world.held.expire()
    assert (world.dropped, world.held.due()) == (2000, None)
    world.hold("a", *[bytes(60_000)] * 60)
    assert world.dropped == 2000, "all room is there again"


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


@needs_devices
def test_a_responder_answers_what_came_before_message_3(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """The initiator sends with its message 3, but only that, or such a packet, lets the responder send."""
    here, there = sides
    count = 50
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(INNER[0], 7) as program,
        there.udp(OUTER[1], 500) as peer,
    ):
        left.send(HERE.policy, HERE.sa(IN, 0x1001))
        left.stats()
        questions = OutboundSa(0x1001, SUITE, keymat(0x1001))
        for number in range(count):
            (packet,) = questions.seal([udp_packet(INNER[1], INNER[0], b"question %d" % number)])
            peer.sendto(ESP_MARKER + packet, (OUTER[0], 500))
            assert program.recv(100) == b"question %d" % number
            program.sendto(b"answer %d" % number, (INNER[1], 7))
        assert left.expect(Used).spi == 0x1001
        assert left.expect(Acquire) == Acquire("peer")
        left.wait_for("tun_in", count)
        assert left.stats().counters.get("udp_out", 0) == 0
        left.send(HERE.sa(OUT, 0x1002))
        answers = InboundSa(0x1002, SUITE, keymat(0x1002))
        for number in range(count):
            (inner,) = answers.open([peer.recv(2000)[8:]])
            assert isinstance(inner, bytes)
            assert inner[28:] == b"answer %d" % number
        assert "drop_no_sa" not in left.stats().counters


@needs_devices
def test_what_waits_in_vain_is_dropped_and_counted(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left, here.udp(INNER[0], 7) as program:
        left.send(HERE.policy)
        left.stats()
        program.sendto(b"in vain", (INNER[1], 7))
        left.wait_for("tun_in")
        left.send(DeletePolicy("peer"), HERE.policy, HERE.sa(OUT, 0x1002))
        counters = left.stats().counters
        assert (counters["drop_no_sa"], counters.get("udp_out", 0)) == (1, 0)


@needs_devices
def test_nothing_waits_for_a_fallback_which_has_no_sas(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """What goes to a pool whose address nobody has must not reach who gets it next."""
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left, here.udp(INNER[0], 7) as program:
        left.send(msgspec.structs.replace(HERE.policy, fallback=True))
        left.stats()
        program.sendto(b"nobody's", (INNER[1], 7))
        assert left.wait_for("tun_in").counters["drop_no_sa"] == 1


@needs_devices
def test_what_is_for_a_peer_that_has_gone_does_not_wait_for_the_next(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    """Where it came from anywhere: another one may have its inner address next. But who asks is answered."""
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left, here.udp(INNER[0], 7) as program:
        left.send(msgspec.structs.replace(HERE.policy, on_demand=False))
        left.stats()
        program.sendto(b"to who has gone", (INNER[1], 7))
        assert left.wait_for("tun_in").counters["drop_no_sa"] == 1
        left.send(HERE.sa(IN, 0x1001))
        left.stats()
        program.sendto(b"to who is here", (INNER[1], 7))
        left.wait_for("tun_in", 2)
        left.send(HERE.sa(OUT, 0x1002))
        counters = left.stats().counters
        assert (counters["drop_no_sa"], counters["udp_out"]) == (1, 1)
