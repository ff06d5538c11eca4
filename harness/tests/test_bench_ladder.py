"""The search for the highest rate: on ladders and paths that are made up, and on a wire that drops above one."""

from __future__ import annotations

import itertools
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_nodes import CLIENT, SERVER, Nodes

from natbed.bench import gauges
from natbed.bench.gauges import Datagrams, GaugeError, measure_tcp, measure_udp, parse_datagrams
from natbed.bench.ladder import HIGHEST, LOWEST, RUNGS, STEP, highest_rung
from natbed.checks.iperf import IperfError, IperfPath, Rate

NOWHERE = IperfPath(None, None, "", "")  # type: ignore[arg-type]
rates = st.floats(0.1, 50_000.0)


def test_rungs_are_as_far_apart_as_promised() -> None:
    assert RUNGS[0] == LOWEST
    assert RUNGS[-2] < HIGHEST <= RUNGS[-1]
    assert all(b / a == pytest.approx(STEP, rel=0.01) for a, b in itertools.pairwise(RUNGS))


@given(limit=rates, start=rates)
def test_the_highest_rung_is_found_from_any_guess_with_few_measurements(limit: float, start: float) -> None:
    asked: list[float] = []

    def holds(rung: float) -> bool:
        asked.append(rung)
        return rung <= limit

    found = highest_rung(holds, start)
    assert found == max((n for n, rung in enumerate(RUNGS) if rung <= limit), default=-1)
    assert len(asked) == len(set(asked)), "no rung twice"
    guess = min(max(start, LOWEST), HIGHEST)
    off = abs(math.log(min(max(limit, LOWEST), HIGHEST) / guess, STEP))
    assert len(asked) <= 2 * math.log2(off + 2) + 3, "the better the guess, the fewer"


class Path:
    """A path that carries `limit` Mbit/s and drops the rest; `hiccups` are the measurements that lose a little more."""

    def __init__(self, limit: float, hiccups: frozenset[int] = frozenset(), sender: float = math.inf) -> None:
        self.limit, self.hiccups, self.sender = limit, hiccups, sender
        self.sent: list[float] = []

    def send(self, path: IperfPath, rate: float, seconds: float) -> Datagrams:
        assert (path, seconds) == (NOWHERE, 0.5)
        self.sent.append(rate)
        sent = min(rate, self.sender)
        loss = max(1 - self.limit / sent, 0.0) or 0.002 * (len(self.sent) in self.hiccups)
        return Datagrams(sent, sent * (1 - loss), loss)


@given(limit=st.floats(LOWEST, HIGHEST), start=rates, odd=st.booleans())
def test_a_hiccup_now_and_then_does_not_lower_the_rate(limit: float, start: float, odd: bool) -> None:
    path = Path(limit, frozenset(range(1 if odd else 2, 200, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gauges, "send_datagrams", path.send)
        found = measure_udp(NOWHERE, 0.5, start)
    rung = max(rung for rung in RUNGS if rung <= limit / (1 - gauges.LOSS))
    assert found == pytest.approx(rung, rel=gauges.LOSS)


def test_a_sender_that_cannot_is_no_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(HIGHEST, sender=1000.0)
    monkeypatch.setattr(gauges, "send_datagrams", path.send)
    assert 1000 / STEP**2 < measure_udp(NOWHERE, 0.5, 700.0) <= 1000
    assert max(path.sent) < 2000, "more than it can send would only take longer"


def test_a_path_too_slow_for_any_rung_is_named_with_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "send_datagrams", Path(2.0).send)
    with pytest.raises(GaugeError, match=r"no rate without loss: of 10 Mbit/s 2 arrived"):
        measure_udp(NOWHERE, 0.5, 700.0)


# processor time


def test_the_processor_time_of_each_end_is_that_of_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {(7, 8): 100.0, (9,): 40.0}

    def measure_direction(path: IperfPath, *, duration: int, reverse: bool = False) -> Rate:
        used[7, 8] += 1.5
        used[9,] += 4.0
        return Rate(megabits_per_second=400.0 if reverse else 800.0, retransmits=0, seconds=duration)

    monkeypatch.setattr(gauges, "measure_direction", measure_direction)
    monkeypatch.setattr(gauges, "processor_seconds", used.__getitem__)
    tcp = measure_tcp(NOWHERE, 2, (7, 8), (9,))
    assert (tcp.client_seconds, tcp.server_seconds) == (3.0, 8.0)
    assert tcp.gigabytes == pytest.approx((800 + 400) * 1e6 * 2 / 8 / 1e9)
    assert (tcp.forward.megabits_per_second, tcp.reverse.megabits_per_second) == (800.0, 400.0)


# iperf3's words


def report(sent: int, seen: int, lost: int, **more: object) -> str:
    end = {
        "sum_sent": {"bits_per_second": sent * 8e6, "packets": sent},
        "sum_received": {"bits_per_second": (seen - lost) * 8e6, "packets": seen, "lost_packets": lost},
        "sum": {"bits_per_second": sent * 8e6},
    }
    return json.dumps({"end": end, **more})


def test_what_arrives_counts_and_what_is_missing_between() -> None:
    assert parse_datagrams(report(1000, 990, 99)) == Datagrams(sent=8000.0, arrived=7128.0, loss=0.1)


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        (report(1000, 0, 0), "nothing arrived"),
        (report(1000, 990, 0, error="control socket has closed"), "control socket has closed"),
        ('{"end": {}}', "sum_sent"),
        ("", "no JSON: killed"),
    ],
)
def test_what_is_no_measurement_is_refused(printed: str, reason: str) -> None:
    with pytest.raises(IperfError, match=reason):
        parse_datagrams(printed, "killed")


# a real wire


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_limit_of_a_real_path_is_found(nodes: Nodes) -> None:
    """It drops all datagrams above 3000 a second: 31.2 Mbit/s of payload."""
    client, server = nodes
    rule = "-p udp -m hashlimit --hashlimit-above 3000/sec --hashlimit-burst 50 --hashlimit-name few -j DROP"
    server.run(["iptables", "-A", "INPUT", *rule.split()])
    found = measure_udp(IperfPath(client, server, CLIENT[0], SERVER[0]), 0.25, 100.0)
    assert 31.2 / STEP**2 < found < 31.2 * STEP
