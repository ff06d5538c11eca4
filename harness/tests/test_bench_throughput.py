"""The benchmark of throughput: the whole command, and that what goes wrong is named for what it is."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence

import pytest
from bench_world import OURS, PLAIN, SLOW
from ordinary_user import FORBIDDEN
from typer.testing import CliRunner

from natbed import cli
from natbed.bench import candidates, evidence
from natbed.bench import cli as bench_cli
from natbed.bench.candidates import DEFAULT_SUITES, Field, field
from natbed.bench.gauges import Tcp
from natbed.bench.record import CPU, PING, REPEATED, SINGLES, TCP, TRAINS, UDP
from natbed.bench.singles import send_singly
from natbed.bench.throughput import Plan, ThroughputBench
from natbed.bench.visit import Program, Visit
from natbed.capture import Capture, read_pcap
from natbed.checks import Verdict
from natbed.checks.iperf import IperfDied, run_iperf
from natbed.judging import Judge
from natbed.lab import Lab
from natbed.node import Node, NodeError
from natbed.node_like import NodeLike
from natbed.settings import Protection
from natbed.stacks import strongswan
from natbed.stacks.base import HostSettings
from natbed.stacks.espthrunat import EspThruNat, EspThruNatDaemon
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")

COMMAND = [sys.executable, "-m", "natbed.cli", "bench", "throughput"]
SHORTEST = ["--rounds", "1", "--seconds", "1", "--no-peers"]
DEADLINE = 60.0  # seconds
WHOLE_FRAME = 1514  # octets, of an Ethernet with an MTU of 1500


def bench(*arguments: str, cwd: pathlib.Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    return subprocess.run(
        [*before, *COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        cwd=cwd,
        env=environment,
    )


# the whole


def test_one_round_of_one_suite(tmp_path: pathlib.Path) -> None:
    results, cwd = tmp_path / "results", tmp_path / "cwd"
    cwd.mkdir()
    done = bench(*SHORTEST, "--suite", "aes128-sha1", "--no-singles", "--no-udp", "--results", str(results), cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = results.iterdir()
    assert folder.name.endswith("-bench-throughput")
    record = evidence.load(folder)
    assert (record.verdict, record.problems, record.left_out) == (Verdict.PASSED, [], [])
    assert record.candidates == [PLAIN, OURS, SLOW]
    taken = {(one.candidate, one.quantity): one.value for one in record.samples}
    tunnel = {*TCP, REPEATED, PING, *CPU}
    assert taken.keys() == {
        *(("plain", quantity) for quantity in (*TCP, REPEATED, PING)),
        *((candidate.name, quantity) for candidate in (OURS, SLOW) for quantity in tunnel),
    }
    assert {one.wire for one in record.samples} == {TRAINS}
    for name in (OURS.name, SLOW.name):
        for faster in TCP:
            assert taken["plain", faster] > taken[name, faster] > 1, "the tunnel is user-space Python"
        assert taken[name, PING] > taken["plain", PING] > 1
        for cpu in CPU:
            # a process in user space cannot seal or open a gigabyte in 20 ms, and takes one processor at most
            assert 0.02 < taken[name, cpu] < 1.5 * 8000 / min(taken[name, faster] for faster in TCP)
    for candidate, batches in ((OURS, True), (SLOW, False)):
        (evidence_of,) = folder.glob(f"round1/{candidate.name.replace(', ', '-').replace(' ', '-')}/client1")
        configuration = tomllib.loads((evidence_of / "espthrunat.toml").read_text())
        assert configuration["local"].get("batches", True) is batches
        assert configuration["connection"][0]["esp"] == ["aes128-sha1"]
    lines = done.stdout.splitlines()
    assert f"evidence  {folder / 'throughput.json'}" in lines
    assert f"evidence  {folder / 'throughput.html'}" in lines
    assert "verdict   passed" in lines
    assert [line.split() for line in lines if line.startswith(": ")] == [[":", "no", "batches"], [":", "plain"]]
    (again,) = [line for line in lines if line.startswith("TCP segments sent again, packets travel in trains: plain ")]
    assert f"; {OURS.name} {taken[OURS.name, REPEATED]:.0f}; {SLOW.name} {taken[SLOW.name, REPEATED]:.0f}" in again
    progress = done.stderr.splitlines()
    assert progress[0] == "round 1 of 1, 1/3: plain: building the network"
    assert "to go: espthrunat aes128-sha1, no batches: round trip, trains" in progress[-1]
    assert not list(cwd.iterdir())


def test_where_packets_travel_singly_none_is_longer_than_the_wire_allows(tmp_path: pathlib.Path) -> None:
    with Lab(find("A")(clients=1)) as lab:
        judge = Judge(lab, Protection(), 1)
        path = judge.plain_path(judge.rows()[0])
        longest = {}
        for wire in (TRAINS, SINGLES):
            if wire == SINGLES:
                send_singly(lab.nodes)
            with Capture(lab["nat"], "nat-eth0", tmp_path / wire) as capture:
                for direction in ((), ("-R",)):
                    run_iperf(path, ["-n", "2M", *direction], 10.0)
            frames = [frame.data for frame in read_pcap(capture.path)]
            longest[wire] = [
                max(len(frame) for frame in frames if frame[26:30] == bytes(map(int, source.split("."))))
                for source in ("203.0.113.2", "203.0.113.18")
            ]
    assert min(longest[TRAINS]) > WHOLE_FRAME
    assert longest[SINGLES] == [WHOLE_FRAME, WHOLE_FRAME]


class Stubborn:
    """A node whose link does not give up segmentation, though it says that it has."""

    name = "client1"

    def interfaces(self) -> list[str]:
        return ["lo", "client1-eth0"]

    def run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        listed = "Features for client1-eth0:\ntx-tcp-segmentation: off\n\ttx-udp-segmentation: on [fixed]\n"
        return subprocess.CompletedProcess(argv, 0, listed if argv[1] == "-k" else "", "")


def test_a_link_that_stays_as_it_is_breaks_the_lab() -> None:
    reason = r"^client1: tx-udp-segmentation of client1-eth0 is 'on \[fixed\]' after switching it off$"
    with pytest.raises(NodeError, match=reason):
        send_singly([Stubborn()])  # type: ignore[list-item]


def test_singles_and_datagrams_are_measured_too(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_trains(nodes: Sequence[Node]) -> None:
        assert {one.wire for one in visit.samples} == {TRAINS}
        links.update(node.name for node in nodes)
        send_singly(nodes)

    links: set[str] = set()
    monkeypatch.setattr("natbed.bench.visit.send_singly", after_trains)
    visit = Visit(1, OURS, EspThruNat(), Program(seconds=1), tmp_path, lambda step: None)
    visit.measure()
    assert not visit.problems
    assert links == {"client1", "home", "nat", "internet", "server"}, "all along the path"
    assert [(one.wire, one.quantity) for one in visit.samples] == [
        *((TRAINS, quantity) for quantity in (*TCP, REPEATED, *CPU, PING, UDP)),
        *((SINGLES, quantity) for quantity in (*TCP, REPEATED, *CPU)),
    ]
    assert all(one.value > 0 for one in visit.samples if one.quantity != REPEATED)


# what is broken on purpose


class Mortal(EspThruNat):
    """An implementation whose server can be killed."""

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> EspThruNatDaemon:
        self.last = super().start(node, settings, evidence)
        return self.last

    def die(self) -> None:
        os.kill(self.last.pids[0], signal.SIGKILL)


def test_a_daemon_that_dies_is_named_and_the_others_are_measured(tmp_path: pathlib.Path) -> None:
    stack = Mortal()

    def kill(step: str) -> None:
        steps.append(step.rpartition(": ")[2])
        if "round trip" in step and OURS.name in step:
            stack.die()

    steps: list[str] = []
    plan = Plan(Field((OURS, PLAIN), {OURS.name: stack}), Program(1, singles=False), rounds=1)
    (record,) = ThroughputBench(plan, tmp_path, kill).run()
    connected = ["building the network", "connecting", "TCP, trains", "round trip, trains"]
    assert steps[: steps.index("building the network", 1)] == connected, "nothing is asked of it any more"
    assert (record.verdict, len(record.problems)) == (Verdict.FAILED, 2)
    what, why = record.problems
    assert what.reason.startswith("round trip, trains: ping: ")
    assert why.reason.startswith("server: ")
    assert "ended with code -9" in why.reason
    assert {problem.candidate for problem in record.problems} == {OURS.name}
    figures = {(one.candidate, one.quantity): one for one in record.figures}
    assert (figures[OURS.name, PING].spread, figures[OURS.name, PING].failed) == (None, 1)
    assert (figures[OURS.name, TCP[0]].failed, figures["plain", PING].failed) == (0, 0)


def test_a_nat_that_lost_its_rule_ends_it_as_a_broken_lab(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Lab.build

    def build_and_lose(lab: Lab) -> None:
        build(lab)
        lab["nat"].run(["iptables", "-t", "nat", "-F"])

    monkeypatch.setattr(Lab, "build", build_and_lose)
    plan = Plan(field(["aes128gcm16"], peers=False), Program(1), rounds=2)
    (record,) = ThroughputBench(plan, tmp_path, lambda step: None).run()
    assert record.verdict is Verdict.LAB_BROKEN
    assert record.reason == "round 1, plain: NAT: client1 shows as 192.168.1.11, declared was 203.0.113.2"
    assert len(record.problems) == 1, "nobody else is blamed"


def test_a_plain_path_that_carries_nothing_is_the_labs_fault(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Lab.build

    def build_and_block(lab: Lab) -> None:
        build(lab)
        lab["server"].run(["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "5201", "-j", "REJECT"])

    monkeypatch.setattr(Lab, "build", build_and_block)
    visit = Visit(1, PLAIN, None, Program(1, singles=False, udp=False), tmp_path, lambda step: None)
    visit.measure()
    (problem,) = visit.problems
    assert problem.verdict is Verdict.LAB_BROKEN
    assert problem.reason.startswith("TCP, trains: iperf3: ")
    assert [one.quantity for one in visit.samples] == [PING], "what can be measured is"


def test_an_iperf3_that_dies_is_the_labs_fault_on_any_path(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> Tcp:
        raise IperfDied("the iperf3 server was killed by SIGKILL")

    monkeypatch.setattr("natbed.bench.visit.measure_tcp", die)
    visit = Visit(1, OURS, EspThruNat(), Program(1, singles=False, udp=False), tmp_path, lambda step: None)
    visit.measure()
    (problem,) = visit.problems
    assert problem.verdict is Verdict.LAB_BROKEN
    assert problem.reason == "TCP, trains: the iperf3 server was killed by SIGKILL"


def test_an_interrupt_keeps_what_was_measured(tmp_path: pathlib.Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, *SHORTEST, "--results", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr
        try:
            for line in process.stderr:
                if "round trip" in line:
                    break
            process.send_signal(signal.SIGINT)
            output, complaint = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert complaint.splitlines()[-1] == "natbed: interrupted; everything is taken down"
    assert "Traceback" not in complaint
    record = evidence.load(next(tmp_path.iterdir()))
    assert {one.quantity for one in record.samples} >= set(TCP)
    assert record.verdict is Verdict.LAB_BROKEN
    assert "reason    7 measurements were not begun" in output, (
        "three suites with and without batches, and the plain path"
    )


# what is asked for


def test_a_peer_that_is_not_installed_is_left_out_with_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strongswan, "_FOLDERS", (tmp_path,))
    asked: list[Plan] = []

    def measure(plan: Plan, folder: pathlib.Path) -> Verdict:
        asked.append(plan)
        return Verdict.PASSED

    monkeypatch.setattr(bench_cli, "_measure", measure)
    done = CliRunner().invoke(cli.app, ["bench", "throughput", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    line = "strongswan is left out: strongSwan's charon is not installed; make peers unpacks it"
    assert done.stderr == f"natbed: {line}\n"
    (plan,) = asked
    assert plan.field.left_out == (line,)
    assert {one.implementation for one in plan.field.candidates} == {"", "espthrunat"}
    assert [one.suite for one in plan.field.candidates if one.batches][1:] == list(DEFAULT_SUITES)
    assert (plan.rounds, plan.program) == (5, Program(seconds=2, singles=True, udp=True))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--suite", "aes512"), "Invalid value for --suite: 'aes512'; there are aes128gcm16, aes256gcm16, "),
        (("--rounds", "0"), "Invalid value for '--rounds'"),
        (("--seconds", "0"), "Invalid value for '--seconds'"),
        (("--results", "in-its-place"), "natbed: in-its-place: cannot be used for evidence: File exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_that_makes_no_sense_is_2_and_says_why(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "in-its-place").write_text("a file")
    done = bench(*arguments, "--no-peers", cwd=tmp_path)
    assert complaint in done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (2, "")


def test_without_rights_the_lab_is_broken(tmp_path: pathlib.Path) -> None:
    done = bench(*SHORTEST, "--results", str(tmp_path / "results"), cwd=tmp_path, before=FORBIDDEN)
    assert done.returncode == 3
    assert done.stderr.startswith("natbed: cannot make a user namespace")
    assert not (tmp_path / "results").exists()


def test_every_suite_that_can_be_asked_for_is_one_of_espthrunats(tmp_path: pathlib.Path) -> None:
    """It names all that it knows when it is asked for another."""
    (tmp_path / "host.toml").write_text(
        """
        [local]
        address = "192.0.2.1"
        identity = "here.example"

        [[connection]]
        name = "there"
        remote = "192.0.2.2"
        remote_identity = "there.example"
        psk = "between here and there"
        mode = "transport"
        esp = ["another"]
        """
    )
    command = [sys.executable, "-m", "espthrunat", "check-config", str(tmp_path / "host.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert "known are" in done.stderr, done.stderr
    assert set(done.stderr.partition("known are ")[2].strip().split(", ")) == set(candidates.SUITES)
