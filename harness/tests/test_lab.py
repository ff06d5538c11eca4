"""Labs: scenario A up, what its NAT does to traffic, and that it is gone afterwards, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from inhabitants import inhabitants

from natbed.lab import Lab, address_seen_from
from natbed.nat import presets
from natbed.node_kinds import Host
from natbed.scenario import Scenario
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")

IKE = 500
SCRIPT = pathlib.Path(__file__).with_name("lab_process.py")


def scenario_a(**parameters: Any) -> Scenario:
    return find("A")(**parameters)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(scenario_a()) as lab:
        yield lab


@pytest.fixture
def routed() -> Iterator[Lab]:
    with Lab(scenario_a(nat=presets.ROUTED)) as lab:
        yield lab


def udp_socket(host: Host) -> socket.socket:
    """A socket on the host's IKE address and port."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host.address, IKE))
        made.settimeout(5)
        return made

    return host.call(make)


@contextlib.contextmanager
def udp_sockets(lab: Lab) -> Iterator[dict[str, socket.socket]]:
    """One for each host."""
    with contextlib.ExitStack() as stack:
        yield {host.name: stack.enter_context(udp_socket(host)) for host in lab.hosts}


def server_sees(sockets: dict[str, socket.socket], client: str, server: str) -> tuple[str, int]:
    """Where a datagram from the client's port 500 comes from, as the server sees it."""
    sockets[client].sendto(client.encode(), (server, IKE))
    data, origin = sockets["server"].recvfrom(100)
    address: tuple[str, int] = origin
    assert data == client.encode()
    return address


def test_two_clients_with_one_port_are_two_ports_outside(lab: Lab) -> None:
    server = lab.host("server").address
    with udp_sockets(lab) as sockets:
        first = server_sees(sockets, "client1", server)
        second = server_sees(sockets, "client2", server)
        assert first[0] == second[0] == lab.nat("nat").public_address
        assert first[1] != second[1]
        for client, origin in (("client1", first), ("client2", second)):
            sockets["server"].sendto(b"for " + client.encode(), origin)
            assert sockets[client].recv(100) == b"for " + client.encode()


def test_a_routed_lab_shows_private_addresses(routed: Lab) -> None:
    with udp_sockets(routed) as sockets:
        for client in ("client1", "client2"):
            origin = server_sees(sockets, client, routed.host("server").address)
            assert origin == (routed.host(client).address, IKE)
        sockets["server"].sendto(b"unasked", (routed.host("client1").address, IKE))
        assert sockets["client1"].recv(100) == b"unasked", "a router filters nothing"


def test_a_late_packet_does_not_take_the_clients_port(lab: Lab) -> None:
    nat = lab.nat("nat")
    with udp_sockets(lab) as sockets:
        before = server_sees(sockets, "client1", lab.host("server").address)
        nat.run(["conntrack", "-F"])  # as when the mapping expires
        sockets["server"].sendto(b"late", before)
        # In order on the same wire: once the echo is answered, the NAT has dealt with the late packet.
        lab["server"].run(["ping", "-c", "1", "-W", "2", nat.public_address])
        assert server_sees(sockets, "client1", lab.host("server").address) == before


def test_a_nat_lets_nobody_in_uncalled(lab: Lab) -> None:
    nat, client = lab.nat("nat"), lab.host("client1")
    lab["internet"].run(["ip", "route", "add", "192.168.1.0/24", "via", nat.public_address])
    done = lab["server"].run(["ping", "-c", "1", "-W", "0.2", client.address], check=False)
    assert "0 received" in done.stdout


def test_timeouts_are_the_nats_own() -> None:
    with Lab(scenario_a(nat=presets.MASQUERADE)) as lab:
        read = ["cat", "/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream"]
        assert lab["nat"].run(read).stdout == f"{presets.MASQUERADE.udp_timeout_stream}\n"


def test_hosts_have_the_addresses_of_their_plan(lab: Lab) -> None:
    server, client = lab.host("server"), lab.host("client2")
    assert (server.address, server.protected) == ("203.0.113.18", "10.99.0.1/32")
    assert (client.address, client.protected) == ("192.168.1.12", "192.168.1.12/32")
    assert server.IP() == "10.99.0.1"
    assert "10.99.0.1/32" in server.addresses("lo")
    nat = lab.nat("nat")
    assert (nat.wan, nat.lan, nat.public_address) == ("nat-eth0", "nat-eth1", "203.0.113.2")
    assert sorted(host.name for host in lab.hosts) == ["client1", "client2", "server"]
    assert [nat.name for nat in lab.nats] == ["nat"]
    assert [segment.name for segment in lab.segments] == ["home"]
    with pytest.raises(KeyError, match="no node 'client9'; there are client1"):
        lab["client9"]


def test_a_name_stands_for_the_address_that_answers(lab: Lab) -> None:
    client, server = lab.host("client1"), lab.host("server")
    assert address_seen_from(client, server) == "203.0.113.18"
    client.run(["ip", "route", "add", "10.99.0.1", "via", "192.168.1.1"])  # as a tunnel would
    assert address_seen_from(client, server) == "10.99.0.1"
    assert address_seen_from(server, lab["nat"]) == "203.0.113.2"
    assert address_seen_from(server, lab["internet"]) == "203.0.113.1"


