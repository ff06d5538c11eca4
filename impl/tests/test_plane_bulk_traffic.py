"""Bulk TCP between real kernels arrives octet for octet, in trains, singly, impaired, and on paths of any MTU."""

from __future__ import annotations

import hashlib
import random
import select
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path as FilePath

import msgspec
import pytest
from plane_world import (
    HERE,
    INNER,
    LAN,
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

from espthrunat.esp.suites import SUITES
from espthrunat.messages import AddPolicy, AddSa, Configure, Datagrams, Direction, Encapsulation, Path, Selector
from espthrunat.plane.udp_socket import enlarge_buffers

missing = what_is_missing() or ("" if shutil.which("ethtool") else "ethtool")
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
COOKIE = b"\x01\x02\x03\x04\x05\x06\x07\x08"
MANY = 6_000_000  # octets


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def transfer(
    here: Namespace, there: Namespace, addresses: tuple[str, str] = INNER, octets: int = MANY, seconds: float = 60.0
) -> None:
    """Send random octets each way, one after the other, over one connection; both must arrive as they left."""
    with here.tcp(addresses[0], 0) as client, there.tcp(addresses[1], 8080) as server:
        server.listen()
        for sock in (client, server):
            sock.settimeout(seconds)
        client.connect((addresses[1], 8080))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(seconds)
            for sender, receiver in ((client, accepted), (accepted, client)):
                data = random.Random(octets).randbytes(octets)
                thread = threading.Thread(target=sender.sendall, args=(data,))
                thread.start()
                digest, got = hashlib.sha256(), 0
                while got < octets:
                    part = receiver.recv(1 << 20)
                    assert part, f"the connection ended after {got} octets"
                    digest.update(part)
                    got += len(part)
                thread.join()
                assert digest.digest() == hashlib.sha256(data).digest()


def connect(left: PlaneProcess, right: PlaneProcess, suite: str, encapsulation: Encapsulation) -> None:
    """SAs of tunnel mode both ways."""
    for running, side, spi_in, spi_out in ((left, HERE, 0x1001, 0x1002), (right, THERE, 0x1002, 0x1001)):
        running.send(side.sa(IN, spi_in, suite, encapsulation), side.sa(OUT, spi_out, suite, encapsulation))
        running.send(side.policy)
        running.stats()


@contextmanager
def connected(
    sides: tuple[Namespace, Namespace],
    tmp_path: FilePath,
    suite: str = "aes128gcm16",
    encapsulation: Encapsulation = Encapsulation.UDP,
    mtu: int = 1500,
    patch: str = "",
) -> Iterator[tuple[PlaneProcess, PlaneProcess]]:
    """Two planes with SAs of tunnel mode."""
    configures = (msgspec.structs.replace(side.configure, mtu=mtu) for side in (HERE, THERE))
    with ExitStack() as stack:
        left, right = (
            stack.enter_context(plane(inside, tmp_path, configure, patch))
            for inside, configure in zip(sides, configures, strict=True)
        )
        connect(left, right, suite, encapsulation)
        yield left, right


def faults(*planes: PlaneProcess) -> dict[str, int]:
    return {
        name: value
        for running in planes
        for name, value in running.stats().counters.items()
        if name.startswith(("drop", "error", "fallback"))
    }


def snmp(inside: Namespace, name: str) -> int:
    """A counter of the namespace's IP."""
    names, values = (line.split() for line in inside.run("cat", "/proc/net/snmp").splitlines()[:2])
    return int(values[names.index(name)])


@pytest.mark.parametrize("encapsulation", Encapsulation)
@pytest.mark.parametrize("suite", [suite for suite in SUITES if not suite.startswith("3des")])
def test_bulk_arrives_with_every_suite(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, suite: str, encapsulation: Encapsulation
) -> None:
    with connected(sides, tmp_path, suite, encapsulation) as planes:
        transfer(*sides)
        assert not faults(*planes)


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite.startswith("3des")])
def test_bulk_arrives_with_slow_suites(sides: tuple[Namespace, Namespace], tmp_path: FilePath, suite: str) -> None:
    with connected(sides, tmp_path, suite) as planes:
        transfer(*sides, octets=MANY // 4)
        assert not faults(*planes)


@pytest.mark.parametrize("suite", ["aes128gcm16", "aes128-sha1", "null-sha256"])
def test_bulk_arrives_singly(sides: tuple[Namespace, Namespace], tmp_path: FilePath, suite: str) -> None:
    """Where a device on the way knows no trains."""
    for side in sides:
        side.run("ethtool", "-K", "wan", "tx-udp-segmentation", "off")
    with connected(sides, tmp_path, suite) as planes:
        transfer(*sides)
        assert not faults(*planes)


@pytest.mark.parametrize("encapsulation", Encapsulation)
def test_bulk_arrives_in_transport_mode(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, encapsulation: Encapsulation
) -> None:
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, plane(there, tmp_path, THERE.configure) as right:
        for running, side, spi_in, spi_out in ((left, HERE, 0x1001, 0x1002), (right, THERE, 0x1002, 0x1001)):
            running.send(
                transport_sa(IN, spi_in, side.path, encapsulation),
                transport_sa(OUT, spi_out, side.path, encapsulation),
                transport_policy(side.path),
            )
            running.stats()
        transfer(here, there, OUTER)
        assert not faults(left, right)


FALLBACKS = {
    "tun_uso": "from espthrunat.plane import tun\ntun.Tun.__init__.__defaults__ = ((0x10027, 0x07),)",
    "tun_tso": "from espthrunat.plane import tun\ntun.Tun.__init__.__defaults__ = ((0x10007,),)",
    "udp_gso": "from espthrunat.plane import udp_socket\nudp_socket.UDP_SEGMENT = 9999",
    "udp_gro": "from espthrunat.plane import udp_socket\nudp_socket.UDP_GRO = 9999",
    "gso_max_segs": "from espthrunat.plane import netconfig\n"
    "def refuse(*_): raise OSError(95, 'not supported')\n"
    "netconfig.set_segments = refuse",
    "recvmmsg": "import espthrunat.plane.recvmmsg as r\nr.struct = type('S', (), {'calcsize': lambda _: 4})",
}


@pytest.mark.parametrize("feature", FALLBACKS)
def test_bulk_arrives_without_a_feature_of_the_kernel(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, feature: str
) -> None:
    """It is named in the counters, and once in the log."""
    if feature == "recvmmsg":
        for side in sides:
            side.run("ethtool", "-K", "wan", "tx-udp-segmentation", "off")
    with connected(sides, tmp_path, patch=FALLBACKS[feature]) as planes:
        transfer(*sides)
        for running in planes:
            counters = running.stats().counters
            assert {name for name in counters if name.startswith(("drop", "error", "fallback"))} == {
                f"fallback_{feature}"
            }
            assert running.log.read_text().count(f"fallback_{feature}") == 1


def test_bulk_travels_in_trains(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """Otherwise all of this would pass one by one."""
    patch = """
from espthrunat.plane import tun, udp_socket
from espthrunat.plane.counters import Counters
def counted(kind, name, method, position):
    real = getattr(kind, method)
    def call(self, *args):
        if args[position] > 1:  # one alone, an acknowledgement for example, makes no train
            self._counters.add(name)
            self._counters.add(name + "_carried", args[position])
        return real(self, *args)
    setattr(kind, method, call)
counted(udp_socket.UdpSocket, "trains", "send_train", 2)
counted(tun.Tun, "supers", "write_super", 1)
"""
    with connected(sides, tmp_path, patch=patch) as planes:
        transfer(*sides)
        for running in planes:
            counters = running.stats().counters
            assert counters["trains_carried"] > 10 * counters["trains"]
            assert counters["supers_carried"] > 10 * counters["supers"]
            assert counters["trains_carried"] > counters["udp_out"] / 2
            assert counters["supers_carried"] > counters["tun_out"] / 2


class Relay:
    """Passes datagrams on between two planes, not all of them as they were."""

    def __init__(self, here: Namespace, there: Namespace) -> None:
        self._sockets = (there.udp(OUTER[1], 600), here.udp(OUTER[0], 600))  # for here's datagrams, for there's
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.impaired = 0
        self.loss, self.corruption, self.reordering = 0.0, 0.0, 0.0

    def __enter__(self) -> Relay:
        for sock in self._sockets:
            enlarge_buffers(sock)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        first, second = self._sockets
        chance = random.Random(3)
        while not self._end.is_set():
            for sock in select.select(self._sockets, [], [], 0.05)[0]:
                if sock is first:
                    self._pass(chance, first, second, (OUTER[1], 500))
                else:
                    self._pass(chance, second, first, (OUTER[0], 500))

    def _pass(
        self, chance: random.Random, source: socket.socket, target: socket.socket, remote: tuple[str, int]
    ) -> None:
        batch: list[bytes] = []
        source.setblocking(False)
        try:
            while len(batch) < 64:
                batch.append(source.recv(65535))
        except BlockingIOError:
            pass
        held: list[bytes] = []
        for datagram in batch:
            dice = chance.random()
            if dice < self.loss:
                self.impaired += 1
                continue
            if dice < self.loss + self.corruption:
                self.impaired += 1
                octets = bytearray(datagram)
                octets[chance.randrange(len(octets))] ^= 1 << chance.randrange(8)
                datagram = bytes(octets)
            elif dice < self.loss + self.corruption + self.reordering:
                self.impaired += 1
                held.append(datagram)
                continue
            target.sendto(datagram, remote)
        for datagram in held:
            target.sendto(datagram, remote)


@pytest.mark.parametrize("suite", ["aes128gcm16", "aes256-sha256"])
@pytest.mark.parametrize("impairment", ["loss", "corruption", "reordering"])
def test_bulk_arrives_through_an_impaired_path(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, impairment: str, suite: str
) -> None:
    here, there = sides
    rates = {"loss": 0.01, "corruption": 0.001, "reordering": 0.02}
    with (
        Relay(here, there) as relay,
        plane(here, tmp_path, HERE.configure) as left,
        plane(there, tmp_path, THERE.configure) as right,
    ):
        setattr(relay, impairment, rates[impairment])
        for running, side, spi_in, spi_out in ((left, HERE, 0x1001, 0x1002), (right, THERE, 0x1002, 0x1001)):
            path = msgspec.structs.replace(side.path, remote_port=600)
            for direction, spi in ((IN, spi_in), (OUT, spi_out)):
                running.send(msgspec.structs.replace(side.sa(direction, spi, suite), path=path))
            running.send(side.policy)
            running.stats()
        transfer(here, there)
        found = faults(left, right)
        if impairment == "corruption":
            # A broken marker makes IKE of a packet, and a broken SPI a stranger's; no other packet is lost with it.
            lost = sum(
                sum(n for name, n in running.stats().counters.items() if name.startswith("drop") or name == "ike_in")
                for running in (left, right)
            )
            assert lost == relay.impaired > 0
        else:
            assert relay.impaired > 0
            assert set(found) <= {"drop_esp_replay"}, found


@pytest.mark.draft("WIRE-6")
@pytest.mark.parametrize("suite", ["aes128gcm16", "aes128-sha1"])
@pytest.mark.parametrize("mtu", [1280, 1281, 1400, 4000, 9000])
def test_bulk_arrives_without_fragments_whatever_the_mtu(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, mtu: int, suite: str
) -> None:
    for side in sides:
        side.run("ip", "link", "set", "wan", "mtu", str(mtu))
    with connected(sides, tmp_path, suite, mtu=mtu) as planes:
        transfer(*sides)
        assert not faults(*planes)
        for side in sides:
            assert snmp(side, "FragCreates") == snmp(side, "ReasmReqds") == 0


@contextmanager
def through_a_router(tmp_path: FilePath, mtu: int) -> Iterator[tuple[Namespace, Namespace, PlaneProcess, PlaneProcess]]:
    """A client and a server whose planes do not know that the link between NAT and server carries only `mtu` octets.

    The client hears it from the NAT, the server from its own kernel.
    """
    with ExitStack() as stack:
        clients, server = stack.enter_context(clients_behind_a_nat(mtu))
        client = clients[0]
        client.run("ip", "address", "add", f"{INNER[0]}/32", "dev", "lo")
        server.run("ip", "address", "add", f"{INNER[1]}/32", "dev", "lo")
        right = stack.enter_context(plane(server, tmp_path, Configure(OUTER[1], 500, "esp0")))
        left = stack.enter_context(plane(client, tmp_path, Configure(LAN[0], 500, "esp0")))
        path = Path(LAN[0], 500, OUTER[1], 500)
        left.send(Datagrams([(path, COOKIE)]))
        ((seen, _),) = right.expect(Datagrams).items
        for running, path_, number, spi_in, spi_out in ((left, path, 0, 1, 2), (right, seen, 1, 2, 1)):
            selector = Selector(f"{INNER[number]}/32", f"{INNER[1 - number]}/32")
            for direction, spi in ((IN, 0x1000 + spi_in), (OUT, 0x1000 + spi_out)):
                keys = keymat(spi)
                running.send(AddSa(spi, direction, "aes128gcm16", keys, path_, Encapsulation.UDP, selector, "peer"))
            running.send(AddPolicy("peer", selector, INNER[number]))
            running.stats()
        yield client, server, left, right


@pytest.mark.draft("WIRE-6")
def test_a_narrow_link_on_the_way_is_found_out(tmp_path: FilePath) -> None:
    """Its router says so once; what is lost until then is sent again, and no fragment is ever on the wire."""
    with through_a_router(tmp_path, 1280) as (client, server, left, right):
        transfer(client, server)
        counters = [running.stats().counters for running in (left, right)]
        for inside, of_plane in ((client, counters[0]), (server, counters[1])):
            assert of_plane["drop_too_long"] > 0
            mtu = SUITES["aes128gcm16"].largest_inner(1280 - 36)
            assert f"mtu {mtu} " in inside.run("ip", "link", "show", "esp0")
            assert snmp(inside, "FragCreates") == snmp(inside, "ReasmReqds") == 0
