"""Throughput is iperf3's, of both directions; where it cannot be measured decides whether lab or tunnel is at fault."""

from __future__ import annotations

import json
import os
import time

import pytest
from two_nodes import CLIENT, SERVER, Nodes

from natbed.checks import Verdict, throughput
from natbed.checks.throughput import IperfError, IperfPath, PathRates, Rate, measure, measure_path, parse_iperf

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def paths(nodes: Nodes) -> tuple[IperfPath, IperfPath]:
    """The tunnel's path and the plain one."""
    return IperfPath(*nodes, CLIENT[1], SERVER[1]), IperfPath(*nodes, CLIENT[0], SERVER[0])


def test_a_limited_tunnel_is_set_against_the_plain_path(nodes: Nodes) -> None:
    for node, far in ((nodes[0], SERVER[1]), (nodes[1], CLIENT[1])):
        limit = f"iptables -A INPUT -p tcp -s {far} -m hashlimit --hashlimit-above 4mb/s --hashlimit-name slow -j DROP"
        node.run(limit.split())
    result = measure(*paths(nodes), duration=1)
    assert result.verdict is Verdict.PASSED
    for direction in ("forward", "reverse"):
        assert 0 < result.details["tunnel"][direction]["megabits_per_second"] < 100
        assert result.details["tunnel"][direction]["retransmits"] > 0
        assert result.details["plain"][direction]["megabits_per_second"] > 200
        assert 0 < result.details["ratio"][direction] < 0.5


def test_a_ratio_that_is_asked_for_is_judged(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(path: IperfPath, *, duration: int) -> PathRates:
        fast = Rate(megabits_per_second=1000.0, retransmits=0, seconds=duration)
        slow = Rate(megabits_per_second=300.0, retransmits=0, seconds=duration)
        return PathRates(forward=fast, reverse=slow if path.client_address == CLIENT[1] else fast)

    monkeypatch.setattr(throughput, "measure_path", rates)
    assert measure(*paths(nodes), minimum_ratio=0.3).verdict is Verdict.PASSED
    result = measure(*paths(nodes), minimum_ratio=0.31)
    assert (result.verdict, result.details["ratio"]) == (Verdict.FAILED, {"forward": 1.0, "reverse": 0.3})
    assert "less than 31% of the plain path" in result.reason


def test_a_dead_tunnel_fails_in_time_with_the_reason(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_CONNECT_TIMEOUT", 500)
    nodes[1].run(["iptables", "-A", "INPUT", "-d", SERVER[1], "-j", "DROP"])
    started = time.monotonic()
    result = measure(*paths(nodes), duration=1)
    assert (result.verdict, result.reason[:7]) == (Verdict.FAILED, "tunnel:")
    assert "unable to connect" in result.reason
    assert time.monotonic() - started < 8
    assert result.details["plain"]["forward"]["megabits_per_second"] > 0


def test_a_dead_plain_path_is_a_broken_lab(nodes: Nodes) -> None:
    nodes[1].run(["iptables", "-A", "INPUT", "-p", "tcp", "-d", SERVER[0], "-j", "REJECT"])
    result = measure(*paths(nodes), duration=1)
    assert result.verdict is Verdict.LAB_BROKEN
    assert result.reason.startswith("plain path: iperf3")


def test_a_server_that_cannot_listen_says_why(nodes: Nodes) -> None:
    with pytest.raises(IperfError, match="Cannot assign requested address"):
        measure_path(IperfPath(*nodes, CLIENT[0], "10.9.9.9"))


def report(received: float, **more: object) -> str:
    end = {"sum_received": {"bits_per_second": received, "seconds": 2.0}, "sum_sent": {"retransmits": 3}}
    return json.dumps({"end": end, **more})


def test_the_receivers_rate_counts() -> None:
    rate = parse_iperf(report(12_345_678))
    assert (rate.megabits_per_second, rate.retransmits, rate.seconds) == (12.346, 3, 2.0)


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        (report(1e6, error="interrupt"), "interrupt"),
        (report(0), "nothing arrived"),
        ('{"end": {}}', "sum_received"),
        ("", "no JSON: killed"),
    ],
)
def test_what_is_no_measurement_is_refused(printed: str, reason: str) -> None:
    with pytest.raises(IperfError, match=reason):
        parse_iperf(printed, "killed")
