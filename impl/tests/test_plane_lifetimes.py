"""An SA says when it is used, ends when it has carried enough, and moves only with proof; keepalives fill silences."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path as FilePath

import msgspec
import pytest
from plane_world import (
    DEADLINE,
    HERE,
    INNER,
    OUTER,
    Namespace,
    PlaneProcess,
    keymat,
    plane,
    transport_policy,
    transport_sa,
    two_namespaces,
    udp_packet,
    what_is_missing,
)

from espthrunat.esp.sa import OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import (
    Acquire,
    AddSa,
    Datagrams,
    DeleteSa,
    Direction,
    Expire,
    Keepalive,
    Move,
    Path,
    Rebound,
    SaStats,
    Stats,
    Used,
)
from espthrunat.stats_parts import StatsParts
from espthrunat.wire.udp import ESP_MARKER, KEEPALIVE

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
SUITE = SUITES["aes128gcm16"]
SPI = 0x1001
OURS = (OUTER[0], 500)
ELSEWHERE = Path(OUTER[0], 500, OUTER[1], 7777)
PACKET = udp_packet(INNER[1], INNER[0], bytes(72))  # 100 octets


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def sender(spi: int = SPI) -> OutboundSa:
    return OutboundSa(spi, SUITE, keymat(spi))


def rebinding(sa: AddSa) -> AddSa:
    return msgspec.structs.replace(sa, rebinding=True)


def test_the_first_authentic_packet_is_told_once(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, there.udp(OUTER[1], 500) as peer:
        left.send(HERE.sa(IN, SPI))
        left.stats()
        first, second, forged = sender().seal([PACKET] * 3)
        peer.sendto(ESP_MARKER + forged[:-1] + bytes([forged[-1] ^ 1]), OURS)
        left.wait_for("drop_esp_icv")
        assert left.has_nothing_to_say()
        peer.sendto(ESP_MARKER + first, OURS)
        assert left.expect(Used) == Used(SPI, HERE.path)
        peer.sendto(ESP_MARKER + second, OURS)
        left.wait_for("tun_out", 2)
        assert left.has_nothing_to_say()


@pytest.mark.draft("SA-5")
def test_an_inbound_sa_ends_with_its_octets(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, there.udp(OUTER[1], 500) as peer:
        left.send(msgspec.structs.replace(HERE.sa(IN, SPI), soft_octets=250, hard_octets=500))
        left.stats()
        for packet in sender().seal([PACKET] * 10):
            peer.sendto(ESP_MARKER + packet, OURS)
        assert left.expect(Expire) == Expire(SPI, IN, "octets", hard=False)
        assert left.expect(Expire) == Expire(SPI, IN, "octets", hard=True)
        left.wait_for("udp_in", 10)
        counters = left.stats().counters
        assert (counters["tun_out"], counters["drop_unknown_spi"]) == (5, 5)
        left.expect(Used)
        assert left.has_nothing_to_say()


@pytest.mark.draft("SA-5")
def test_an_outbound_sa_ends_with_its_octets_and_an_older_one_takes_over(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left, here.udp(INNER[0], 7) as program:
        left.send(HERE.policy, HERE.sa(OUT, 0x3001))
        left.send(msgspec.structs.replace(HERE.sa(OUT, 0x3002), soft_octets=250, hard_octets=500))
        left.stats()

        def say() -> None:
            program.sendto(bytes(72), (INNER[1], 7))

        for number in range(1, 6):
            say()
            left.wait_for("udp_out", number)
        assert left.expect(Expire) == Expire(0x3002, OUT, "octets", hard=False)
        assert left.has_nothing_to_say()
        say()
        stats = left.wait_for("udp_out", 6)
        assert left.expect(Expire) == Expire(0x3002, OUT, "octets", hard=True)
        assert "drop_no_sa" not in stats.counters, "what the one could not carry, the other did"
        assert [(sa.spi, sa.packets) for sa in stats.sas] == [(0x3001, 1)]
        left.send(DeleteSa(0x3001, OUT, HERE.path))
        left.stats()
        say()
        assert left.expect(Acquire) == Acquire("peer")


class Moving:
    """A plane with a pair of SAs and a keepalive, and two sockets of the peer: where it was, and elsewhere."""

    def __init__(self, left: PlaneProcess, inbound: AddSa) -> None:
        self.left = left
        self.sender = sender()
        left.send(HERE.policy, inbound, HERE.sa(OUT, 0x3001), HERE.sa(OUT, 0x3002))
        left.stats()

    def paths(self) -> set[Path]:
        return {sa.path for sa in self.left.stats().sas}


@pytest.mark.draft("SEC-4")
def test_a_fresh_authentic_packet_moves_the_sa(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(INNER[0], 7) as program,
        there.udp(OUTER[1], 500) as old,
        there.udp(OUTER[1], 7777) as new,
    ):
        world = Moving(left, rebinding(HERE.sa(IN, SPI)))
        first, second, third = world.sender.seal([PACKET] * 3)
        old.sendto(ESP_MARKER + first, OURS)
        assert program.recv(100) == bytes(72)
        new.sendto(ESP_MARKER + second, OURS)
        assert left.expect(Rebound) == Rebound(SPI, HERE.path, ELSEWHERE)
        assert program.recv(100) == bytes(72), "the packet itself is delivered"
        program.sendto(b"answer", (INNER[1], 7))
        assert new.recv(2000).startswith(ESP_MARKER)
        assert world.paths() == {ELSEWHERE}
        new.sendto(ESP_MARKER + third, OURS)
        assert program.recv(100) == bytes(72)
        # The daemon may not know yet where the SAs are now.
        left.send(DeleteSa(SPI, IN, HERE.path), DeleteSa(0x3001, OUT, HERE.path), DeleteSa(0x3002, OUT, ELSEWHERE))
        assert left.stats().sas == []


@pytest.mark.draft("SEC-4")
def test_the_sas_go_where_the_daemon_has_seen_their_peer(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(INNER[0], 7) as program,
        there.udp(OUTER[1], 7777) as new,
    ):
        world = Moving(left, rebinding(HERE.sa(IN, SPI)))
        left.send(Move(SPI, ELSEWHERE, HERE.path))
        assert world.paths() == {HERE.path}, "it was not there"
        left.send(Move(SPI, HERE.path, ELSEWHERE))
        assert world.paths() == {ELSEWHERE}
        program.sendto(b"to where it is", (INNER[1], 7))
        assert new.recv(2000).startswith(ESP_MARKER)
        (packet,) = world.sender.seal([PACKET])
        new.sendto(ESP_MARKER + packet, OURS)
        assert program.recv(100) == bytes(72)


@pytest.mark.draft("SEC-4", "WIRE-7", "KA-4")
def test_nothing_else_moves_it(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        there.udp(OUTER[1], 500) as old,
        there.udp(OUTER[1], 7777) as new,
    ):
        world = Moving(left, rebinding(HERE.sa(IN, SPI)))
        kept_back, replayed, forged = world.sender.seal([PACKET] * 3)
        old.sendto(ESP_MARKER + replayed, OURS)
        left.wait_for("tun_out")
        wrong = [
            replayed,
            kept_back,
            forged[:-1] + bytes([forged[-1] ^ 1]),
            forged[:4] + b"\x00\xff\xff\xff" + forged[8:],
            forged[:5],
            OutboundSa(SPI, SUITE, keymat(99), sequence=1000).seal([PACKET])[0],
            OutboundSa(0x9999, SUITE, keymat(0x9999)).seal([PACKET])[0],
        ]
        for packet in wrong:
            new.sendto(ESP_MARKER + packet, OURS)
        new.sendto(KEEPALIVE, OURS)
        new.sendto(b"\1" + bytes(40), OURS)
        left.wait_for("keepalive_in")
        left.expect(Datagrams)
        counters = left.stats().counters
        assert (counters["drop_wrong_path"], counters["drop_unknown_spi"]) == (len(wrong) - 1, 1)
        assert world.paths() == {HERE.path}
        # What was kept back was not spoilt by having come the wrong way.
        old.sendto(ESP_MARKER + kept_back, OURS)
        left.wait_for("tun_out", 2)


@pytest.mark.draft("WIRE-7", "SEC-4")
def test_without_leave_even_proof_moves_nothing(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, there.udp(OUTER[1], 7777) as new:
        world = Moving(left, HERE.sa(IN, SPI))
        new.sendto(ESP_MARKER + world.sender.seal([PACKET])[0], OURS)
        left.wait_for("drop_wrong_path")
        assert world.paths() == {HERE.path}
        assert left.has_nothing_to_say()


def test_a_conversation_in_transport_mode_survives_a_move_to_another_address(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    """The host goes on to know the peer by the address that it had."""
    here, there = sides
    there.run("ip", "address", "add", "192.0.2.9/24", "dev", "wan")
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(OUTER[0], 7) as program,
        there.udp(OUTER[1], 500) as old,
        there.udp("192.0.2.9", 500) as new,
    ):
        left.send(rebinding(transport_sa(IN, SPI, HERE.path)), transport_sa(OUT, 0x3001, HERE.path))
        left.send(transport_policy(HERE.path))
        left.stats()
        first, second = sender().seal([udp_packet("0.0.0.0", "0.0.0.0", b"hello")[20:]] * 2, 17)
        for peer, packet in ((old, first), (new, second)):
            peer.sendto(ESP_MARKER + packet, OURS)
            assert program.recvfrom(100) == (b"hello", (OUTER[1], 7))
        program.sendto(b"answer", (OUTER[1], 7))
        assert new.recv(2000).startswith(ESP_MARKER)


@pytest.mark.draft("KA-2", "KA-5", "KA-6")
def test_keepalives_fill_silences_only(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(INNER[0], 7) as program,
        there.udp(OUTER[1], 500) as peer,
    ):
        left.send(HERE.policy, HERE.sa(OUT, 0x3001), Keepalive(HERE.path, 0.2))
        assert [peer.recvfrom(100) for _ in range(3)] == [(KEEPALIVE, OURS)] * 3
        assert left.stats().counters["keepalive_out"] == 3
        left.send(Keepalive(HERE.path, 3600.0))
        left.stats()
        peer.setblocking(False)
        while True:
            try:
                peer.recv(100)
            except BlockingIOError:
                break
        peer.settimeout(DEADLINE)
        # The kernel of the sender says on the wire whether there is a checksum: an unset one is all zeros.
        with there.bound(socket.SOCK_RAW, OUTER[1], 0, socket.IPPROTO_UDP) as wire:
            left.send(Keepalive(HERE.path, 0.05))
            datagram = wire.recv(100)[20:]
            assert datagram[8:] == KEEPALIVE
            assert datagram[6:8] != b"\0\0"
        left.send(Keepalive(HERE.path, 0.0))
        sent = left.stats().counters["keepalive_out"]
        program.sendto(b"x", (INNER[1], 7))
        left.wait_for("udp_out", sent + 1)
        assert left.stats().counters["keepalive_out"] == sent


@pytest.mark.draft("KA-2", "KA-6")
@pytest.mark.parametrize("kind", ["IKE", "ESP"])
def test_what_is_sent_puts_keepalives_off(sides: tuple[Namespace, Namespace], tmp_path: FilePath, kind: str) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(INNER[0], 7) as program,
        there.udp(OUTER[1], 500) as peer,
    ):
        left.send(HERE.policy, HERE.sa(OUT, 0x3001), Keepalive(HERE.path, 2.0))
        left.stats()
        for _ in range(25):  # more than an interval
            if kind == "ESP":
                program.sendto(b"x", (INNER[1], 7))
            else:
                left.send(Datagrams([(HERE.path, bytes(7) + b"\1" + bytes(20))]))
            peer.settimeout(10)
            assert peer.recv(2000) != KEEPALIVE
            peer.settimeout(0.1)
            with pytest.raises(TimeoutError):
                peer.recv(2000)
        assert "keepalive_out" not in left.stats().counters


def test_thousands_of_sas_are_counted_though_no_message_holds_them_all(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left:
        for spi in range(0x2001, 0x2001 + 2000):
            left.send(HERE.sa(IN, spi))
        assert sorted(sa.spi for sa in left.stats().sas) == list(range(0x2001, 0x2001 + 2000))


def test_what_an_ended_plane_has_told_is_not_mixed_with_what_the_next_one_tells() -> None:
    def part(query: int, spi: int, *, more: bool) -> Stats:
        return Stats(query, {}, [SaStats(spi, IN, HERE.path, SUITE.name, 0, 0, {})], more=more)

    parts = StatsParts()
    assert parts.add(part(1, 1, more=True)) is None
    assert parts.add(part(2, 2, more=True)) is None
    whole = parts.add(part(2, 3, more=False))
    assert whole is not None
    assert [sa.spi for sa in whole.sas] == [2, 3]
