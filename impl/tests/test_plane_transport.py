"""Transport mode between real kernels: directly, through a NAT that makes all checksums wrong, and for two clients."""

from __future__ import annotations

import functools
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path as FilePath

import msgspec
import pytest
from plane_world import (
    DEADLINE,
    HERE,
    LAN,
    NAT_ADDRESS,
    OUTER,
    THERE,
    Namespace,
    PlaneProcess,
    clients_behind_a_nat,
    keymat,
    plane,
    transport_policy,
    transport_sa,
    two_namespaces,
    what_is_missing,
)

from espthrunat.esp.sa import InboundSa, OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import Configure, Datagrams, DeleteSa, Direction, Encapsulation, Path, Selector, Stats
from espthrunat.wire.udp import ESP_MARKER

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
SUITE = SUITES["aes128gcm16"]
COOKIE = b"\x01\x02\x03\x04\x05\x06\x07\x08"
ANY, L2TP = (0, 0, 0), (17, 1701, 1701)
IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_PMTUDISC_DO = 10, 0, 2


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def no_drops(running: PlaneProcess) -> bool:
    return not [name for name in running.stats().counters if name.startswith(("drop", "error"))]


def is_in_use(spi: int, stats: Stats) -> bool:
    return any(sa.spi == spi and sa.packets for sa in stats.sas)


def exchange(client: socket.socket, server: socket.socket, server_address: tuple[str, int], text: bytes) -> None:
    """Connect, and say something both ways."""
    client.connect(server_address)
    accepted, _ = server.accept()
    with accepted:
        accepted.settimeout(DEADLINE)
        client.sendall(text)
        assert accepted.recv(100) == text
        accepted.sendall(text[::-1])
        assert client.recv(100) == text[::-1]


@pytest.mark.draft("WIRE-6")
@pytest.mark.parametrize("encapsulation", Encapsulation)
def test_ping_tcp_and_udp_cross_up_to_the_mtu_and_beyond(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, encapsulation: Encapsulation
) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        plane(there, tmp_path, THERE.configure) as right,
        here.tcp(OUTER[0], 40000) as client,
        there.tcp(OUTER[1], 80) as server,
        here.udp(OUTER[0], 7) as speaker,
        there.udp(OUTER[1], 7) as listener,
    ):
        for running, side, spi_in, spi_out in ((left, HERE, 0x1001, 0x1002), (right, THERE, 0x1002, 0x1001)):
            running.send(
                transport_sa(IN, spi_in, side.path, encapsulation),
                transport_sa(OUT, spi_out, side.path, encapsulation),
                transport_policy(side.path),
            )
            running.stats()
        mtu = 20 + SUITE.largest_inner(1500 - (36 if encapsulation is Encapsulation.UDP else 20))
        assert f"mtu {mtu} " in here.run("ip", "link", "show", "esp0")
        ping = ["ping", "-c", "1", "-W", "5", OUTER[1]]
        here.run(*ping, "-M", "do", "-s", str(mtu - 28))
        server.listen()
        exchange(client, server, (OUTER[1], 80), b"hello")
        speaker.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        with pytest.raises(OSError, match="too long"):
            speaker.sendto(bytes(mtu - 27), (OUTER[1], 7))
        speaker.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        large = bytes(range(250)) * 40
        speaker.sendto(large, (OUTER[1], 7))
        assert listener.recv(20_000) == large
        for running in (left, right):
            assert no_drops(running), running.stats().counters
        wire = "udp" if encapsulation is Encapsulation.UDP else "raw"
        assert left.stats().counters[f"{wire}_out"] >= 5


@pytest.mark.draft("CSUM-2", "WIRE-1")
@pytest.mark.parametrize("encapsulation", Encapsulation)
def test_what_is_sent_has_no_ip_header_and_behind_a_nat_no_udp_checksum(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, encapsulation: Encapsulation
) -> None:
    here, there = sides
    with ExitStack() as stack:
        left = stack.enter_context(plane(here, tmp_path, HERE.configure))
        program = stack.enter_context(here.udp(OUTER[0], 7))
        udp = encapsulation is Encapsulation.UDP
        peer = stack.enter_context(there.udp(OUTER[1], 500) if udp else there.raw_esp(OUTER[1]))
        left.send(transport_sa(OUT, 0x1002, HERE.path, encapsulation), transport_policy(HERE.path))
        left.stats()
        program.sendto(b"hello", (OUTER[1], 7))
        packet = peer.recv(2000)
        packet = packet[8 if udp else 20 :]
        receiver = InboundSa(0x1002, SUITE, keymat(0x1002), next_header=None)
        ((next_header, payload),) = (opened for opened in receiver.open_any([packet]) if isinstance(opened, tuple))
        assert next_header == 17
        assert struct.unpack("!HHH", payload[:6]) == (7, 7, 13)
        assert (payload[6:8] == b"\0\0") is udp
        assert payload[8:] == b"hello"


