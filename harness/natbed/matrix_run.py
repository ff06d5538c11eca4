"""Runs the matrix: pytest in this process, its items the cells, xdist's workers where there are to be several."""

from __future__ import annotations

import datetime
import os
import pathlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .checks import Verdict
from .matrix import Cell, Matrix
from .matrix_select import Choice
from .results import store
from .results.report import CELLS, COLOURS, NAME, CellRecord, Report, append
from .topology_files import topologies_directory, topology_files

EXIT_CODES = {Verdict.PASSED: 0, Verdict.FAILED: 1, Verdict.LAB_BROKEN: 3}
# pytest finds, runs and distributes the cells; natbed shows and keeps what came of them. A topology is no test module.
NOT_NEEDED = ("terminal", "cacheprovider", "tmpdir", "python")


@dataclass(frozen=True, slots=True)
class Request:
    """How to run a matrix."""

    choice: Choice = field(default_factory=Choice)
    repeat: int = 1
    workers: str = ""  # xdist's -n: a number, auto; none: in this process
    seconds: int = 1  # of each iperf3 measurement
    results: pathlib.Path = field(default_factory=store.default_folder)
    junit: pathlib.Path | None = None
    shell_on_failure: bool = False
    topologies: pathlib.Path = field(default_factory=topologies_directory)


class Collector:
    """A pytest plugin of the process that the user sees: hears how each cell ended, says so and writes it down."""

    def __init__(self, planned: int, file: pathlib.Path, console: Console) -> None:
        self.records: list[CellRecord] = []
        self._planned = planned
        self._file = file
        self._console = console
        self.interrupted = False

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """By the user; pytest interrupts itself too, where it cannot collect."""
        self.interrupted = not isinstance(excinfo.value, pytest.Session.Interrupted)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A cell's run is its setup; with that broken there is no call. A worker that died reports nothing else."""
        if report.when == "call" or (report.when != "teardown" and report.failed):
            self._add(_record(report))
        elif report.failed:
            self._console.print(f"natbed: {report.nodeid}: {report.longreprtext}", markup=False)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """What cannot be read is said; its cells are missing at the end, which breaks the matrix."""
        if report.failed:
            self._console.print(f"natbed: {report.longreprtext}", markup=False)

    def _add(self, record: CellRecord) -> None:
        self.records.append(record)
        append(self._file, record)
        count = f"[{len(self.records):>{len(str(self._planned))}}/{self._planned}]"
        verdict = (f"{record.verdict.value:<10}", COLOURS[record.verdict])
        self._console.print(Text.assemble(f"{count} ", verdict, f" {record.seconds:5.1f} s  {record.cell}"))
        if record.verdict is not Verdict.PASSED:
            self._console.print(f"    {record.reason}", markup=False)


def _record(report: pytest.TestReport) -> CellRecord:
    facts = dict(report.user_properties)
    name = report.nodeid.rpartition("::")[2]
    broken = report.failed and ("verdict" not in facts or report.when not in ("setup", "call"))
    return CellRecord(
        cell=str(facts.get("cell") or name.partition("[")[0]),
        number=int(str(facts.get("number", 1))),
        verdict=Verdict.LAB_BROKEN if broken else Verdict(str(facts["verdict"])),
        reason=_last_line(report.longreprtext) if broken else str(facts["reason"]),
        seconds=float(str(facts.get("seconds", 0))),
        evidence=str(facts.get("evidence", "")),
    )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("lab broken: ").strip() if lines else "it ended without a word"


def run_matrix(matrix: Matrix, request: Request, console: Console) -> int:
    """Run the cells, show how each ends and a summary; returns the exit code. Raises StoreError, KeyboardInterrupt.

    Raises MatrixError where the choice makes no sense, before anything is run.
    """
    cells = request.choice.of(matrix)
    planned = len(cells) * request.repeat
    folder = store.new_evidence(request.results, NAME, _now())
    collector = Collector(planned, folder / CELLS, console)
    begin = time.monotonic()
    pytest.main(_arguments(cells, request), [collector])
    report = Report(collector.records, planned, time.monotonic() - begin)
    _show(report, request, console)
    if collector.interrupted:
        raise KeyboardInterrupt  # no verdict on what was not finished
    counts = ", ".join(f"{report.count(verdict)} {verdict.value}" for verdict in Verdict)
    verdict = (report.verdict.value, f"bold {COLOURS[report.verdict]}")
    console.print(Text.assemble("\nverdict   ", verdict, f" ({counts})"))
    console.print(f"evidence  {folder}", markup=False)
    return EXIT_CODES[report.verdict]


def _arguments(cells: Sequence[Cell], request: Request) -> list[str]:
    """pytest's. It reads no configuration of the folder that it is started in, as the other commands do not."""
    arguments = ["-c", os.devnull, "--rootdir", str(request.topologies.resolve().parent), "--assert=plain"]
    for plugin in NOT_NEEDED:
        arguments += ["-p", f"no:{plugin}"]
    arguments += [str(file) for file in topology_files(request.topologies.resolve())]
    for cell in cells:
        arguments += ["--natbed-cell", cell.id]
    arguments += ["--natbed-repeat", str(request.repeat), "--natbed-seconds", str(request.seconds)]
    arguments += ["--natbed-results", str(request.results.resolve())]
    if request.junit is not None:
        arguments += ["--junitxml", str(request.junit), "-o", "junit_suite_name=natbed"]
    if request.workers:
        # the cells take unequal times
        return [*arguments, "-n", request.workers, "--dist", "worksteal"]
    return [*arguments, "-s", *(["--natbed-shell-on-failure"] if request.shell_on_failure else [])]


def _show(report: Report, request: Request, console: Console) -> None:
    if request.repeat > 1 and report.records:
        console.print(report.table())
    own = request.topologies.resolve() != topologies_directory()
    where = f" --topologies {shlex.quote(str(request.topologies))}" if own else ""
    for record in report.bad:
        console.print()
        console.print(Text.assemble((record.verdict.value, COLOURS[record.verdict]), f"  {record.cell}"))
        console.print(f"  reason    {record.reason}", markup=False)
        console.print(f"  evidence  {record.evidence or '-'}", markup=False)
        console.print(f"  again     natbed matrix{where} {record.cell}", markup=False)
    console.print(f"\n{report.summary()}", markup=False)
    if missing := report.planned - len(report.records):
        console.print(f"{missing} were not run", markup=False)


def show_cells(matrix: Matrix, choice: Choice, console: Console, *, left_out: bool) -> None:
    """The ids of the chosen cells, one a line; or what is left out of the matrix, and why."""
    if not left_out:
        for cell in choice.of(matrix):
            console.print(cell.id, markup=False)
        return
    table = Table("left out", "cells", "because", box=rich.box.SIMPLE_HEAD)
    for exclusion, count in matrix.left_out.items():
        table.add_row(exclusion.what, str(count), exclusion.reason)
    console.print(table)


def _now() -> datetime.datetime:
    return datetime.datetime.now().astimezone()