def counters(lab: Lab) -> dict[str, Any]:
    """What each interface has sent and received. The state of a bridge may settle later, which sends nothing."""
    links = {node.name: json.loads(node.run(["ip", "-s", "-j", "link"]).stdout) for node in lab.nodes}
    return {f"{name} {link['ifname']}": link["stats64"] for name, found in links.items() for link in found}


def test_no_node_speaks_by_itself(lab: Lab) -> None:
    """An idle lab is silent, so whatever is on a wire belongs to what is tested."""
    for node in lab.nodes:
        assert node.run(["ip", "-6", "-o", "address"]).stdout == "", "IPv6 would look for neighbours and routers"
    before = counters(lab)
    time.sleep(0.1)
    assert counters(lab) == before


def test_how_long_it_takes(record_property: Callable[[str, object], None]) -> None:
    best = 60.0
    for _ in range(3):
        with Lab(scenario_a()) as lab:
            pass
        best = min(best, lab.build_seconds + lab.teardown_seconds)
    record_property("build_and_teardown_seconds", best)
    sys.stdout.write(f"scenario A: build and teardown {best * 1000:.0f} ms\n")
    assert best < 2, "ten times what it takes: something waits for a timeout"


def test_an_exception_takes_the_lab_down() -> None:
    descriptors, threads = set(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    namespaces: set[int] = set()

    def use() -> None:
        with doomed as lab:
            namespaces.update(node.namespace for node in lab.nodes)
            lab["client1"].popen(["sleep", "1000"])
            raise ZeroDivisionError

    doomed = Lab(scenario_a())
    with pytest.raises(ZeroDivisionError):
        use()
    assert len(namespaces) == 6
    doomed.close()
    assert doomed.nodes == []
    assert doomed.teardown_seconds > 0
    assert not inhabitants(namespaces)
    assert set(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert threading.active_count() == threads


def test_a_build_that_fails_or_is_interrupted_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors, threads = set(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(*_args: object, kind: type[BaseException] = error) -> None:
            raise kind

        monkeypatch.setattr("natbed.nat.rules.verify", fail)
        with pytest.raises(error):
            Lab(scenario_a()).build()
        assert set(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
        assert threading.active_count() == threads


def test_an_interrupt_of_the_teardown_waits_for_its_end(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    namespaces = {node.namespace for node in lab.nodes}
    lab["client1"].popen(["sleep", "1000"])
    nodes, release = lab.nodes, Host.release

    def interrupted(host: Host) -> None:
        signal.raise_signal(signal.SIGINT)
        release(host)

    monkeypatch.setattr(Host, "release", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.close()
    assert not inhabitants(namespaces)
    assert all(node.namespace_fd == -1 for node in nodes)


# harnesses in processes of their own


class Harness:
    """lab_process.py, up."""

    def __init__(self, mode: str = "wait") -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.state: dict[str, Any] = json.loads(line)

    @property
    def namespaces(self) -> set[int]:
        """The inodes of its nodes' network namespaces."""
        return set(self.state["namespaces"])

    def discard(self) -> None:
        """Kill it, and read nothing more: what it left behind might hold its pipes open."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def end(self, text: str = "\n") -> tuple[str, str]:
        """Let it go on to its end."""
        return self.process.communicate(text, timeout=20)


@pytest.fixture
def harness() -> Iterator[Callable[..., Harness]]:
    with contextlib.ExitStack() as stack:

        def start(mode: str = "wait") -> Harness:
            harness = Harness(mode)
            stack.callback(harness.discard)
            return harness

        yield start


def nothing_left(namespaces: set[int]) -> None:
    """No process is in these namespaces, at the latest in five seconds."""
    end = time.monotonic() + 5
    while left := inhabitants(namespaces):
        commands = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        assert time.monotonic() < end, f"still there: {commands}"
        time.sleep(0.01)


def test_two_labs_at_once_never_meet(harness: Callable[..., Harness]) -> None:
    one, other = harness(), harness()
    assert one.namespaces.isdisjoint(other.namespaces)
    assert one.state["seen_by_server"].count("server-eth0") == other.state["seen_by_server"].count("server-eth0") == 1
    for lab in (one, other):
        assert "sleep" in str([pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in lab.state["programs"]])
    one.process.kill()
    one.process.wait()
    output, errors = other.end()
    assert json.loads(output) == {"ping": 0}, errors
    assert other.process.returncode == 0, errors
    nothing_left(one.namespaces | other.namespaces)


def test_kill_9_leaves_no_process_and_no_namespace(harness: Callable[..., Harness]) -> None:
    lab = harness()
    assert len(inhabitants(lab.namespaces)) >= len(lab.state["programs"])
    lab.process.kill()
    lab.process.wait()
    nothing_left(lab.namespaces)


def test_ctrl_c_takes_the_lab_down(harness: Callable[..., Harness]) -> None:
    lab = harness()
    lab.process.send_signal(signal.SIGINT)
    _, errors = lab.end("")
    assert lab.process.returncode == 130, errors
    assert not inhabitants(lab.namespaces)


def test_an_exception_ends_the_process_and_its_lab(harness: Callable[..., Harness]) -> None:
    lab = harness("raise")
    _, errors = lab.end()
    assert "RuntimeError: inside the lab" in errors
    assert not inhabitants(lab.namespaces)
