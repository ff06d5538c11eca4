"""A plane starts or says why not, obeys one daemon, and ends with it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path as FilePath

import msgspec
import pytest
from plane_world import DEADLINE, HERE, OUTER, Namespace, plane, two_namespaces, what_is_missing

from espthrunat.messages import Configure, Datagrams, Direction, GetStats, Ready, ToPlane, encode

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture
def here() -> Iterator[Namespace]:
    with two_namespaces() as (here, _):
        yield here


def has_tun(inside: Namespace) -> bool:
    return "esp0" in inside.run("ip", "link")


def test_it_ends_cleanly_with_its_daemon_and_takes_the_device_along(here: Namespace, tmp_path: FilePath) -> None:
    with plane(here, tmp_path, HERE.configure, fork=False) as running:
        assert has_tun(here)
        running.socket.close()
        assert running.ended() == 0
        assert not has_tun(here)
        assert running.log.read_text() == ""


def test_a_daemon_that_dies_before_configuring_ends_it(here: Namespace, tmp_path: FilePath) -> None:
    with plane(here, tmp_path, fork=False) as running:
        running.socket.close()
        assert running.ended() == 0


def test_sigterm_ends_it_and_sigint_does_not(here: Namespace, tmp_path: FilePath) -> None:
    with plane(here, tmp_path, HERE.configure, fork=False) as running:
        running.process.send_signal(signal.SIGINT)
        running.stats()
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
        assert not has_tun(here)


def test_it_does_not_outlive_a_killed_daemon(here: Namespace, tmp_path: FilePath) -> None:
    """Its socket stays open here, so only the death of its parent can end it."""
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
                assert has_tun(here)
            finally:
                daemon.kill()
            assert ours.recv(1000) == b""


@pytest.mark.parametrize(
    ("configure", "complaint"),
    [
        (
            Configure("192.0.2.77", 500, "esp0"),
            "UDP 192.0.2.77:500 cannot be opened: no interface here has",
        ),
        (Configure("not an address", 500, "esp0"), "UDP not an address:500 cannot be opened: "),
        (Configure(OUTER[0], 70_000, "esp0"), "UDP 192.0.2.1:70000 cannot be opened: "),
        (Configure(OUTER[0], 500, "a name that is too long"), "cannot be the name of a network device"),
        (Configure(OUTER[0], 500, "../evil"), "cannot be the name of a network device"),
        (Configure(OUTER[0], 500, "lo"), "TUN device lo cannot be opened: a device of this name exists"),
        (Configure(OUTER[0], 501, "esp0"), "UDP 192.0.2.1:501 cannot be opened: another program has this port"),
    ],
    ids=["address", "not an address", "port", "long name", "evil name", "other device", "port in use"],
)
def test_it_says_why_it_cannot_start(here: Namespace, tmp_path: FilePath, configure: Configure, complaint: str) -> None:
    with here.udp(OUTER[0], 501), plane(here, tmp_path, fork=False) as running:
        running.send(configure)
        error = running.expect(Ready).error
        assert complaint in error
        assert "\n" not in error
        assert running.ended() == 1


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        encode(Ready()),
        encode(HERE.configure),
        msgspec.msgpack.encode({"type": "get_stats", "query": "many"}),
        encode(msgspec.structs.replace(HERE.sa(Direction.OUTBOUND, 1), suite="rot13")),
    ],
    ids=["no message", "a message of its own", "a second Configure", "wrong type", "unknown suite"],
)
def test_a_daemon_that_talks_nonsense_ends_it(here: Namespace, tmp_path: FilePath, packet: bytes) -> None:
    with plane(here, tmp_path, HERE.configure, fork=False) as running:
        running.socket.send(packet)
        assert running.ended() == 1
        assert "makes no sense" in running.log.read_text()
        assert not has_tun(here)


@pytest.mark.parametrize("first", [GetStats(1), Datagrams([])], ids=["GetStats", "Datagrams"])
def test_configure_must_come_first(here: Namespace, tmp_path: FilePath, first: ToPlane) -> None:
    with plane(here, tmp_path, fork=False) as running:
        running.send(first)
        assert running.ended() == 1


def test_keys_never_reach_the_log(here: Namespace, tmp_path: FilePath) -> None:
    with plane(here, tmp_path, HERE.configure, fork=False) as running:
        sa = msgspec.structs.replace(HERE.sa(Direction.OUTBOUND, 1), keymat=b"very secret")
        running.send(sa)
        assert running.ended() == 1
        log = running.log.read_text()
        assert "needs 20 octets of KEYMAT, not 11" in log
        assert "secret" not in log


def test_a_deleted_device_ends_it(here: Namespace, tmp_path: FilePath) -> None:
    with plane(here, tmp_path, HERE.configure, fork=False) as running:
        here.run("ip", "link", "delete", "esp0")
        assert running.ended() == 1
        assert "esp0 was deleted" in running.log.read_text()


def test_wrong_arguments_are_explained() -> None:
    command = [sys.executable, "-m", "espthrunat.plane"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert run.returncode == 2
    assert "usage" in run.stderr
