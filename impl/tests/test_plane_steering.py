"""What a policy names goes into the tunnel, all else goes as if there were no policy, and nothing stays behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path as FilePath

import msgspec
import pytest
from plane_world import DEADLINE, HERE, INNER, OUTER, THERE, Namespace, plane, two_namespaces, what_is_missing

from espthrunat.messages import (
    AddPolicy,
    DeletePolicy,
    Direction,
    Encapsulation,
    Selector,
    encode,
)
from espthrunat.plane.steering import MARK

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
BUILT_IN_RULES = 3


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def rules(inside: Namespace) -> list[str]:
    return inside.run("ip", "rule").splitlines()


def is_steered(inside: Namespace, *destination: str) -> bool:
    return "dev esp0" in inside.run("ip", "route", "get", *destination)


def test_steering_comes_and_goes_with_the_policy(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    here.run("ip", "route", "add", "default", "dev", "wan")
    with plane(here, tmp_path, HERE.configure) as left:
        without = rules(here)
        more = AddPolicy("more", Selector(f"{INNER[0]}/32", f"{INNER[1]}/32", 17))
        left.send(AddPolicy("net", Selector(f"{INNER[0]}/32", "10.3.0.0/16")), HERE.policy, more)
        left.stats()
        assert is_steered(here, "10.3.0.1")
        assert f"src {INNER[0]}" in here.run("ip", "route", "get", "10.3.0.1"), "unbound sockets get the right source"
        assert not is_steered(here, "10.3.0.1", "from", OUTER[0])
        left.send(DeletePolicy("peer"), DeletePolicy("net"), DeletePolicy("never there"))
        left.stats()
        assert not is_steered(here, "10.3.0.1")
        assert is_steered(here, INNER[1], "ipproto", "udp"), "another policy still needs it"
        assert not is_steered(here, INNER[1], "ipproto", "tcp")
        left.send(DeletePolicy("more"))
        left.stats()
        assert rules(here) == without
        assert "esp0" not in here.run("ip", "route", "show", "table", "all", "type", "unicast")


def test_unbound_programs_are_protected_too(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """A ping and a TCP connection without a source address of their own: both get the policy's source."""
    here, there = sides
    with plane(here, tmp_path, HERE.configure) as left, plane(there, tmp_path, THERE.configure) as right:
        for running, side, spi_in, spi_out in ((left, HERE, 0x1001, 0x1002), (right, THERE, 0x1002, 0x1001)):
            running.send(side.sa(IN, spi_in), side.sa(OUT, spi_out), side.policy)
            running.stats()
        here.run("ping", "-c", "1", "-W", "5", INNER[1])
        with there.tcp(INNER[1], 80) as server, here.tcp("0.0.0.0", 0) as client:
            server.listen()
            client.connect((INNER[1], 80))
            accepted, source = server.accept()
            accepted.close()
            assert source[0] == INNER[0]
        assert left.stats().counters["udp_out"] > 3


