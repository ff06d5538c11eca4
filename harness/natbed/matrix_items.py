"""pytest's items of natbed: a scenario with its default parameters, and a cell of the matrix."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from .matrix import Cell
    from .results.record import RunRecord
    from .runner import RunOptions
    from .scenario import Scenario

NOT_ISOLATED = pytest.StashKey[str]()  # why this process could not be isolated; "" if it is
USUAL_CLIENTS = 2  # where the scenario can have as many: only then do ports collide


class ScenarioItem(pytest.Item):
    """One run of one scenario with its default parameters.

    The run is the item's setup, its verdict the test: so a broken lab is an error to pytest, apart from a failure, on
    the terminal and in JUnit's XML alike.
    """

    def __init__(self, *, scenario: type[Scenario], **more: Any) -> None:
        super().__init__(**more)
        self.scenario = scenario
        if scenario.requirements:
            self.add_marker(pytest.mark.draft(*scenario.requirements))
        self.record: RunRecord | None = None

    def options(self, seconds: int, results: pathlib.Path) -> RunOptions:
        """How to run; `seconds` is the length of each iperf3 measurement."""
        from .nat.presets import PRESETS
        from .runner import RunOptions
        from .settings import Protection

        counts = self.scenario.client_counts
        return RunOptions(
            clients=USUAL_CLIENTS if USUAL_CLIENTS in counts else counts[0],
            nat=PRESETS[self.scenario.nats[0]],
            protection=Protection(mode=self.scenario.modes[0]),
            seconds=seconds,
            results=results,
        )

    def setup(self) -> None:
        """Run."""
        from . import runner
        from .checks import Verdict
        from .results.store import StoreError, default_folder

        reason = self.config.stash.get(NOT_ISOLATED, "this process was not isolated")
        if reason:
            self.not_isolated(reason)
        results = self.config.getoption("--natbed-results") or default_folder()
        options = self.options(self.config.getoption("--natbed-seconds"), results)
        kind: type[runner.Run] = runner.Run
        if self.config.getoption("--natbed-shell-on-failure"):
            from .matrix_shell import OpenedRun as kind  # noqa: N813 - the class to take
        try:
            run = kind(self.scenario, options, lambda step: None)
            self.record = run.execute()
        except StoreError as error:
            pytest.fail(str(error), pytrace=False)
        self.note(self.record, run.folder)
        if self.record.verdict is Verdict.LAB_BROKEN:
            _end("lab broken", self.record.reason)

    def runtest(self) -> None:
        """Judge."""
        from .checks import Verdict

        if self.record is not None and self.record.verdict is Verdict.FAILED:
            _end("failed", self.record.reason)

    def not_isolated(self, reason: str) -> None:
        """Skip: here a scenario is one test of many."""
        pytest.skip(reason)

    def note(self, record: RunRecord, folder: pathlib.Path) -> None:
        """Let reports show and carry what came of it, JUnit's as properties."""
        lines = [f"{check.verdict:<10} {check.name}: {check.reason}" for check in record.checks]
        lines += [f"{'note':<10} {note}" for note in record.notes]
        self.add_report_section("setup", "natbed", "\n".join([*lines, f"evidence: {folder}"]))
        self.user_properties += [
            ("verdict", record.verdict.value),
            ("reason", record.reason),
            ("seconds", record.seconds),
            ("evidence", str(folder)),
        ]

    def reportinfo(self) -> tuple[pathlib.Path, int | None, str]:
        """Where it is and what it is called."""
        return self.path, None, f"{self.scenario.letter}. {self.scenario.title}"


class CellItem(ScenarioItem):
    """One run of one cell; `number` counts its runs from 1."""

    def __init__(self, *, cell: Cell, number: int, **more: Any) -> None:
        super().__init__(**more)
        self.cell = cell
        self.user_properties += [("cell", cell.id), ("number", number)]

    def options(self, seconds: int, results: pathlib.Path) -> RunOptions:
        """As the cell says."""
        return self.cell.options(seconds, results)

    def not_isolated(self, reason: str) -> None:
        """Who asks for a matrix wants to know that it could not run."""
        _end("lab broken", reason)

    def reportinfo(self) -> tuple[pathlib.Path, int | None, str]:
        """Where it is and what it is called."""
        return self.path, None, self.name


def _end(verdict: str, reason: str) -> NoReturn:
    """A verdict needs no traceback; the section with the checks follows it."""
    pytest.fail(f"{verdict}: {reason}", pytrace=False)


def expand(items: Sequence[pytest.Item], config: pytest.Config) -> list[pytest.Item]:
    """The cells that the options choose of the matrix of the scenarios among the items, in these' place.

    Raises pytest.UsageError where the choice makes no sense.
    """
    from .matrix import Extent, Matrix, MatrixError
    from .matrix_select import Choice

    files = {item.scenario.letter: item for item in items if isinstance(item, ScenarioItem)}
    scenarios = [item.scenario for item in items if isinstance(item, ScenarioItem)]
    others = [item for item in items if not isinstance(item, ScenarioItem)]
    extent = Extent(config.getoption("--natbed-matrix") or Extent.FULL)
    choice = Choice(extent, tuple(config.getoption("--natbed-cell")), config.getoption("--natbed-select"))
    try:
        cells = choice.of(Matrix(scenarios)) if scenarios else []
    except MatrixError as error:
        raise pytest.UsageError(str(error)) from error
    repeat = config.getoption("--natbed-repeat")
    # all of them once before any of them twice: what goes wrong by chance shows in different company
    runs = [(cell, number) for number in range(1, repeat + 1) for cell in cells]
    made = []
    for cell, number in runs:
        first = files[cell.scenario]
        assert first.parent is not None, "it was collected from a file"
        name = f"{cell.id}[{number}]" if repeat > 1 else cell.id
        item = CellItem.from_parent(first.parent, name=name, scenario=first.scenario, cell=cell, number=number)
        config.hook.pytest_itemcollected(item=item)
        made.append(item)
    return [*made, *others]  # the longest first: else one worker has them at its end
