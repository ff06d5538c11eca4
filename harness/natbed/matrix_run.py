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
from .matrix_machines import LOG, Machines, Place, usable
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
    places: tuple[Place, ...] = ()  # xdist's --tx: the machines
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
        where = f"  on {record.machine}" if record.machine else ""
        self._console.print(Text.assemble(f"{count} ", verdict, f" {record.seconds:5.1f} s  {record.cell}{where}"))
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
        machine=str(facts.get("machine", "")),
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
    if request.places:
        _run_across_machines(cells, request, collector, console, folder)
    else:
        pytest.main(_arguments(cells, request, request.topologies, request.results), [collector])
    report = Report(collector.records, planned, time.monotonic() - begin)
    _show(report, request, console)
    if collector.interrupted:
        raise KeyboardInterrupt  # no verdict on what was not finished
    counts = ", ".join(f"{report.count(verdict)} {verdict.value}" for verdict in Verdict)
    verdict = (report.verdict.value, f"bold {COLOURS[report.verdict]}")
    console.print(Text.assemble("\nverdict   ", verdict, f" ({counts})"))
    console.print(f"evidence  {folder}", markup=False)
    return EXIT_CODES[report.verdict]


def _run_across_machines(
    cells: Sequence[Cell], request: Request, collector: Collector, console: Console, folder: pathlib.Path
) -> None:
    """Where a machine cannot be used, the others run its cells; without any, none is run."""

    def say(line: str) -> None:
        console.print(line, markup=False)

    def arguments(topologies: pathlib.Path, results: pathlib.Path) -> list[str]:
        return _arguments(cells, request, topologies, results, workers)

    topologies, results = request.topologies.resolve(), request.results.resolve()
    places = usable(request.places, say)
    workers = [place.worker() for place in places for _ in range(place.workers)]
    if workers:
        machines = Machines(places, topologies, results, arguments, folder / LOG, say)
        pytest.main(arguments(topologies, results), [machines, collector])


def _arguments(
    cells: Sequence[Cell],
    request: Request,
    topologies: pathlib.Path,
    results: pathlib.Path,
    workers: Sequence[str] = (),
) -> list[str]:
    """pytest's. It reads no configuration of the folder that it is started in, as the other commands do not.

    An option and its value are one word: xdist takes each other for a path.
    """
    arguments = [f"--config-file={os.devnull}", f"--rootdir={topologies.resolve().parent}", "--assert=plain"]
    for plugin in NOT_NEEDED:
        arguments += ["-p", f"no:{plugin}"]
    own = request.topologies.resolve()
    arguments += [str(topologies.resolve() / file.relative_to(own)) for file in topology_files(own)]
    arguments += [f"--natbed-cell={cell.id}" for cell in cells]
    arguments += [f"--natbed-repeat={request.repeat}", f"--natbed-seconds={request.seconds}"]
    arguments.append(f"--natbed-results={results.resolve()}")
    if request.junit is not None:
        arguments += [f"--junitxml={request.junit}", "-o", "junit_suite_name=natbed"]
    # the cells take unequal times
    if workers:
        # A worker that dies is replaced, as xdist does for -n.
        arguments += ["--dist=worksteal", f"--max-worker-restart={4 * len(workers)}"]
        return [*arguments, *(f"--tx={worker}" for worker in workers)]
    if request.workers:
        return [*arguments, "-n", request.workers, "--dist=worksteal"]
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
