"""Two clients with one inner address, and a gateway that tells them apart: as real kernels see it (the draft, 7)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path as FilePath

import msgspec
import pytest
from plane_world import (
    DEADLINE,
    HERE,
    INNER,
    LAN,
    OUTER,
    Namespace,
    PlaneProcess,
    clients_behind_a_nat,
    keymat,
    plane,
    two_namespaces,
    udp_packet,
    what_is_missing,
)

from espthrunat.esp.sa import OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import (
    AddPolicy,
    AddSa,
    Configure,
    Datagrams,
    DeletePolicy,
    DeleteSa,
    Direction,
    Encapsulation,
    Path,
    Selector,
)
from espthrunat.wire.udp import ESP_MARKER

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
SUITE = "aes128gcm16"
COOKIE = b"\x01\x02\x03\x04\x05\x06\x07\x08"
CLIENT, OFFICE = INNER  # every client's inner address, and the gateway's own
POOL = "10.200.0.0/16"
IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_PMTUDISC_DO, IP_MTU = 10, 0, 2, 14
SO_NO_CHECK = 11


def sa(direction: Direction, spi: int, path: Path, selector: Selector, policy: str, mapped: str = "") -> AddSa:
    return AddSa(spi, direction, SUITE, keymat(spi), path, Encapsulation.UDP, selector, policy, mapped=mapped)


class Office:
    """A gateway that translates, and two clients behind one NAT with the same inner network."""

    def __init__(self, stack: ExitStack, tmp_path: FilePath, bits: int = 32) -> None:
        step = 1 << max(0, 24 - bits)
        self.networks = [f"10.200.{number * step}.{'1' if bits == 32 else '0'}/{bits}" for number in (1, 2)]
        self.seen = [network.partition("/")[0] for network in self.networks]  # each client, as the gateway knows it
        inside = f"{CLIENT}/32" if bits == 32 else "10.1.0.0/24"
        self.clients, self.server = stack.enter_context(clients_behind_a_nat())
        self.server.run("ip", "address", "add", f"{OFFICE}/32", "dev", "lo")
        self.plane = stack.enter_context(plane(self.server, tmp_path, Configure(OUTER[1], 500, "esp0")))
        self.selector = Selector(f"{OFFICE}/32", inside)
        whole = msgspec.structs.replace(self.selector, remote=POOL)
        self.plane.send(AddPolicy("clients", whole, OFFICE, fallback=True))
        self.paths = []
        self.client_planes = []
        theirs = Selector(inside, f"{OFFICE}/32")
        for number, (client, address) in enumerate(zip(self.clients, LAN, strict=True)):
            client.run("ip", "address", "add", f"{CLIENT}/32", "dev", "lo")
            own = stack.enter_context(plane(client, tmp_path, Configure(address, 500, "esp0")))
            path = Path(address, 500, OUTER[1], 500)
            own.send(Datagrams([(path, COOKIE)]))  # makes the NAT's mapping, as IKE does
            ((seen, _),) = self.plane.expect(Datagrams).items
            self.paths.append(seen)
            own.send(
                sa(IN, self.down(number), path, theirs, "office"),
                sa(OUT, self.up(number), path, theirs, "office"),
                AddPolicy("office", theirs, CLIENT),
            )
            own.stats()
            self.client_planes.append(own)
            mapped = self.networks[number]
            self.plane.send(
                AddPolicy(self.policy(number), msgspec.structs.replace(self.selector, remote=mapped), steer=False),
                sa(IN, self.up(number), seen, self.selector, self.policy(number), mapped),
                sa(OUT, self.down(number), seen, self.selector, self.policy(number), mapped),
            )
        self.plane.stats()

    def policy(self, number: int) -> str:
        return f"clients@{self.networks[number]}"

    @staticmethod
    def up(number: int) -> int:
        return 0x2001 + number

    @staticmethod
    def down(number: int) -> int:
        return 0x3001 + number

    def sent_to(self, number: int) -> int:
        """How many packets have gone to a client."""
        return next(s.packets for s in self.plane.stats().sas if (s.spi, s.direction) == (self.down(number), OUT))

    def assert_all_went_well(self) -> None:
        for running in (self.plane, *self.client_planes):
            bad = {name: n for name, n in running.stats().counters.items() if name.startswith(("drop", "error"))}
            assert not bad
        for host in (self.server, *self.clients):
            assert checksum_errors(host) == 0


def checksum_errors(host: Namespace) -> int:
    """What the kernel has dropped because a checksum was wrong."""
    lines = host.run("cat", "/proc/net/snmp").splitlines()
    found = 0
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        fields = dict(zip(names.split(), values.split(), strict=True))
        found += int(fields.get("InCsumErrors", 0))
    return found


@pytest.fixture
def office(tmp_path: FilePath) -> Iterator[Office]:
    with ExitStack() as stack:
        yield Office(stack, tmp_path)


@pytest.mark.draft("SEC-1", "SEC-2")
def test_each_client_is_answered_and_nobody_else(office: Office) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(office.server.tcp(OFFICE, 80))
        listener.listen()
        service = stack.enter_context(office.server.udp(OFFICE, 7))
        connections = []
        for number, client in enumerate(office.clients):
            client.run("ping", "-c", "2", "-i", "0.01", "-W", "5", "-I", CLIENT, OFFICE)
            connection = stack.enter_context(client.tcp(CLIENT, 40000))  # the same port, too
            connection.connect((OFFICE, 80))
            accepted, source = listener.accept()
            stack.enter_context(accepted).settimeout(DEADLINE)
            assert source == (office.seen[number], 40000)
            program = stack.enter_context(client.udp(CLIENT, 5000))
            program.sendto(b"%d" % number, (OFFICE, 7))
            assert service.recvfrom(100) == (b"%d" % number, (office.seen[number], 5000))
            connections.append((connection, accepted, program, b"for client %d only" % number))
        for _, accepted, _, text in connections:
            accepted.sendall(text * 1000)
        for number, (_, _, _, text) in enumerate(connections):
            service.sendto(text, (office.seen[number], 5000))
        for connection, accepted, program, text in connections:
            with connection.makefile("rb") as stream:
                assert stream.read(len(text) * 1000) == text * 1000
            assert program.recvfrom(100) == (text, (OFFICE, 7))
            connection.sendall(text[::-1])
            assert accepted.recv(100) == text[::-1]
        office.assert_all_went_well()


@pytest.mark.draft("SEC-1")
def test_the_gateway_may_begin(office: Office) -> None:
    with ExitStack() as stack:
        for number, client in enumerate(office.clients):
            address = office.seen[number]
            before = [office.sent_to(other) for other in range(2)]
            office.server.run("ping", "-c", "2", "-i", "0.01", "-W", "5", address)
            listener = stack.enter_context(client.tcp(CLIENT, 80))
            listener.listen()
            caller = stack.enter_context(office.server.tcp(OFFICE, 0))
            caller.connect((address, 80))
            accepted, source = listener.accept()
            stack.enter_context(accepted).settimeout(DEADLINE)
            assert source[0] == OFFICE
            caller.sendall(b"%d" % number)
            assert accepted.recv(10) == b"%d" % number
            program = stack.enter_context(client.udp(CLIENT, 7))
            speaker = stack.enter_context(office.server.udp(OFFICE, 0))
            speaker.sendto(b"hello", (address, 7))
            assert program.recv(10) == b"hello"
            after = [office.sent_to(other) for other in range(2)]
            assert after[number] > before[number]
            assert after[1 - number] == before[1 - number]
        office.assert_all_went_well()


@pytest.mark.draft("SEC-1")
@pytest.mark.parametrize("checksums", [True, False], ids=["with checksums", "without checksums"])
def test_fragments_and_packets_without_a_checksum_arrive(office: Office, checksums: bool) -> None:
    large = bytes(range(250)) * 20
    with (
        office.clients[1].udp(CLIENT, 7) as program,
        office.server.udp(OFFICE, 7) as service,
    ):
        for speaker in (program, service):
            speaker.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
            speaker.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, not checksums)
        program.sendto(large, (OFFICE, 7))
        data, source = service.recvfrom(10_000)
        assert (data, source) == (large, (office.seen[1], 7))
        service.sendto(large[::-1], source)
        assert program.recv(10_000) == large[::-1]
    office.assert_all_went_well()


def test_the_kernels_rules_do_not_grow_with_the_clients(office: Office) -> None:
    """It asks one rule after the other, for each packet."""
    rules = office.server.run("ip", "rule")
    assert POOL in rules
    assert not [address for address in office.seen if address in rules]


def test_refusals_reach_the_program_that_they_are_for(office: Office) -> None:
    for number, client in enumerate(office.clients):
        with client.udp(CLIENT, 5000) as program, office.server.udp(OFFICE, 5000) as service:
            for asking, address in ((program, OFFICE), (service, office.seen[number])):
                asking.connect((address, 9))
                asking.send(b"anybody there?")
                with pytest.raises(ConnectionRefusedError):
                    asking.recv(100)
    office.assert_all_went_well()


@pytest.mark.draft("WIRE-6")
def test_a_narrow_link_behind_a_client_is_found(tmp_path: FilePath) -> None:
    """Both have the same whole network behind them; the second one's is on a link of 900 octets."""
    with ExitStack() as stack:
        office = Office(stack, tmp_path, bits=24)
        narrow = office.clients[1]
        narrow.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        narrow.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "end")
        narrow.run("ip", "link", "set", "lan", "mtu", "900", "up")
        narrow.run("ip", "route", "add", "10.1.0.0/24", "dev", "lan")
        speaker = stack.enter_context(office.server.udp(OFFICE, 0))
        speaker.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        speaker.connect((office.seen[1].removesuffix(".0") + ".77", 9))
        speaker.send(bytes(1200))
        with pytest.raises(OSError, match="Message too long"):
            speaker.recv(100)
        assert speaker.getsockopt(socket.IPPROTO_IP, IP_MTU) == 900
        office.assert_all_went_well()


