"""Throughput is iperf3's, of both directions; where it cannot be measured decides whether lab or tunnel is at fault."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from iperf_files import scratch
from two_nodes import CLIENT, SERVER, Nodes

from natbed.checks import CheckResult, Verdict, iperf, throughput
from natbed.checks.iperf import IperfDied, IperfError, IperfPath, PathRates, Rate, measure_path, parse_iperf
from natbed.checks.throughput import ATTEMPTS, Spread, UsualRatio, measure
from natbed.isolation import runtime_directory

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


def usual(low: float, high: float) -> UsualRatio:
    both = Spread(low=low, median=(low + high) / 2, high=high, samples=5)
    return UsualRatio(forward=both, reverse=both)


def rates(forward: float, reverse: float) -> PathRates:
    one, other = (Rate(megabits_per_second=speed, retransmits=0, seconds=1) for speed in (forward, reverse))
    return PathRates(forward=one, reverse=other)


def judged(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, expected: UsualRatio | str, *tunnel: PathRates
) -> CheckResult:
    """The verdict on a tunnel that is found so fast, one attempt after the other, where the plain path has 1000."""
    left = list(tunnel)

    def found(path: IperfPath, *, duration: int) -> PathRates:
        return left.pop(0) if path.client_address == CLIENT[1] else rates(1000, 1000)

    monkeypatch.setattr(throughput, "measure_path", found)
    result = measure(*paths(nodes), usual=expected)
    assert not left, "no more attempts than needed"
    assert result.details["attempts"] == len(tunnel)
    return result


def test_three_times_slower_than_usual_in_one_direction_fails(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    low = judged(nodes, monkeypatch, usual(0.6, 0.8), *[rates(700, 199)] * ATTEMPTS)
    assert (low.verdict, low.details["ratio"]) == (Verdict.FAILED, {"forward": 0.7, "reverse": 0.199})
    assert low.details["floor"] == {"forward": 0.2, "reverse": 0.2}
    assert low.reason == (
        "tunnel 700 / 199 Mbit/s, plain 1000 / 1000 Mbit/s; their ratio is 100% / 28% of the baseline's, "
        "below 33% of it in 3 attempts"
    )
    high = judged(nodes, monkeypatch, usual(0.6, 0.8), rates(700, 201))
    assert high.verdict is Verdict.PASSED
    assert high.reason.endswith("their ratio is 100% / 29% of the baseline's")


def test_of_several_attempts_the_best_of_each_direction_counts(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judged(nodes, monkeypatch, usual(0.6, 0.8), rates(10, 300), rates(300, 10))
    assert (result.verdict, result.details["ratio"]) == (Verdict.PASSED, {"forward": 0.3, "reverse": 0.3})


def test_what_seems_slow_is_measured_again_undisturbed(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    left = [rates(10, 10), rates(20, 20), rates(700, 700)]

    @contextlib.contextmanager
    def undisturbed() -> Iterator[None]:
        happened.append("undisturbed")
        yield
        happened.append("no longer")

    def found(path: IperfPath, *, duration: int) -> PathRates:
        if path.client_address != CLIENT[1]:
            return rates(1000, 1000)
        happened.append("measured")
        return left.pop(0)

    monkeypatch.setattr(throughput, "measure_path", found)
    assert measure(*paths(nodes), usual=usual(0.6, 0.8), undisturbed=undisturbed).passed
    assert happened == ["measured", "undisturbed", "measured", "measured", "no longer"]


def test_a_tunnel_faster_than_the_baseline_passes_with_a_hint(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judged(nodes, monkeypatch, usual(0.1, 0.12), rates(700, 700))
    assert result.verdict is Verdict.PASSED
    assert "faster than it knows, `natbed baseline` renews it" in result.reason


def test_without_a_usual_ratio_any_will_do_and_the_reason_says_so(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = judged(nodes, monkeypatch, "no baseline for this kind of machine", rates(1, 1))
    assert result.verdict is Verdict.PASSED
    assert result.reason.endswith("; no baseline for this kind of machine")


def test_a_dead_tunnel_fails_in_time_with_the_reason(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iperf, "_CONNECT_TIMEOUT", 500)
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


def test_a_tunnel_that_refuses_is_no_broken_lab(nodes: Nodes) -> None:
    rule = f"iptables -A INPUT -p tcp -d {SERVER[1]} -j REJECT --reject-with tcp-reset"
    nodes[1].run(rule.split())
    result = measure(*paths(nodes), duration=1)
    assert result.verdict is Verdict.FAILED
    assert "Connection refused" in result.reason


def test_a_tunnel_that_is_cut_in_mid_run_is_no_broken_lab(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iperf, "_SLACK", 1.0)
    result = meanwhile(nodes, lambda _: nodes[1].run(["iptables", "-I", "INPUT", "-d", SERVER[1], "-j", "DROP"]))
    assert (result.verdict, result.reason) == (Verdict.FAILED, "tunnel: iperf3 did not end within 3 s")


@pytest.mark.parametrize(
    ("victim", "number", "reason"),
    [
        (0, signal.SIGKILL, "the iperf3 client was killed by SIGKILL"),
        (1, signal.SIGKILL, "the iperf3 server was killed by SIGKILL"),
        (0, signal.SIGTERM, "iperf3: interrupt - the client has terminated"),
        (1, signal.SIGTERM, "iperf3: the server has terminated"),
    ],
)
def test_an_iperf3_that_dies_in_mid_run_is_a_broken_lab_and_leaves_nothing(
    nodes: Nodes, victim: int, number: signal.Signals, reason: str
) -> None:
    before = set(runtime_directory().iterdir())
    result = meanwhile(nodes, lambda running: running[victim].send_signal(number))
    assert (result.verdict, result.reason) == (Verdict.LAB_BROKEN, f"tunnel: {reason}")
    assert set(runtime_directory().iterdir()) == before


def test_iperf3_keeps_its_files_in_the_runs_own_folder(nodes: Nodes) -> None:
    files: list[str] = []
    result = meanwhile(nodes, lambda running: files.extend(scratch(one) for one in running))
    assert result.passed, result.reason
    for file in files:
        assert pathlib.Path(file).is_relative_to(runtime_directory())
        assert not pathlib.Path(file).parent.exists(), "it is gone with the measurement"


def meanwhile(nodes: Nodes, action: Callable[[list[subprocess.Popen[Any]]], object]) -> CheckResult:
    """What comes of a tunnel in which, as soon as data flows, something happens to its iperf3s, client and server."""
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(measure, paths(nodes)[0], rates(1000, 1000), duration=2)
        until = time.monotonic() + 5
        running: list[subprocess.Popen[Any]] = []
        while not (len(running) == 2 and all(map(scratch, running))):
            assert time.monotonic() < until, f"no data flows; there are {running}"
            running = [one for node in nodes for one in node.processes()]
            time.sleep(0.005)
        action(running)
        return result.result(timeout=20)


def test_a_server_that_cannot_listen_says_why(nodes: Nodes) -> None:
    with pytest.raises(IperfDied, match="Cannot assign requested address"):
        measure_path(IperfPath(*nodes, CLIENT[0], "10.9.9.9"))


def report(received: float, **more: object) -> str:
    end = {"sum_received": {"bits_per_second": received, "seconds": 2.0}, "sum_sent": {"retransmits": 3}}
    return json.dumps({"end": end, **more})


def test_the_receivers_rate_counts() -> None:
    rate = parse_iperf(report(12_345_678))
    assert (rate.megabits_per_second, rate.retransmits, rate.seconds) == (12.346, 3, 2.0)


@pytest.mark.parametrize(
    ("printed", "kind", "reason"),
    [
        (report(1e6, error="interrupt - the client has terminated"), IperfDied, "interrupt"),
        (report(1e6, error="unable to connect to server: Connection refused"), IperfError, "Connection refused"),
        (report(0), IperfError, "nothing arrived"),
        ('{"end": {}}', IperfDied, "sum_received"),
        ("", IperfDied, "no JSON: killed"),
    ],
)
def test_what_is_no_measurement_is_refused(printed: str, kind: type[IperfError], reason: str) -> None:
    with pytest.raises(IperfError, match=reason) as raised:
        parse_iperf(printed, "killed")
    assert raised.type is kind
