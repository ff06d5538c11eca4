"""Connectivity is judged from both ends, for all clients at once, and a failure says what was last seen."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from two_nodes import CLIENT, SERVER, Nodes

from natbed.capture import Capture, read_pcap
from natbed.checks import PATTERN, CheckResult, Verdict, connectivity
from natbed.checks.connectivity import Pair, check_connectivity
from natbed.checks.flows import FlowError, parse_ping

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def judge(nodes: Nodes, deadline: float = 5.0) -> CheckResult:
    pairs = [Pair(*nodes, client, server) for client, server in zip(CLIENT, SERVER, strict=True)]
    return check_connectivity(pairs, deadline=deadline, pings=5, protected=False)


def flows(result: CheckResult, kind: str) -> list[dict[str, Any]]:
    return [flow for flow in result.details["flows"] if flow["kind"] == kind]


def test_everything_passes_on_a_clear_path(nodes: Nodes, tmp_path: Path) -> None:
    with Capture(nodes[1], "wan", tmp_path / "wan.pcap"):
        result = judge(nodes)
    assert (result.verdict, result.reason[:15]) == (Verdict.PASSED, "24 flows passed")
    assert [flow["octets"] for flow in flows(result, "tcp")] == [256 << 10] * 4
    assert all(flow["rtt"]["max"] > 0 for flow in flows(result, "ping"))
    frames = [frame.data for frame in read_pcap(tmp_path / "wan.pcap") if frame.data[12:14] == b"\x08\x00"]
    for protocol in (1, 6, 17):  # each shows the pattern, and between the addresses of its pair only
        carrying = [frame for frame in frames if frame[23] == protocol and PATTERN in frame]
        ends = {tuple(sorted((frame[29], frame[33]))) for frame in carrying}
        assert ends == {(1, 11), (2, 12)}


@pytest.mark.parametrize(
    ("protocol", "kind", "seen"),
    [
        ("icmp", "ping", "0 of 5 pings were answered"),
        ("tcp", "tcp", "no connection"),
        ("udp", "udp", "did not arrive"),
    ],
)
def test_one_lost_protocol_fails_and_says_what_was_seen(nodes: Nodes, protocol: str, kind: str, seen: str) -> None:
    nodes[1].run(["iptables", "-A", "INPUT", "-p", protocol, "-d", SERVER[1], "-j", "DROP"])
    result = judge(nodes, deadline=1.0)
    assert result.verdict is Verdict.FAILED
    assert seen in result.reason
    assert {flow["kind"].removesuffix(" sizes") for flow in result.details["flows"] if not flow["passed"]} == {kind}
    assert all(SERVER[1] in flow["path"] for flow in result.details["flows"] if not flow["passed"])


def test_a_connection_that_stalls_says_how_far_it_came(nodes: Nodes) -> None:
    rule = f"iptables -A INPUT -p tcp -d {CLIENT[0]} -m length --length 1000:65535 -j DROP"
    nodes[0].run(rule.split())
    result = judge(nodes, deadline=1.0)
    assert result.verdict is Verdict.FAILED
    assert f"of {256 << 10} octets came back" in result.reason


def test_answers_from_another_address_do_not_count(nodes: Nodes) -> None:
    """A NAT that rewrites what the tunnel should carry untouched."""
    rule = f"iptables -t nat -A POSTROUTING -s {CLIENT[0]} -j SNAT --to-source {CLIENT[1]}"
    nodes[0].run(rule.split())
    result = judge(nodes, deadline=1.0)
    assert result.verdict is Verdict.FAILED
    assert {flow["kind"] for flow in result.details["flows"] if not flow["passed"]} == {"tcp", "udp", "udp sizes"}


def test_an_echo_that_differs_in_one_octet_fails(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(listener: socket.socket, expected_peer: str, until: float) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            while part := connection.recv(1 << 16):
                connection.sendall(bytes([part[0] ^ 1]) + part[1:])

    monkeypatch.setattr(connectivity, "_serve_tcp", damage)
    result = judge(nodes)
    assert result.verdict is Verdict.FAILED
    assert "but not those that were sent" in result.reason


def test_an_address_that_no_node_has_is_a_broken_lab(nodes: Nodes) -> None:
    result = check_connectivity([Pair(*nodes, "10.9.9.9", SERVER[0])], deadline=1.0, pings=2)
    assert result.verdict is Verdict.LAB_BROKEN
    assert "10.9.9.9" in result.reason


def test_nothing_to_check_proves_nothing() -> None:
    assert check_connectivity([]).verdict is Verdict.LAB_BROKEN


def test_ping_losses_and_times_are_read() -> None:
    printed = "10 packets transmitted, 9 received, 10% packet loss, time 9ms\nrtt min/avg/max/mdev = 0.1/0.2/0.3/0.0 ms"
    assert parse_ping(printed, "", allowed_loss=10)["problem"] == ""
    assert parse_ping(printed, "") == {
        "loss_percent": 10.0,
        "rtt": {"min": 0.1, "average": 0.2, "max": 0.3},
        "problem": "9 of 10 pings were answered",
    }
    with pytest.raises(FlowError, match="unknown host"):
        parse_ping("", "ping: unknown host")


def test_a_ping_that_is_never_answered_is_lost_though_a_later_one_was() -> None:
    lines = [f"128 bytes from 10.0.0.2: icmp_seq={n} ttl=64 time=0.1 ms" for n in (1, 2, 4, 5, 6)]
    summary = "6 packets transmitted, 5 received, 16% packet loss\nrtt min/avg/max/mdev = 0.1/0.1/0.1/0.0 ms"
    printed = "\n".join([*lines, summary])
    assert parse_ping(printed, "", wanted=5)["problem"] == "4 of 5 pings were answered"
    all_five = printed.replace("icmp_seq=6", "icmp_seq=3")
    assert parse_ping(all_five, "", wanted=5)["problem"] == "", "the sixth was sent while the third was awaited"