@pytest.mark.draft("SEC-1")
def test_what_is_for_a_client_that_has_gone_reaches_nobody(office: Office) -> None:
    with office.server.udp(OFFICE, 7) as service, office.clients[1].udp(CLIENT, 7) as program:
        office.plane.send(
            DeleteSa(office.down(0), OUT, office.paths[0]),
            DeleteSa(office.up(0), IN, office.paths[0]),
            DeletePolicy(office.policy(0)),
        )
        office.plane.stats()
        before = office.plane.stats().counters.get("udp_out", 0)
        service.sendto(b"secret", (office.seen[0], 7))
        service.sendto(b"secret", ("10.200.9.9", 7))  # nobody's
        counters = office.plane.wait_for("drop_no_sa", 2).counters
        assert counters.get("udp_out", 0) == before
        service.sendto(b"for you", (office.seen[1], 7))
        assert program.recv(100) == b"for you"


@pytest.mark.draft("SEC-1")
def test_both_clients_stream_at_once_and_nothing_is_mixed_up(office: Office) -> None:
    """Numbered packets, many under way at a time; all four ends use the same port."""
    count, burst = 300, 20
    with ExitStack() as stack:
        service = stack.enter_context(office.server.udp(OFFICE, 7))
        programs = [stack.enter_context(client.udp(CLIENT, 7)) for client in office.clients]
        for first in range(0, count, burst):
            for number in range(first, first + burst):
                for index, program in enumerate(programs):
                    program.sendto(b"%d from %d" % (number, index), (OFFICE, 7))
                    service.sendto(b"%d to %d" % (number, index), (office.seen[index], 7))
            arrived = [service.recvfrom(100) for _ in range(2 * burst)]
            for index, program in enumerate(programs):
                wanted = [b"%d from %d" % (number, index) for number in range(first, first + burst)]
                assert [data for data, source in arrived if source == (office.seen[index], 7)] == wanted
                wanted = [b"%d to %d" % (number, index) for number in range(first, first + burst)]
                assert [program.recv(100) for _ in range(burst)] == wanted
        assert [office.sent_to(index) for index in range(2)] == [count, count]
    office.assert_all_went_well()