@pytest.mark.draft("CSUM-1", "CSUM-3")
@pytest.mark.parametrize("encapsulation", Encapsulation)
def test_inner_checksums_are_ignored_only_where_a_nat_may_be(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, encapsulation: Encapsulation
) -> None:
    here, there = sides
    with ExitStack() as stack:
        left = stack.enter_context(plane(here, tmp_path, HERE.configure))
        program = stack.enter_context(here.udp(OUTER[0], 7))
        left.send(transport_sa(IN, 0x1001, HERE.path, encapsulation), transport_policy(HERE.path))
        left.stats()
        sender = OutboundSa(0x1001, SUITE, keymat(0x1001))
        wrong = struct.pack("!HHHH", 7, 7, 13, 0xBAD) + b"wrong"
        unused = struct.pack("!HHHH", 7, 7, 12, 0) + b"none"
        packets = sender.seal([wrong, unused], 17)
        if encapsulation is Encapsulation.UDP:
            peer = stack.enter_context(there.udp(OUTER[1], 500))
            for packet in packets:
                peer.sendto(ESP_MARKER + packet, (OUTER[0], 500))
            assert program.recv(100) == b"wrong"
        else:
            raw = stack.enter_context(there.raw_esp(OUTER[1]))
            for packet in packets:
                raw.sendto(packet, (OUTER[0], 0))
        assert program.recv(100) == b"none"


@pytest.mark.draft("SEC-3", "SA-4")
def test_only_traffic_of_the_selector_gets_in(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        here.udp(OUTER[0], 1701) as program,
        there.udp(OUTER[1], 500) as peer,
    ):
        left.send(transport_sa(IN, 0x1001, HERE.path, traffic=L2TP), transport_policy(HERE.path, L2TP))
        left.stats()
        sender = OutboundSa(0x1001, SUITE, keymat(0x1001))
        good = struct.pack("!HHHH", 1701, 1701, 12, 0) + b"good"
        refused = [
            *sender.seal([struct.pack("!HHHH", 1702, 1701, 8, 0), struct.pack("!HHHH", 1701, 22, 8, 0), b"\x06"], 17),
            *sender.seal([struct.pack("!HH", 1701, 1701) + bytes(16)], 6),
            *sender.seal([b"\x08\0\0\0\0\0\0\0"], 1),
            *sender.seal([good], 4),
        ]
        for packet in [*refused, *sender.seal([good], 59), *sender.seal([good], 17)]:
            peer.sendto(ESP_MARKER + packet, (OUTER[0], 500))
        assert program.recv(100) == b"good"
        stats = left.wait_for("tun_out")
        assert stats.counters["tun_out"] == 1
        assert {name: value for name, value in stats.counters.items() if name.startswith("drop")} == {
            "drop_inner_selector": len(refused),
            "drop_esp_dummy": 1,
        }


class Office:
    """A server, and two clients behind one NAT that have SAs with it."""

    def __init__(self, stack: ExitStack, tmp_path: FilePath, traffic: tuple[int, int, int]) -> None:
        self.clients, self.server = stack.enter_context(clients_behind_a_nat())
        self.plane = stack.enter_context(plane(self.server, tmp_path, Configure(OUTER[1], 500, "esp0")))
        self.client_planes = []
        self.paths = []
        selector = Selector(f"{OUTER[1]}/32", f"{NAT_ADDRESS}/32", *traffic[:1], traffic[2], traffic[1])
        self.plane.send(msgspec.structs.replace(transport_policy(Path(OUTER[1], 0, NAT_ADDRESS, 0)), selector=selector))
        for number, (client, address) in enumerate(zip(self.clients, LAN, strict=True)):
            own = stack.enter_context(plane(client, tmp_path, Configure(address, 500, "esp0")))
            self.client_planes.append(own)
            path = Path(address, 500, OUTER[1], 500)
            own.send(Datagrams([(path, COOKIE)]))  # makes the NAT's mapping, as IKE does
            ((seen, _),) = self.plane.expect(Datagrams).items
            self.paths.append(seen)
            up, down = 0x2001 + number, 0x3001 + number
            own.send(transport_sa(IN, down, path, traffic=traffic), transport_sa(OUT, up, path, traffic=traffic))
            own.send(transport_policy(path, traffic))
            for direction, spi in ((IN, up), (OUT, down)):
                self.plane.send(msgspec.structs.replace(transport_sa(direction, spi, seen), selector=selector))
            own.stats()
        self.plane.stats()


