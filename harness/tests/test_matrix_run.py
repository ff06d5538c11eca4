"""`natbed matrix`: how cells end, what is shown and kept, and what is run again. All runs are stand-ins."""

from __future__ import annotations

import pathlib
import re
import xml.etree.ElementTree as ET

import pytest
from matrix_world import P_TRANSPORT, P_TUNNEL, Q_TRANSPORT, SMOKE, Judge, StandIn, World

from natbed.checks import Verdict
from natbed.results import report, store
from natbed.results.report import CellRecord, Report

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World.made(tmp_path, monkeypatch)


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
