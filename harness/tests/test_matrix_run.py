"""`natbed matrix`: how cells end, what is shown and kept, and what is run again. Most runs are stand-ins."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from typer.testing import CliRunner

import natbed.runner
from natbed import matrix_shell
from natbed.checks import CheckResult, Verdict
from natbed.cli import app
from natbed.matrix_shell import OpenedRun
from natbed.results import report, store
from natbed.results.record import RunRecord
from natbed.results.report import CellRecord, Report
from natbed.runner import RunOptions
from natbed.scenario import Scenario
from natbed.stacks.base import Daemon, StackError
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")

TOPOLOGY = '''
"""Two scenarios: P in both modes, Q in one, with one and two clients."""

from natbed.nat import presets
from natbed.scenario import Scenario, Tunnel


class P(Scenario):
    letter = "P"

    def build(self):
        internet = self.internet()
        home = self.nat_router("nat", wan=internet)
        self.host("client1", on=home.lan)
        self.host("server", on=internet)

    def tunnels(self):
        return [Tunnel("client1", "server")]


class Q(P):
    letter = "Q"
    modes = ("transport",)
    not_supported = {"tunnel": "for this test"}
'''
REST = "aes128gcm16-main-psk-1-masquerade-both"
P_TUNNEL, P_TRANSPORT, Q_TRANSPORT = f"P-tunnel-{REST}", f"P-transport-{REST}", f"Q-transport-{REST}"
SMOKE = [P_TUNNEL, P_TRANSPORT, Q_TRANSPORT]
Judge = Callable[[str, str, int], Verdict]  # scenario, mode, how often it has run


class StandIn:
    """In `Run`'s place: ends as the test says, at once."""

    judge: ClassVar[Judge]
    ran: ClassVar[list[tuple[str, RunOptions]]]

    def __init__(self, scenario: type[Scenario], options: RunOptions, _progress: object) -> None:
        self.letter, self.options = scenario.letter, options
        self.folder = options.results / f"run-{len(self.ran)}-{self.letter}"
        self.ran.append((self.letter, options))

    def execute(self) -> RunRecord:
        mode = self.options.protection.mode
        times = sum((letter, one.protection.mode) == (self.letter, mode) for letter, one in self.ran)
        verdict = type(self).judge(self.letter, mode, times)
        check = CheckResult(name="stand-in", verdict=verdict, reason=f"it is {verdict}")
        return RunRecord(
            scenario=self.letter, title="", started="", nat="", stack="", mode=mode, verdict=verdict,
            reason=f"stand-in: {check.reason}", seconds=1.5, build_milliseconds=0, teardown_milliseconds=0,
            clients=[], hosts=[], checks=[check], evidence=[], kernel="", version="",
        )  # fmt: skip


