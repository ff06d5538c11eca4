"""Throughput in whole runs: what it is compared with, when it is measured, and whose fault a broken iperf3 is."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from iperf_files import scratch
from run_world import check, options, passed, run

from natbed import judging
from natbed.checks import Verdict, throughput
from natbed.checks.iperf import IperfPath, PathRates, Rate
from natbed.machine_kind import machine_kind
from natbed.results import baseline
from natbed.results.baseline import Baseline, Case, Figures, Sample
from natbed.runner import Run
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")

TUNNEL = "10.99.0.1"  # the server's protected address
EQUAL = Rate(megabits_per_second=1000, retransmits=0, seconds=1)


def test_another_kind_of_machine_passes_and_says_that_nothing_was_compared(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of this very case, and out of reach; here, and on a kind of machine that is not this one
    case = Case(stack="espthrunat", scenario="A", mode="tunnel", esp="aes128gcm16", encapsulation="udp")
    sample = Sample(tunnel_forward=9e9, tunnel_reverse=9e9, plain_forward=1, plain_reverse=1)
    figures = Figures.of(case, [sample], seconds=1, measured="2001-01-01", kernel="", python="")
    monkeypatch.setattr(throughput, "measure_path", lambda *_, **__: PathRates(EQUAL, EQUAL))
    verdicts = {}
    for kind in ("another kind", machine_kind()):
        baseline.save(tmp_path / "b.json", Baseline().renewed(kind, [figures]))
        record, _ = run(dataclasses.replace(options(tmp_path, seconds=1), baseline=tmp_path / "b.json"))
        verdicts[kind] = check(record, "throughput client1")
    elsewhere, here = verdicts.values()
    assert elsewhere.passed
    assert elsewhere.reason.endswith(f"; no baseline for this kind of machine ({machine_kind()})")
    assert here.verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("tunnel", ["begin", "path", "path", "end"]),
        ("transport", ["begin", "path", "end", "begin", "path", "end"]),  # without IPsec, then with it
    ],
)
def test_nobody_else_measures_meanwhile(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, mode: str, expected: list[str]
) -> None:
    seen = []

    @contextlib.contextmanager
    def alone() -> Iterator[None]:
        seen.append("begin")
        yield
        seen.append("end")

    def measure_path(path: IperfPath, *, duration: int) -> PathRates:
        seen.append("path")
        return PathRates(EQUAL, EQUAL)

    monkeypatch.setattr(judging, "alone", alone)
    monkeypatch.setattr(judging, "measure_path", measure_path)
    monkeypatch.setattr(throughput, "measure_path", measure_path)
    record, _ = run(dataclasses.replace(options(tmp_path, seconds=1, mode=mode), baseline=None))
    passed(record)
    assert seen == expected


@pytest.mark.parametrize("end", ["client1", "server"])
def test_an_iperf3_that_is_killed_in_the_tunnel_breaks_the_lab(tmp_path: pathlib.Path, end: str) -> None:
    killers: list[threading.Thread] = []
    killed: list[str] = []

    def kill() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until and not killed:
            for process in broken.lab[end].processes():
                if TUNNEL in str(process.args) and scratch(process):
                    process.send_signal(signal.SIGKILL)
                    killed.append(str(process.args))
            time.sleep(0.005)

    def step(text: str) -> None:
        if text.startswith("measuring throughput"):
            killers.append(threading.Thread(target=kill))
            killers[0].start()

    broken = Run(find("A"), options(tmp_path, seconds=1), step)
    record = broken.execute()
    for killer in killers:
        killer.join()
    assert killed
    who = "client" if end == "client1" else "server"
    assert record.verdict is Verdict.LAB_BROKEN
    assert record.reason == f"throughput client1: tunnel: the iperf3 {who} was killed by SIGKILL"
    assert all(one.passed for one in record.checks if one.name != "throughput client1")
