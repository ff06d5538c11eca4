"""The NAT's mappings are read as they are, and no event of a watched moment is missing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from natbed.conntrack import ConntrackError, ConntrackEvents, Mapping, parse_udp_entry, udp_mappings
from natbed.node import Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def nat() -> Iterator[Node]:
    nat = Node("nat")
    nat.call(lambda: Path("/proc/sys/net/netfilter/nf_conntrack_events").write_text("1"))
    rule = "iptables -t nat -A POSTROUTING -o lo -p udp -s 127.0.0.1 -j SNAT --to-source 127.0.0.9:337-345"
    nat.run(rule.split())
    yield nat
    nat.terminate()


def udp_socket(node: Node, address: str, port: int) -> socket.socket:
    made = node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.settimeout(5)
    made.bind((address, port))
    return made


def test_a_mapping_says_who_is_seen_as_whom(nat: Node) -> None:
    with udp_socket(nat, "127.0.0.1", 500) as client, udp_socket(nat, "127.0.0.2", 500) as server:
        client.sendto(b"x", ("127.0.0.2", 500))
        _, seen = server.recvfrom(10)
        (before,) = udp_mappings(nat)
        server.sendto(b"y", seen)
        client.recv(10)
        (after,) = udp_mappings(nat)
    assert (before.inside, before.public, before.remote) == (("127.0.0.1", 500), seen, ("127.0.0.2", 500))
    assert seen[0] == "127.0.0.9"
    assert (before.replied, after.replied) == (False, True)
    assert before.identifier == after.identifier
    assert 0 < after.seconds <= 120


def test_no_mappings_is_an_empty_list(nat: Node) -> None:
    assert udp_mappings(nat) == []


def test_a_port_forward_is_read_from_the_inside() -> None:
    line = (
        "ipv4     2 udp      17 27 src=198.51.100.7 dst=203.0.113.2 sport=500 dport=500 src=192.168.1.11 "
        "dst=198.51.100.7 sport=500 dport=500 [ASSURED] mark=0 use=1 id=17"
    )
    assert parse_udp_entry(line) == Mapping(
        inside=("192.168.1.11", 500), public=("203.0.113.2", 500), remote=("198.51.100.7", 500),
        replied=True, assured=True, seconds=27, identifier=17, forwarded=True,
    )  # fmt: skip


def test_what_has_passed_is_counted_where_the_kernel_counts(nat: Node) -> None:
    nat.call(lambda: Path("/proc/sys/net/netfilter/nf_conntrack_acct").write_text("1"))
    with udp_socket(nat, "127.0.0.1", 500) as client, udp_socket(nat, "127.0.0.2", 500) as server:
        for _ in range(2):
            client.sendto(b"\xff", ("127.0.0.2", 500))
            _, seen = server.recvfrom(10)
        server.sendto(b"yes", seen)
        client.recv(10)
    (mapping,) = udp_mappings(nat)
    assert (mapping.packets, mapping.octets) == (3, 2 * 29 + 31)


def test_an_entry_of_unknown_form_is_named() -> None:
    with pytest.raises(ConntrackError, match=r"src=1\.2\.3\.4"):
        parse_udp_entry("ipv4 2 udp 17 27 src=1.2.3.4")


def test_every_event_is_in_the_file(nat: Node, tmp_path: Path) -> None:
    with udp_socket(nat, "127.0.0.2", 500) as server, ConntrackEvents(nat, tmp_path / "events") as events:
        for port in range(5000, 5005):
            with udp_socket(nat, "127.0.0.1", port) as client:
                client.sendto(b"x", server.getsockname())
        nat.run(["conntrack", "-D", "-p", "udp"])
    lines = (tmp_path / "events").read_text().splitlines()
    assert events.count == len(lines) == 10
    assert ["[NEW]" in line for line in lines] == [True] * 5 + [False] * 5
    assert all("[DESTROY]" in line for line in lines[5:])
    assert all(abs(float(line[1 : line.index("]")]) - time.time()) < 10 for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["events"]


def test_a_slow_watcher_is_waited_for(nat: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = nat.popen
    slowly = ["sh", "-c", 'sleep 0.3; exec "$@"', "sh"]
    monkeypatch.setattr(nat, "popen", lambda argv, **kwargs: original([*slowly, *argv], **kwargs))
    with udp_socket(nat, "127.0.0.1", 500) as client, ConntrackEvents(nat, tmp_path / "events") as events:
        client.sendto(b"x", ("127.0.0.2", 500))
    assert events.count == 1


def test_a_watcher_that_cannot_start_says_why(nat: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = nat.popen
    monkeypatch.setattr(nat, "popen", lambda argv, **kwargs: original(["conntrack", "--no-such-option"], **kwargs))
    with pytest.raises(ConntrackError, match="no-such-option"), ConntrackEvents(nat, tmp_path / "events"):
        pass
