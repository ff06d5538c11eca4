"""The benchmark of timeouts: short real runs of each part, and what a broken NAT or a wrong option is told as."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from natbed import cli
from natbed.bench.timeouts import bench as timeouts_bench
from natbed.bench.timeouts import evidence, options, wire_costs
from natbed.bench.timeouts.bench import TimeoutsBench
from natbed.bench.timeouts.cliff import Cliff
from natbed.bench.timeouts.options import plan_of
from natbed.bench.timeouts.pace import Pace
from natbed.bench.timeouts.record import KEPT, SILENT, STRICT, TimeoutsRecord
from natbed.bench.timeouts.recovery import RecoveryBench
from natbed.bench.timeouts.survival import Front, SurvivalBench
from natbed.bench.timeouts.wire_costs import SIZES, measure_costs
from natbed.checks import Verdict
from natbed.lab import Lab
from natbed.stacks.espthrunat import EspThruNat

pytestmark = pytest.mark.usefixtures("isolated")

COMMAND = [sys.executable, "-m", "natbed.cli", "bench", "timeouts"]
DEADLINE = 60.0  # seconds
SPEED = 20.0  # model seconds in a real one


def ignore(_text: str) -> None:
    """Progress that nobody reads."""


def test_the_command_measures_a_lifetime_from_outside(tmp_path: pathlib.Path) -> None:
    """At speed 20: a timeout of 20 s is one real second."""
    results, cwd = tmp_path / "results", tmp_path / "cwd"
    cwd.mkdir()
    arguments = ["--speed", "20", "--timeout", "20", "--part", "lifetime", "--results", str(results)]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = results.iterdir()
    assert folder.name.endswith("-bench-timeouts")
    record = evidence.load(folder)
    assert (record.verdict, record.troubles, record.timeouts) == (Verdict.PASSED, [], [20.0])
    assert [(one.state, one.configured) for one in record.lifetimes] == [("unreplied", 20.0), ("replied", 20.0)]
    for one in record.lifetimes:
        assert one.cliff.middle == pytest.approx(one.configured, abs=0.3 * SPEED)
        assert one.cliff.within <= 0.05 * SPEED
    lines = done.stdout.splitlines()
    assert "verdict   passed" in lines
    assert f"evidence  {folder / 'timeouts.html'}" in lines
    assert done.stderr.startswith("mapping lifetimes, round 1: ")
    assert not list(cwd.iterdir())


def test_tunnels_survive_as_long_as_their_nat_remembers(tmp_path: pathlib.Path) -> None:
    fronts = [Front(1, kind, Cliff(1.6, 0.5, 4)) for kind in (SILENT, KEPT)]
    bench = SurvivalBench(Pace(SPEED), EspThruNat(), tmp_path, ignore)
    bench.find(fronts)
    for front in fronts:
        assert front.cliff.high is not None
        assert front.cliff.low - 0.1 <= 1 <= front.cliff.high + 0.1, bench.trials
    assert {one.timeout for one in bench.trials} == {SPEED}
    sound = [one for one in bench.trials if not one.void]
    assert all(one.data == one.rekey == (one.silence < SPEED * 1.1) for one in sound), sound
    assert {one.keepalive > 0 for one in sound if one.kind == KEPT} == {True}
    assert all(one.idle == pytest.approx(2 * one.keepalive) for one in sound if one.kind == KEPT)


def test_what_keepalives_and_the_marker_cost(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_costs, "INTERVAL", 0.4)
    keepalives, overheads = measure_costs(Pace(SPEED), EspThruNat(), tmp_path, ignore)
    idle, busy, routed = keepalives
    assert 8 <= idle.packets <= 10, "each 0.4 s in 4 s"
    assert idle.octets == idle.packets * 29
    assert idle.mean == pytest.approx(0.4 * SPEED, rel=0.2)
    assert (idle.busy, idle.nat, busy.busy, routed.nat) == (False, True, True, False)
    assert busy.packets == 0, "only where nothing else is sent (the draft, 4.3)"
    assert routed.packets == 0, "without a NAT there is no mapping to keep"
    assert [one.inner for one in overheads] == list(SIZES)
    for one in overheads:
        assert (one.in_udp - one.plain, one.zeros) == (16, 8), "8 of UDP, 8 of the marker"
        assert one.plain > one.inner + 20


def test_traffic_comes_back_and_sooner_where_the_server_follows(tmp_path: pathlib.Path) -> None:
    """Dead peer detection at an interval of 1 s: the strict server hears nothing of its client until a new phase 1."""
    bench = RecoveryBench(Pace(SPEED), EspThruNat(), tmp_path, ignore, dpd=1.0)
    bench.measure(1, ["port change"])
    found = {(one.policy, one.sender): one for one in bench.recovery().outages}
    assert (bench.recovery().dpd, bench.recovery().interval) == (SPEED, 0.01 * SPEED)
    strict, follows = found.pop((STRICT, "client")), found.pop(("authenticated", "client"))
    asked = found.pop(("authenticated", "server"))
    assert asked.away is not None, "the server's ESP follows what IKE has seen"
    assert asked.away < 2.5 * SPEED, "the client's next question"
    assert [(policy, one.away is not None) for (policy, _), one in found.items()] == [(STRICT, True)]
    assert strict.away is not None
    assert 0.8 * SPEED < strict.away < 5 * SPEED, "an interval until it is asked, and one for the answer"
    assert follows.away is not None
    assert follows.away < 0.5 * SPEED
    assert strict.lost > follows.lost
    for one in (strict, follows, asked):
        assert len(set(one.mappings)) == 2, "the mapping has moved"
        assert re.fullmatch(r"the NAT nat\d rebooted", one.happened)


def test_what_does_not_come_back_in_time_is_no_failure(tmp_path: pathlib.Path) -> None:
    bench = RecoveryBench(Pace(1), EspThruNat(), tmp_path, ignore, within=0.3, dpd=2.0, senders=("client",))
    bench.measure(1, ["WAN renumbering"])
    strict = next(one for one in bench.outages if one.policy == STRICT)
    assert strict.away is None
    assert strict.lost


def only(record: TimeoutsBench) -> TimeoutsRecord:
    """What there is at the end."""
    *_, last = record.run()
    return last


def test_a_nat_that_forgets_at_another_time_is_a_broken_lab(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Lab.build

    def build_and_change(lab: Lab) -> None:
        build(lab)
        lab["nat1"].sysctl({"net.netfilter.nf_conntrack_udp_timeout": 2})

    monkeypatch.setattr(Lab, "build", build_and_change)
    record = only(TimeoutsBench(plan_of([1.0, 2.0], 1, ["lifetime", "costs"]), EspThruNat(), tmp_path, ignore))
    assert record.verdict is Verdict.LAB_BROKEN
    assert not record.costs, "nothing is measured in a broken lab"
    wrong = r"lifetime: unreplied mappings, configured 1 s: held for (1.9\d|2.0\d) s and was lost after 2.0\d s"
    assert re.fullmatch(wrong, record.reason)
    assert {(one.state, one.configured) for one in record.lifetimes if abs(one.configured - one.cliff.low) > 0.3} == {
        ("unreplied", 1.0)
    }


def test_a_nat_that_never_translates_is_a_broken_lab(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Lab.build

    def build_and_lose(lab: Lab) -> None:
        build(lab)
        lab["nat1"].run(["iptables", "-t", "nat", "-F"])

    monkeypatch.setattr(Lab, "build", build_and_lose)
    for part in ("lifetime", "survival", "costs", "recovery"):
        record = only(TimeoutsBench(plan_of([1.0], 1, [part]), EspThruNat(), tmp_path, ignore))
        assert record.verdict is Verdict.LAB_BROKEN
        assert record.reason == f"{part}: NAT: client1 shows as 192.168.1.11, declared was 203.0.113.2"


def test_every_part_that_may_be_asked_for_is_there() -> None:
    assert tuple(timeouts_bench.PARTS) == options.PARTS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--speed", "60", "--timeout", "30"], "at speed 60 a timeout of 30 s is 0.5 real seconds"),
        (["--part", "cost"], "'cost'; there are lifetime, survival, costs, recovery"),
        (["--timeout", "soon"], "'soon' is not a valid float"),
        (["--speed", "0"], "it is 1 at least"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it began")

    monkeypatch.setattr("natbed.isolation.isolate", never)
    done = CliRunner().invoke(cli.app, ["bench", "timeouts", *arguments, "--results", str(tmp_path)])
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert not list(tmp_path.iterdir())