@dataclass
class World:
    """A folder of scenarios, a place for results, and the command."""

    topologies: pathlib.Path
    results: pathlib.Path
    monkeypatch: pytest.MonkeyPatch
    runner: CliRunner = field(default_factory=CliRunner)

    def matrix(self, *arguments: object, judge: Judge) -> tuple[int, str]:
        """Exit code and output of `natbed matrix`, with stand-ins that end as `judge` says."""
        StandIn.judge, StandIn.ran = staticmethod(judge), []  # so that it gets no self
        self.monkeypatch.setattr(natbed.runner, "Run", StandIn)
        where = ["--topologies", str(self.topologies), "--results", str(self.results)]
        done = self.runner.invoke(app, ["matrix", *where, *map(str, arguments)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    @property
    def cells(self) -> list[CellRecord]:
        """What the newest matrix wrote down."""
        newest = max(self.results.glob(f"*-matrix*/{report.CELLS}"), key=lambda file: file.stat().st_mtime_ns)
        return report.load(newest)


@pytest.fixture
def world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> World:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(TOPOLOGY)
    monkeypatch.setenv("COLUMNS", "120")
    return World(folder, tmp_path / "results", monkeypatch)


def passes(*_: object) -> Verdict:
    return Verdict.PASSED


def only(letter: str, verdict: Verdict) -> Judge:
    """All pass but one scenario's cells."""
    return lambda scenario, _mode, _times: verdict if scenario == letter else Verdict.PASSED


# how it ends


def test_a_smoke_run_that_passes(world: World) -> None:
    code, said = world.matrix("--smoke", judge=passes)
    assert code == 0, said
    assert [(cell.cell, cell.verdict, cell.seconds) for cell in world.cells] == [
        (name, Verdict.PASSED, 1.5) for name in SMOKE
    ]
    assert f"[1/3] passed       1.5 s  {P_TUNNEL}" in said
    assert re.search(r"3 of 3 runs in \d+ s, [\d.]+ cells a minute; .* 1.5 s \(median\).* pass rate 100.0 %", said)
    assert "verdict   passed (3 passed, 0 failed, 0 lab broken)" in said
    assert [options.seconds for _, options in StandIn.ran] == [0, 0, 0], "a smoke run measures no throughput"
    assert {options.rekey for _, options in StandIn.ran} == {"both"}


@pytest.mark.parametrize(
    ("p", "q", "code", "verdict"),
    [
        (Verdict.PASSED, Verdict.FAILED, 1, "failed (2 passed, 1 failed, 0 lab broken)"),
        (Verdict.PASSED, Verdict.LAB_BROKEN, 3, "lab broken (2 passed, 0 failed, 1 lab broken)"),
        (Verdict.LAB_BROKEN, Verdict.FAILED, 1, "failed (0 passed, 1 failed, 2 lab broken)"),
    ],
)
def test_failed_and_lab_broken_are_told_apart(world: World, p: Verdict, q: Verdict, code: int, verdict: str) -> None:
    done, said = world.matrix("--smoke", judge=lambda scenario, *_: {"P": p, "Q": q}[scenario])
    assert done == code, said
    assert f"verdict   {verdict}" in said
    assert f"    stand-in: it is {q.value}" in said
    assert f"  again     natbed matrix --topologies {world.topologies} {Q_TRANSPORT}" in said
    assert [cell.verdict for cell in world.cells] == [p, p, q]


def test_junit_has_an_error_for_a_broken_lab_and_a_failure_for_a_failed_cell(
    world: World, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "junit.xml"
    verdicts = {"tunnel": Verdict.LAB_BROKEN, "transport": Verdict.FAILED}
    world.matrix(
        "--smoke",
        "--junit",
        file,
        judge=lambda scenario, mode, _: verdicts[mode] if scenario == "P" else Verdict.PASSED,
    )
    (suite,) = ET.parse(file).getroot()
    assert [suite.get(name) for name in ("tests", "errors", "failures")] == ["3", "1", "1"]
    cases = {case.get("name"): case for case in suite}
    (error,) = cases[P_TUNNEL].findall("error")
    assert error.text == "lab broken: stand-in: it is lab broken"
    (failure,) = cases[P_TRANSPORT].findall("failure")
    assert failure.text == "failed: stand-in: it is failed"
    assert not cases[Q_TRANSPORT].findall("*[@message]")
    properties = {one.get("name"): one.get("value") for one in cases[P_TRANSPORT].iter("property")}
    assert properties["cell"] == P_TRANSPORT
    assert properties["evidence"] == str(world.results / "run-1-P")


def test_an_interrupt_ends_it_and_keeps_what_was_found(world: World) -> None:
    def judge(scenario: str, mode: str, _times: int) -> Verdict:
        if mode == "transport":
            raise KeyboardInterrupt
        return Verdict.PASSED

    code, said = world.matrix("--smoke", judge=judge)
    assert code == 130
    assert said.splitlines()[-1] == "natbed: interrupted; everything is taken down"
    assert "2 were not run" in said
    assert "verdict" not in said, "no verdict on what was not finished"
    assert [cell.cell for cell in world.cells] == [P_TUNNEL]


def test_a_bug_in_the_harness_is_a_broken_lab_and_says_what_it_was(world: World) -> None:
    def judge(scenario: str, *_: object) -> Verdict:
        if scenario == "Q":
            raise ZeroDivisionError("a bug")
        return Verdict.PASSED

    code, said = world.matrix("--smoke", judge=judge)
    assert code == 3, said
    assert [cell.verdict for cell in world.cells] == [Verdict.PASSED, Verdict.PASSED, Verdict.LAB_BROKEN]
    assert "ZeroDivisionError" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--smoke", "--full"), "--smoke and --full: one of them"),
        (("--last-failed", P_TUNNEL), "--last-failed and CELL: one of them"),
        (("P-tunnel",), "no cell 'P-tunnel'"),
        (("-k", "transprot"), "no cell has 'transprot'"),
        (("-k", "P and"), "no expression at its end"),
        (("-n", "0"), "'0'; a number of workers, or auto"),
        (("-n", "2", "--shell-on-failure"), "several cells cannot share one terminal"),
        (("--tx", "popen", "--shell-on-failure"), "several cells cannot share one terminal"),
        (("--tx", "popen", "-n", "2"), "-n and --tx: one of them"),
        (("--tx", "host1"), "--tx 'host1': 'host1' is not for natbed; there is env:NAME, nice, popen, python, ssh"),
        (("--tx", "0*popen"), "--tx '0*popen': say ssh=root@host//python=/path/to/python, or popen for this machine"),
        (("--tx", "ssh=a//popen"), "--tx 'ssh=a//popen': say ssh=root@host"),
        (("--tx", "ssh=a//ssh=b"), "--tx 'ssh=a//ssh=b': duplicate key: 'ssh'"),
        (("--tx", "ssh=a//"), "--tx 'ssh=a//': a part is empty"),
        (("--left-out",), "--left-out is for --list"),
        (("--last-failed",), "no matrix has been run yet"),
        (("--topologies", "/nonexistent"), "/nonexistent: no scenarios there"),
    ],
)
def test_what_makes_no_sense_is_exit_code_2_and_runs_nothing(
    world: World, arguments: tuple[str, ...], complaint: str
) -> None:
    code, said = world.matrix(*arguments, judge=passes)
    assert code == 2, said
    assert complaint in " ".join(said.split())
    assert not StandIn.ran
    assert not world.results.exists()


def test_results_that_cannot_be_written_are_exit_code_2(world: World) -> None:
    world.results.write_text("a file in its place")
    code, said = world.matrix("--smoke", judge=passes)
    assert code == 2
    assert said.splitlines()[-1] == f"natbed: {world.results}: cannot be used for evidence: File exists"


# what is chosen


def test_listing_runs_nothing_and_says_why_something_is_left_out(world: World) -> None:
    code, said = world.matrix("--smoke", "--list", judge=passes)
    assert (code, said.split()) == (0, SMOKE)
    code, said = world.matrix("--list", "--left-out", judge=passes)
    assert code == 0
    assert re.search(r"Q, tunnel +\d+ +for this test", said)
    assert not StandIn.ran
    assert not world.results.exists()


def test_cells_by_id_and_by_expression(world: World) -> None:
    rare = "P-transport-3des-sha1-main-rsa-1-masquerade-responder"
    code, said = world.matrix(rare, P_TUNNEL, judge=passes)
    assert code == 0, said
    assert [cell.cell for cell in world.cells] == [rare, P_TUNNEL]
    (_, options), _ = StandIn.ran
    assert (options.protection.esp_suite, options.protection.phase1) == ("3des-sha1", "main-rsa")
    assert (options.rekey, options.seconds) == ("responder", 1)
    world.matrix("--smoke", "-k", "P and not tunnel", judge=passes)
    assert [cell.cell for cell in world.cells] == [P_TRANSPORT]


def test_repeated_cells_have_a_pass_rate_each(world: World) -> None:
    def every_other(scenario: str, _mode: str, times: int) -> Verdict:
        return Verdict.FAILED if scenario == "Q" and times % 2 else Verdict.PASSED

    code, said = world.matrix("--smoke", "--repeat", 4, judge=every_other)
    assert code == 1
    assert [(cell.cell, cell.number) for cell in world.cells] == [(name, n) for n in (1, 2, 3, 4) for name in SMOKE]
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in said.splitlines() if " % " in line}
    assert rows[P_TUNNEL] == "4/4 100 % 1.5 passed"
    assert rows[Q_TRANSPORT] == "2/4 50 % 1.5 failed"
    assert "pass rate 83.3 %" in said


