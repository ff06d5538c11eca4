"""Packets that may pass do pass between real devices, and nothing else does."""

from __future__ import annotations

import select
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath

import pytest
from plane_world import (
    DEADLINE,
    HERE,
    INNER,
    OUTER,
    THERE,
    Namespace,
    PlaneProcess,
    keymat,
    plane,
    two_namespaces,
    udp_packet,
    what_is_missing,
)

from espthrunat.esp.sa import InboundSa, OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import (
    Acquire,
    Datagrams,
    DeleteSa,
    Direction,
    Encapsulation,
    Path,
)
from espthrunat.wire.udp import ESP_MARKER, KEEPALIVE

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
SUITE = SUITES["aes128gcm16"]
UDP_OVERHEAD = 36
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
COOKIE = b"\x01\x02\x03\x04\x05\x06\x07\x08"


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


@contextmanager
def two_planes(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> Iterator[tuple[PlaneProcess, PlaneProcess, socket.socket]]:
    """Two planes with a pair of SAs, and a program here that speaks to the other side."""
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, plane(there, tmp_path, THERE.configure) as right:
        for running, side, spi_in, spi_out in ((left, HERE, 0x1001, 0x1002), (right, THERE, 0x1002, 0x1001)):
            running.send(side.sa(IN, spi_in), side.sa(OUT, spi_out), side.policy)
            running.stats()
        with here.udp(INNER[0], 7) as inside:
            yield left, right, inside


def test_a_plane_that_gets_no_cpu_for_a_moment_loses_nothing(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    """On a busy machine: what comes meanwhile waits in the device's queue."""
    count = 1500
    with two_planes(sides, tmp_path) as (left, _, inside):
        left.process.send_signal(signal.SIGSTOP)
        for _ in range(count):
            inside.sendto(bytes(100), (INNER[1], 7))
        left.process.send_signal(signal.SIGCONT)
        assert "drop_tun_queue" not in left.wait_for("udp_out", count).counters


def test_neither_does_a_plane_that_receives(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """A fifth of a second of four streams of 500 packets a second waits at the socket, whatever user we are."""
    count = 400
    with two_planes(sides, tmp_path) as (left, right, inside):
        right.process.send_signal(signal.SIGSTOP)
        for number in range(count):
            inside.sendto(bytes(100), (INNER[1], 7))
            left.wait_for("udp_out", number // 100 * 100)  # its own queue is not what is asked about
        left.wait_for("udp_out", count)
        right.process.send_signal(signal.SIGCONT)
        assert "drop_socket_queue" not in right.wait_for("tun_out", count).counters


def test_what_no_queue_had_room_for_is_counted(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    with two_planes(sides, tmp_path) as (left, right, inside):
        left.process.send_signal(signal.SIGSTOP)
        for _ in range(2500):
            inside.sendto(b"x", (INNER[1], 7))
        left.process.send_signal(signal.SIGCONT)
        left.wait_for("drop_tun_queue")
        counters = left.wait(lambda stats: stats.counters["tun_in"] + stats.counters["drop_tun_queue"] >= 2500).counters
        assert (counters["drop_tun_queue"], counters["udp_out"]) == (500, 2000)
        assert "its queue was full" in left.log.read_text()
        right.process.send_signal(signal.SIGSTOP)
        with sides[0].udp(OUTER[0], 0) as flood:
            for _ in range(400):  # each is counted as much more than it holds
                flood.sendto(bytes(60_000), (OUTER[1], 500))
        right.process.send_signal(signal.SIGCONT)
        right.wait_for("drop_socket_queue")


@pytest.mark.draft("WIRE-6")
@pytest.mark.parametrize("encapsulation", Encapsulation)
@pytest.mark.parametrize("suite", SUITES)
def test_ping_crosses_up_to_the_mtu(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, suite: str, encapsulation: Encapsulation
) -> None:
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, plane(there, tmp_path, THERE.configure) as right:
        for running, side, spi_in, spi_out in ((left, HERE, 0x1001, 0x1002), (right, THERE, 0x1002, 0x1001)):
            running.send(side.sa(IN, spi_in, suite, encapsulation), side.sa(OUT, spi_out, suite, encapsulation))
            running.send(side.policy)
            running.stats()
        mtu = SUITES[suite].largest_inner(1500 - (UDP_OVERHEAD if encapsulation is Encapsulation.UDP else 20))
        assert f"mtu {mtu} " in here.run("ip", "link", "show", "esp0")
        ping = ["ping", "-c", "1", "-W", "5", "-M", "do", INNER[1]]
        here.run(*ping)
        here.run(*ping, "-s", str(mtu - 28))
        with here.udp(INNER[0], 7) as inside:
            inside.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            with pytest.raises(OSError, match="too long"):
                inside.sendto(bytes(mtu - 27), (INNER[1], 7))
        stats = left.stats()
        assert {(sa.direction, sa.packets, sa.octets) for sa in stats.sas} == {(IN, 2, 84 + mtu), (OUT, 2, 84 + mtu)}
        assert not [name for name in stats.counters if name.startswith(("drop", "error"))], stats.counters
        wire = "udp" if encapsulation is Encapsulation.UDP else "raw"
        assert (stats.counters[f"{wire}_in"], stats.counters[f"{wire}_out"]) == (2, 2)


@pytest.mark.draft("WIRE-2")
def test_ike_goes_up_and_down_with_its_path(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, there.udp(OUTER[1], 1111) as peer:
        path = Path(OUTER[0], 500, OUTER[1], 1111)
        peer.sendto(COOKIE + b"up", (OUTER[0], 500))
        assert left.expect(Datagrams).items == [(path, COOKIE + b"up")]
        left.send(Datagrams([(path, COOKIE + b"down"), (path, KEEPALIVE)]))
        assert peer.recvfrom(100) == (COOKIE + b"down", (OUTER[0], 500))
        assert peer.recvfrom(100) == (KEEPALIVE, (OUTER[0], 500))
        counters = left.stats().counters
        assert (counters["ike_in"], counters["ike_out"]) == (1, 2)


@pytest.mark.draft("WIRE-4", "KA-4")
def test_keepalives_are_dropped_and_damaged_markers_are_ike(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, there.udp(OUTER[1], 500) as peer:
        damaged = b"\0\0\0\0\0\0\0\1" + b"what was ESP"
        for datagram in (KEEPALIVE, b"short", ESP_MARKER, ESP_MARKER + b"\0", b"", damaged):
            peer.sendto(datagram, (OUTER[0], 500))
        assert left.expect(Datagrams).items == [(HERE.path, damaged)]
        counters = left.stats().counters
        assert (counters["keepalive_in"], counters["drop_junk"], counters["ike_in"]) == (1, 4, 1)


@pytest.mark.draft("WIRE-7", "SA-2", "SA-4", "SEC-3", "SEC-4")
def test_only_what_the_sa_allows_gets_in(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    spi = 0x2001
    good = udp_packet(INNER[1], INNER[0], b"good")
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(INNER[0], 7) as inside,
        there.udp(OUTER[1], 500) as peer,
        there.udp(OUTER[1], 501) as stranger,
    ):
        left.send(HERE.sa(IN, spi), HERE.policy)
        left.stats()
        sender = OutboundSa(spi, SUITE, keymat(spi))
        refused = {
            "drop_inner_selector": sender.seal(
                [udp_packet("10.9.9.9", INNER[0], b""), udp_packet(INNER[1], "10.9.9.9", b"")]
            ),
            "drop_inner_malformed": sender.seal([b"", good[:-1], b"\x60" + bytes(39)]),
            "drop_esp_icv": OutboundSa(spi, SUITE, keymat(99), sequence=100).seal([good]),
            "drop_esp_next_header": sender.seal([good], 17),
            "drop_esp_dummy": sender.seal([good], 59),
            "drop_esp_malformed": [struct.pack("!I", spi)],
            "drop_unknown_spi": OutboundSa(spi + 1, SUITE, keymat(spi)).seal([good]),
        }
        first, second, third = sender.seal([good] * 3)
        destination = (OUTER[0], 500)
        peer.sendto(ESP_MARKER + first, destination)
        for packets in refused.values():
            for packet in packets:
                peer.sendto(ESP_MARKER + packet, destination)
        stranger.sendto(ESP_MARKER + second, destination)
        peer.sendto(ESP_MARKER + first, destination)
        left.wait_for("drop_wrong_path")
        peer.sendto(ESP_MARKER + third, destination)

        assert [inside.recvfrom(100) for _ in range(2)] == [(b"good", (INNER[1], 7))] * 2
        stats = left.wait_for("tun_out", 2)
        expected = {name: len(packets) for name, packets in refused.items()}
        expected |= {"drop_wrong_path": 1, "drop_esp_replay": 1}
        assert {name: value for name, value in stats.counters.items() if name.startswith("drop")} == expected
        (sa,) = stats.sas
        assert (sa.dropped["inner_selector"], sa.dropped["replay"]) == (2, 1)
        assert sa.path == HERE.path
        # The packet that came the wrong way was not spoilt by it: no packet of a stranger reaches the SA.
        peer.sendto(ESP_MARKER + second, destination)
        assert inside.recv(100) == b"good"


def test_the_newest_sa_is_used_and_deleting_it_falls_back(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(INNER[0], 7) as inside,
        there.udp(OUTER[1], 500) as peer,
    ):

        def spi_of_next() -> int:
            inside.sendto(b"x", (INNER[1], 7))
            packet = peer.recv(2000)
            assert packet.startswith(ESP_MARKER)
            spi = int.from_bytes(packet[8:12], "big")
            (inner,) = InboundSa(spi, SUITE, keymat(spi)).open([packet[8:]])
            assert isinstance(inner, bytes)
            assert inner[12:20] == udp_packet(INNER[0], INNER[1], b"")[12:20]
            return spi

        left.send(HERE.policy, HERE.sa(OUT, 0x3001))
        left.stats()
        assert spi_of_next() == 0x3001
        left.send(HERE.sa(OUT, 0x3002))
        left.stats()
        assert spi_of_next() == 0x3002
        left.send(DeleteSa(0x3002, OUT, HERE.path), DeleteSa(0x9999, OUT, HERE.path), DeleteSa(0x9999, IN, HERE.path))
        left.stats()
        assert spi_of_next() == 0x3001
        left.send(DeleteSa(0x3001, OUT, HERE.path))
        left.stats()
        inside.sendto(b"x", (INNER[1], 7))
        assert left.expect(Acquire) == Acquire("peer")


def test_without_an_sa_traffic_is_dropped_in_the_end_and_acquired_once_a_second(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left, here.udp(INNER[0], 7) as inside:
        left.send(HERE.policy)
        left.stats()
        for _ in range(50):
            inside.sendto(b"x", (INNER[1], 7))
        left.wait_for("drop_no_sa", 50)
        assert left.expect(Acquire) == Acquire("peer")
        assert left.has_nothing_to_say()
        said = [line for line in left.log.read_text().splitlines() if "drop_no_sa" in line]
        assert len(said) == 1, said


def test_outbound_packets_must_match_a_policy(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left, here.udp(OUTER[0], 7) as outside:
        left.send(HERE.sa(OUT, 0x4001), HERE.policy)
        left.stats()
        outside.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"esp0")
        outside.sendto(b"from the wrong address", (INNER[1], 7))
        stats = left.wait_for("drop_no_policy")
        assert stats.counters.get("udp_out", 0) == 0


def test_a_daemon_that_does_not_listen_stops_nothing(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(INNER[0], 7) as inside,
        there.udp(OUTER[1], 500) as peer,
    ):
        left.send(HERE.sa(IN, 0x6001))
        left.stats()
        sender = OutboundSa(0x6001, SUITE, keymat(0x6001))
        sent, per_round = 0, 150  # for which an ordinary user's socket too has room
        # ESP passes while the daemon is deaf: what proves it is the packet that arrives inside.
        for _ in range(4):
            for _ in range(per_round):
                peer.sendto(COOKIE + bytes(1400), (OUTER[0], 500))
            sent += per_round
            (packet,) = sender.seal([udp_packet(INNER[1], INNER[0], b"through")])
            peer.sendto(ESP_MARKER + packet, (OUTER[0], 500))
            assert inside.recv(100) == b"through"
        counters = left.stats().counters
        assert counters["drop_ike_overload"] > 0
        assert counters["drop_ike_overload"] + counters["ike_in"] == sent


def test_the_last_words_of_a_daemon_are_sent(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, there.udp(OUTER[1], 500) as peer:
        peer.sendto(COOKIE + b"never read", (OUTER[0], 500))
        left.wait_for("ike_in")
        peer.sendto(COOKIE + b"never read", (OUTER[0], 500))
        assert select.select([left.socket], [], [], DEADLINE)[0]
        left.send(*(Datagrams([(HERE.path, COOKIE + bytes([number]))]) for number in range(100)))
        left.socket.close()
        assert [peer.recv(100)[-1] for _ in range(100)] == list(range(100))
        assert left.ended() == 0


def test_errors_of_the_network_end_nothing(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left, here.udp(INNER[0], 7) as inside:
        left.send(HERE.policy, HERE.sa(OUT, 0x7001))
        left.send(Datagrams([(Path(OUTER[0], 500, "203.0.113.1", 500), COOKIE), (HERE.path, bytes(70_000))]))
        left.wait_for("error_udp_send_ENETUNREACH")
        left.wait_for("error_udp_send_EMSGSIZE")
        here.run("ip", "link", "set", "wan", "down")
        inside.sendto(b"x", (INNER[1], 7))
        left.wait_for("error_udp_send_ENETUNREACH", 2)
        assert left.process.poll() is None


def test_ipv6_stays_off_the_device(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    with plane(here, tmp_path, HERE.configure):
        assert "inet6" not in here.run("ip", "address", "show", "esp0")
        run = subprocess.run([*here.enter, "ip", "link", "show", "esp0"], capture_output=True, text=True, check=True)
        assert "UP" in run.stdout