@pytest.mark.draft("SEC-3", "SEC-2")
def test_no_client_speaks_for_an_address_that_is_not_its_own(tmp_path: FilePath) -> None:
    """Not even for the one that it appears as."""
    with ExitStack() as stack:
        here, there = stack.enter_context(two_namespaces())
        gateway: PlaneProcess = stack.enter_context(plane(here, tmp_path, HERE.configure))
        program = stack.enter_context(here.udp(INNER[0], 7))
        peer = stack.enter_context(there.udp(OUTER[1], 500))
        mapped = "10.200.0.1/32"
        gateway.send(
            AddPolicy("clients", Selector(f"{INNER[0]}/32", POOL), INNER[0], fallback=True),
            AddPolicy(f"clients@{mapped}", Selector(f"{INNER[0]}/32", mapped), steer=False),
            sa(IN, 0x1001, HERE.path, HERE.selector, f"clients@{mapped}", mapped),
        )
        gateway.stats()
        sender = OutboundSa(0x1001, SUITES[SUITE], keymat(0x1001))
        sources = ["10.200.0.1", "10.1.0.9", INNER[0], "10.2.0.2", INNER[1]]
        for packet in sender.seal([udp_packet(source, INNER[0], source.encode()) for source in sources], 4):
            peer.sendto(ESP_MARKER + packet, (OUTER[0], 500))
        assert program.recvfrom(100) == (INNER[1].encode(), ("10.200.0.1", 7))
        counters = gateway.stats().counters
        assert counters["drop_inner_selector"] == 4
        assert counters["tun_out"] == 1