def test_the_last_failed_are_run_again_until_they_pass(world: World) -> None:
    world.matrix("--smoke", judge=only("P", Verdict.FAILED))
    code, _ = world.matrix("--last-failed", judge=only("P", Verdict.LAB_BROKEN))
    assert code == 3
    assert [cell.cell for cell in world.cells] == [P_TUNNEL, P_TRANSPORT]
    assert world.matrix(P_TUNNEL, judge=passes)[0] == 0
    code, _ = world.matrix("--last-failed", judge=passes)
    assert (code, [cell.cell for cell in world.cells]) == (0, [P_TRANSPORT]), "the other has passed since"
    code, said = world.matrix("--last-failed", judge=passes)
    assert (code, said.strip()) == (0, "no cell failed the last time")
    assert not StandIn.ran


def test_a_cell_that_failed_once_of_several_times_has_failed(world: World) -> None:
    first = lambda _scenario, mode, times: Verdict.FAILED if (mode, times) == ("tunnel", 1) else Verdict.PASSED  # noqa: E731
    world.matrix("--smoke", "--repeat", 2, judge=first)
    assert report.last_failed(world.results) == [P_TUNNEL]


def test_a_matrix_that_was_not_finished_has_not_passed() -> None:
    done = CellRecord(cell="A", verdict=Verdict.PASSED, reason="")
    assert Report([done], 1, 1.0).verdict is Verdict.PASSED
    assert Report([done], 2, 1.0).verdict is Verdict.LAB_BROKEN
    assert Report([], 0, 1.0).verdict is Verdict.LAB_BROKEN