@pytest.mark.draft("SA-2", "CSUM-1", "CSUM-3")
def test_two_clients_behind_one_nat_with_the_same_ports(tmp_path: FilePath) -> None:
    with ExitStack() as stack:
        office = Office(stack, tmp_path, ANY)
        assert len({path.remote_port for path in office.paths}) == 2
        assert {path.remote for path in office.paths} == {NAT_ADDRESS}
        listener = stack.enter_context(office.server.tcp(OUTER[1], 80))
        listener.listen()
        open_connections = []
        for client, address in zip(office.clients, LAN, strict=True):
            connection = stack.enter_context(client.tcp(address, 40000))
            connection.connect((OUTER[1], 80))
            accepted, source = listener.accept()
            stack.enter_context(accepted).settimeout(DEADLINE)
            assert source[0] == NAT_ADDRESS
            open_connections.append((connection, accepted, address.encode()))
        for _ in range(3):
            for connection, accepted, text in open_connections:
                connection.sendall(b"to " + text)
                assert accepted.recv(100) == b"to " + text
                accepted.sendall(b"from " + text)
            for connection, _, text in open_connections:
                assert connection.recv(100) == b"from " + text
        for client in office.clients:
            client.run("ping", "-c", "2", "-i", "0.01", "-W", "5", OUTER[1])
        assert no_drops(office.plane), office.plane.stats().counters
        # After a rekey the flows go on, each by the new SA of its client.
        for number, path in enumerate(office.paths):
            selector = Selector(f"{OUTER[1]}/32", f"{NAT_ADDRESS}/32")
            own = Path(LAN[number], 500, OUTER[1], 500)
            new = 0x4001 + number
            office.client_planes[number].send(transport_sa(IN, new, own))
            office.client_planes[number].stats()
            office.plane.send(msgspec.structs.replace(transport_sa(OUT, new, path), selector=selector))
        for number, path in enumerate(office.paths):
            office.plane.send(DeleteSa(0x3001 + number, OUT, path))
        for connection, accepted, text in open_connections:
            accepted.sendall(b"again " + text)
            assert connection.recv(100) == b"again " + text
        used = {sa.spi: sa.packets for sa in office.plane.stats().sas if sa.direction is OUT}
        assert set(used) == {0x4001, 0x4002}
        assert all(used.values())


@pytest.mark.draft("SA-2", "QM-7")
@pytest.mark.parametrize("traffic", [ANY, L2TP], ids=["any traffic", "only L2TP"])
def test_two_clients_behind_one_nat_with_l2tp_ports(tmp_path: FilePath, traffic: tuple[int, int, int]) -> None:
    with ExitStack() as stack:
        office = Office(stack, tmp_path, traffic)
        server = stack.enter_context(office.server.udp(OUTER[1], 1701))
        programs = [
            stack.enter_context(client.udp(address, 1701)) for client, address in zip(office.clients, LAN, strict=True)
        ]
        seen = []
        for number, program in enumerate(programs):
            program.sendto(b"%d" % number, (OUTER[1], 1701))
            data, source = server.recvfrom(100)
            assert (data, source[0]) == (b"%d" % number, NAT_ADDRESS)
            seen.append(source)
        assert seen[0][1] == 1701
        assert seen[0] != seen[1]
        for number, source in enumerate(seen):
            server.sendto(b"answer %d" % number, source)
        assert [program.recvfrom(100) for program in programs] == [
            (b"answer %d" % number, (OUTER[1], 1701)) for number in range(2)
        ]
        assert no_drops(office.plane), office.plane.stats().counters


def test_a_client_without_an_sa_is_not_answered_through_anothers(tmp_path: FilePath) -> None:
    with ExitStack() as stack:
        office = Office(stack, tmp_path, ANY)
        server = stack.enter_context(office.server.udp(OUTER[1], 7))
        program = stack.enter_context(office.clients[0].udp(LAN[0], 7))
        program.sendto(b"x", (OUTER[1], 7))
        _, source = server.recvfrom(100)
        office.plane.send(DeleteSa(0x3001, OUT, office.paths[0]))
        office.plane.stats()
        server.sendto(b"secret", source)
        stats = office.plane.wait_for("drop_no_sa")
        assert [sa.packets for sa in stats.sas if sa.spi == 0x3002] == [0]


def test_refusals_reach_the_program_that_they_are_for(tmp_path: FilePath) -> None:
    """Port unreachable quotes a packet with the server's idea of addresses, and comes back through transport mode."""
    with ExitStack() as stack:
        office = Office(stack, tmp_path, ANY)
        for client, address in zip(office.clients, LAN, strict=True):
            program = stack.enter_context(client.udp(address, 5000))
            program.connect((OUTER[1], 9))
            program.send(b"anybody there?")
            with pytest.raises(ConnectionRefusedError):
                program.recv(100)


def test_rekeying_loses_nothing(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, plane(there, tmp_path, THERE.configure) as right:
        both = ((left, HERE, 0x1001, 0x1002), (right, THERE, 0x1002, 0x1001))
        for running, side, spi_in, spi_out in both:
            running.send(transport_sa(IN, spi_in, side.path), transport_sa(OUT, spi_out, side.path))
            running.send(transport_policy(side.path))
            running.stats()
        command = [*here.enter, "ping", "-q", "-i", "0.002", "-c", "300", OUTER[1]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
            for generation in range(1, 6):
                for running, side, spi_in, _ in both:
                    running.send(transport_sa(IN, spi_in + generation * 16, side.path))
                    running.stats()
                for running, side, _, spi_out in both:
                    running.send(transport_sa(OUT, spi_out + generation * 16, side.path))
                    running.send(DeleteSa(spi_out + generation * 16 - 16, OUT, side.path))
                    running.wait(functools.partial(is_in_use, spi_out + generation * 16))
            report, _ = ping.communicate(timeout=DEADLINE)
        assert re.search(r"300 packets transmitted, 300 received", report), report