def test_what_the_selector_does_not_name_goes_around(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with (
        plane(here, tmp_path, HERE.configure) as left,
        there.udp(OUTER[1], 7) as other_port,
        there.udp(OUTER[1], 8) as named_port,
        here.udp("0.0.0.0", 0) as program,
    ):
        left.send(AddPolicy("one port", Selector(f"{OUTER[0]}/32", f"{OUTER[1]}/32", 17, 0, 8)))
        left.stats()
        program.sendto(b"in the clear", (OUTER[1], 7))
        assert other_port.recv(100) == b"in the clear"
        here.run("ping", "-c", "1", "-W", "5", OUTER[1])
        program.sendto(b"never in the clear", (OUTER[1], 8))
        left.wait_for("drop_no_sa")
        program.sendto(b"later", (OUTER[1], 7))
        assert other_port.recv(100) == b"later"
        named_port.setblocking(False)
        with pytest.raises(BlockingIOError):
            named_port.recv(100)


@pytest.mark.parametrize("encapsulation", Encapsulation)
@pytest.mark.parametrize("rp_filter", ["0", "1"])
def test_the_peer_itself_may_be_in_the_remote_network(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, encapsulation: Encapsulation, rp_filter: str
) -> None:
    """Everything is to be protected; our own datagrams still leave, and strict rp_filter lets those of the peer in."""
    for inside, other, address in ((sides[0], sides[1], OUTER[1]), (sides[1], sides[0], OUTER[0])):
        link = other.run("ip", "-brief", "link", "show", "wan").split()[2]
        # Strict rp_filter looks at ARP too; a router between the peers would spare them that.
        inside.run("ip", "neighbour", "replace", address, "lladdr", link, "dev", "wan")
    with plane(sides[0], tmp_path, HERE.configure) as left, plane(sides[1], tmp_path, THERE.configure) as right:
        everything = Selector("0.0.0.0/0", "0.0.0.0/0")
        for inside, running, side, spi_in, spi_out in (
            (sides[0], left, HERE, 0x1001, 0x1002),
            (sides[1], right, THERE, 0x1002, 0x1001),
        ):
            inside.run("sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={rp_filter}")
            for sa in (
                side.sa(IN, spi_in, encapsulation=encapsulation),
                side.sa(OUT, spi_out, encapsulation=encapsulation),
            ):
                running.send(msgspec.structs.replace(sa, selector=everything))
            running.send(AddPolicy("all", everything), AddPolicy("peer", everything, INNER[side.number]))
            running.send(DeletePolicy("all"))
            running.stats()
        sides[0].run("ping", "-c", "2", "-i", "0.01", "-W", "5", INNER[1])
        sides[0].run("ping", "-c", "1", "-W", "5", "-I", OUTER[0], OUTER[1])
        counters = left.stats().counters
        assert not [name for name in counters if name.startswith(("drop", "error"))], counters
        assert counters["tun_in"] == 3


def test_the_last_port_is_not_forgotten(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """No rule of the kernel can name it."""
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left, here.udp("0.0.0.0", 0) as program:
        left.send(AddPolicy("last", Selector(f"{OUTER[0]}/32", f"{OUTER[1]}/32", 17, 0, 65535)))
        left.stats()
        program.sendto(b"never in the clear", (OUTER[1], 65535))
        left.wait_for("drop_no_sa")


@pytest.mark.parametrize("encapsulation", Encapsulation)
def test_our_datagrams_carry_the_mark(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, encapsulation: Encapsulation
) -> None:
    here, _ = sides
    here.run("iptables", "-A", "OUTPUT", "-o", "wan", "-m", "mark", "!", "--mark", hex(MARK), "-j", "DROP")
    here.run("iptables", "-A", "OUTPUT", "-o", "wan", "-j", "ACCEPT")
    with plane(here, tmp_path, HERE.configure) as left, here.udp(INNER[0], 7) as program:
        left.send(HERE.policy, HERE.sa(OUT, 0x1002, encapsulation=encapsulation))
        left.stats()
        program.sendto(b"x", (INNER[1], 7))
        left.wait_for("udp_out" if encapsulation is Encapsulation.UDP else "raw_out")
    drop, accept = here.run("iptables", "-nvxL", "OUTPUT").splitlines()[2:4]
    assert (drop.split()[0], accept.split()[0]) == ("0", "1")


def test_two_planes_in_one_namespace_do_not_disturb_each_other(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, _ = sides
    second = msgspec.structs.replace(HERE.configure, port=501, tun="esp1")
    with plane(here, tmp_path, HERE.configure) as left:
        left.send(HERE.policy)
        left.stats()
        with plane(here, tmp_path, second) as other:
            other.send(AddPolicy("elsewhere", Selector(f"{INNER[0]}/32", "10.3.0.0/16"), INNER[0]))
            other.stats()
            assert "dev esp1" in here.run("ip", "route", "get", "10.3.0.1")
            assert is_steered(here, INNER[1])
            other.process.send_signal(signal.SIGTERM)
            assert other.ended() == 0
        assert is_steered(here, INNER[1])
        left.send(DeletePolicy("peer"))
        left.stats()


def test_rules_of_others_stay(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    here.run("ip", "rule", "add", "pref", "211", "to", "10.9.0.0/16", "table", "77")
    here.run("ip", "rule", "add", "pref", "100", "to", "10.9.0.0/16", "table", str(0x45000063))
    before = rules(here)
    with plane(here, tmp_path, HERE.configure) as left:
        left.send(HERE.policy)
        left.stats()
    assert left.ended() != 0
    with plane(here, tmp_path, HERE.configure) as left:
        left.socket.close()
        assert left.ended() == 0
    assert rules(here) == before


@pytest.mark.parametrize("end", ["SIGTERM", "end of stream"])
def test_nothing_stays_in_the_kernel(sides: tuple[Namespace, Namespace], tmp_path: FilePath, end: str) -> None:
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left:
        left.send(HERE.policy)
        left.stats()
        assert len(rules(here)) > BUILT_IN_RULES
        if end == "SIGTERM":
            left.process.send_signal(signal.SIGTERM)
        else:
            left.socket.close()
        assert left.ended() == 0
        assert len(rules(here)) == BUILT_IN_RULES


@pytest.mark.parametrize("first", ["SIGTERM", "end of stream"])
def test_nothing_stays_when_its_end_is_asked_for_again_and_again(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, first: str
) -> None:
    """A killed daemon asks twice within microseconds: its socket ends, and SIGTERM comes."""
    here, _ = sides
    for _ in range(4):
        with plane(here, tmp_path, HERE.configure) as left:
            left.send(HERE.policy)
            left.stats()
            assert len(rules(here)) > BUILT_IN_RULES
            if first == "end of stream":
                left.socket.close()
            deadline = time.monotonic() + DEADLINE
            while left.process.poll() is None and time.monotonic() < deadline:
                left.process.send_signal(signal.SIGTERM)
            assert left.ended() == 0
            assert len(rules(here)) == BUILT_IN_RULES


def test_nothing_stays_when_the_daemon_is_killed(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """The plane's socket stays open here, so only the death of its parent can end it."""
    here, _ = sides
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        fd = theirs.fileno()
        program = f"""
import subprocess, sys
subprocess.run([sys.executable, "-m", "espthrunat.plane", "--fd", "{fd}"], pass_fds=[{fd}])
"""
        ours.settimeout(DEADLINE)
        with subprocess.Popen([*here.enter, sys.executable, "-c", program], pass_fds=[fd]) as daemon:
            theirs.close()
            try:
                ours.send(encode(HERE.configure))
                ours.recv(1000)
                assert len(rules(here)) > BUILT_IN_RULES
            finally:
                daemon.kill()
            assert ours.recv(1000) == b""
    assert len(rules(here)) == BUILT_IN_RULES


def test_the_next_plane_cleans_up_after_a_killed_one(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    with plane(here, tmp_path, HERE.configure) as left:
        fresh = rules(here)
        left.send(HERE.policy)
        left.stats()
        left.process.kill()
        left.ended()
        stale = rules(here)
        assert len(stale) > len(fresh)
    with plane(here, tmp_path, HERE.configure) as left:
        assert len(rules(here)) == len(fresh)
        left.send(HERE.policy)
        left.stats()
        assert is_steered(here, INNER[1])


def test_after_a_killed_plane_nothing_goes_out_in_clear(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    here.run("ip", "route", "add", "default", "dev", "wan")
    udp_only = AddPolicy("more", Selector(f"{INNER[0]}/32", "10.3.0.1/32", 17))
    with plane(here, tmp_path, HERE.configure) as left:
        left.send(HERE.policy, udp_only)
        left.stats()
        left.process.kill()
        left.ended()
    command = [*here.enter, "ip", "route", "get"]
    for protected in ([INNER[1]], [INNER[1], "from", INNER[0]], ["10.3.0.1", "ipproto", "udp"]):
        looked_up = subprocess.run([*command, *protected], capture_output=True, text=True, check=False)
        assert looked_up.returncode != 0, looked_up.stdout
        assert "unreachable" in looked_up.stderr
    assert "dev wan" in here.run("ip", "route", "get", "10.3.0.1", "ipproto", "tcp")
    assert "dev wan" in here.run("ip", "route", "get", OUTER[1])