def test_lines_that_are_no_records_are_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "x-matrix" / report.CELLS
    file.parent.mkdir()
    file.write_text("{}\n")
    with pytest.raises(store.StoreError, match="missing required field"):
        report.last_failed(tmp_path)


# real runs


def natbed_matrix(*arguments: object, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "natbed.cli", "matrix", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120", "TERM": "dumb"}
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def test_scenario_a_passes_in_both_modes_at_once_on_two_workers(tmp_path: pathlib.Path) -> None:
    cwd, results = tmp_path / "cwd", tmp_path / "results"
    cwd.mkdir()
    done = natbed_matrix("--smoke", "-k", "A", "-n", 2, "--results", results, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    records = {folder.name.partition("-")[2]: folder for folder in results.iterdir() if folder.name != "latest"}
    cells = report.load(results / records["matrix"] / report.CELLS)
    assert {cell.cell.split("-")[1] for cell in cells} == {"tunnel", "transport"}
    for cell in cells:
        record = store.load(pathlib.Path(cell.evidence))
        assert (record.scenario, record.verdict, record.mode) == ("A", Verdict.PASSED, cell.cell.split("-")[1])
        assert {check.name for check in record.checks} >= {
            "connectivity",
            "idle",
            "rekey",
            "idle without keepalives",
            "wire",
        }
    assert not list(cwd.iterdir())


def test_a_worker_that_dies_is_a_broken_lab_and_the_others_go_on(world: World, tmp_path: pathlib.Path) -> None:
    dies = TOPOLOGY.replace('letter = "Q"', 'letter = "Q"\n\n    def build(self):\n        import os; os._exit(9)\n')
    refuses = dies.replace("on=home.lan)", 'on=home.lan, protected="10.5.5.5/24")', 1)
    (world.topologies / "mine.py").write_text(refuses)
    arguments = ("--smoke", "-k", "Q or P and tunnel", "-n", 2, "--topologies", world.topologies)
    done = natbed_matrix(*arguments, "--results", world.results, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert {cell.cell: cell.verdict for cell in world.cells} == {
        P_TUNNEL: Verdict.FAILED,
        Q_TRANSPORT: Verdict.LAB_BROKEN,
    }
    assert f"crashed while running 'mine/mine.py::{Q_TRANSPORT}'" in done.stdout


def test_the_shell_opens_on_the_lab_of_a_cell_that_goes_wrong(world: World, tmp_path: pathlib.Path) -> None:
    text = TOPOLOGY.replace(
        '        self.host("server", on=internet)\n',
        """        self.host("server", on=internet)
        self.nodeInfo("client1")["routes"] = []
""",
    )
    (world.topologies / "mine.py").write_text(text)
    argv = [sys.executable, "-m", "natbed.cli", "matrix", "--topologies", str(world.topologies), P_TUNNEL]
    argv += ["--shell-on-failure", "--results", str(world.results)]
    typed = "client1 ip route show 192.168.1.0/24\nexit\n"
    done = subprocess.run(argv, input=typed, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "NAT: no datagram could be sent or received" in done.stdout.partition("natbed> ")[0], "it says what is wrong"
    assert "dev client1-eth0" in done.stdout, "the lab is up"
    assert "verdict   lab broken" in done.stdout


def test_the_shell_opens_once_and_while_the_daemons_still_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, list[str]]] = []

    class Fails(OpenedRun):
        def connect(self, daemons: dict[str, Daemon]) -> None:
            super().connect(daemons)
            monkeypatch.setattr(matrix_shell, "open_shell", lambda lab: opened.append(tunnels(daemons)))
            raise StackError("as the test wants it")

    def tunnels(daemons: dict[str, Daemon]) -> dict[str, list[str]]:
        return {name: [status.name for status in daemon.status()] for name, daemon in daemons.items()}

    record = Fails(find("A"), RunOptions(clients=1, seconds=0, results=tmp_path), lambda step: None).execute()
    assert (record.verdict, record.reason) == (Verdict.FAILED, "espthrunat: as the test wants it")
    assert opened == [{"client1": ["client1-server"], "server": ["client1-server"]}]
