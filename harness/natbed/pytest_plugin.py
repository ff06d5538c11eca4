"""pytest and natbed: scenarios are collected from topology files as test items, each in isolation from the machine."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .results.record import RunRecord
    from .scenario import Scenario

NOT_ISOLATED = pytest.StashKey[str]()  # why this process could not be isolated; "" if it is


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--natbed`, for repositories that keep scenarios of their own; `natbed_isolate` makes it the default of one."""
    group = parser.getgroup("natbed")
    group.addoption("--natbed", action="store_true", help="collect natbed scenarios and isolate the process for them")
    group.addoption("--natbed-seconds", type=int, default=1, help="length of each iperf3 measurement; 0: none")
    group.addoption("--natbed-results", type=pathlib.Path, help="where evidence goes; default: results/")
    parser.addini("natbed_isolate", "isolate test processes as natbed needs it", type="bool", default=False)
    parser.addini(
        "natbed_conformance", "file for the last results of tests with a draft mark; default: none", default=""
    )


def _wanted(config: pytest.Config) -> bool:
    return bool(config.getoption("--natbed") or config.getini("natbed_isolate"))


def pytest_configure(config: pytest.Config) -> None:
    """Isolate the process while it has one thread only: an xdist worker, or pytest itself where there are none."""
    record = config.getini("natbed_conformance")
    if record:
        from .conformance_plugin import Recorder

        config.pluginmanager.register(Recorder(config.rootpath / record), "natbed-conformance")
    controls_workers = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not _wanted(config) or controls_workers:
        return
    from .isolation import IsolationError, isolate

    try:
        isolate()
    except IsolationError as error:
        config.stash[NOT_ISOLATED] = str(error)
    else:
        config.stash[NOT_ISOLATED] = ""


def pytest_collect_file(file_path: pathlib.Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Topology files: those of a folder called topologies/, and with --natbed every Python file that is named."""
    if file_path.suffix != ".py" or not _wanted(parent.config):
        return None
    if file_path.name.startswith(("test_", "conftest")):
        return None
    named = bool(parent.config.getoption("--natbed")) and parent.session.isinitpath(file_path)
    if not named and "topologies" not in _folders(file_path, parent.config.rootpath):
        return None  # to collect a file is to run it, and a setup.py is not to be run
    return TopologyFile.from_parent(parent, path=file_path)


def _folders(file: pathlib.Path, root: pathlib.Path) -> tuple[str, ...]:
    """The folders that a file is in, from the root of the tests on."""
    return file.relative_to(root).parent.parts if file.is_relative_to(root) else file.parent.parts[-1:]


class TopologyFile(pytest.File):
    """A file with scenarios."""

    def collect(self) -> Iterator[pytest.Item]:
        """One item a scenario."""
        from .scenario import ScenarioError, scenarios_of

        try:
            scenarios = scenarios_of(self.path)
        except ScenarioError as error:
            raise self.CollectError(str(error)) from error
        for scenario in scenarios:
            yield ScenarioItem.from_parent(self, name=scenario.letter, scenario=scenario)


class LabBroken(Exception):  # noqa: N818 - a verdict
    """The lab failed, so nothing is known about the implementation."""


class ScenarioFailed(Exception):  # noqa: N818 - a verdict
    """The implementation failed a check."""


class ScenarioItem(pytest.Item):
    """One run of one scenario with its default parameters."""

    def __init__(self, *, scenario: type[Scenario], **more: Any) -> None:
        super().__init__(**more)
        self.scenario = scenario

    def runtest(self) -> None:
        """Run and judge."""
        from .checks import Verdict
        from .results.store import StoreError, default_folder
        from .runner import Run, RunOptions

        reason = self.config.stash.get(NOT_ISOLATED, "this process was not isolated")
        if reason:
            pytest.skip(reason)
        options = RunOptions(
            seconds=self.config.getoption("--natbed-seconds"),
            results=self.config.getoption("--natbed-results") or default_folder(),
        )
        try:
            run = Run(self.scenario, options, lambda step: None)
            record = run.execute()
        except StoreError as error:
            pytest.fail(str(error), pytrace=False)
        self.add_report_section("call", "natbed", _report(record, run.folder))
        if record.verdict is Verdict.LAB_BROKEN:
            raise LabBroken(record.reason)
        if record.verdict is Verdict.FAILED:
            raise ScenarioFailed(record.reason)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """A verdict needs no traceback; the section with the checks follows it."""
        if isinstance(excinfo.value, LabBroken):
            return f"lab broken: {excinfo.value}"
        if isinstance(excinfo.value, ScenarioFailed):
            return f"failed: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[pathlib.Path, int | None, str]:
        """Where it is and what it is called."""
        return self.path, None, f"{self.scenario.letter}. {self.scenario.title}"


def _report(record: RunRecord, folder: pathlib.Path) -> str:
    lines = [f"{check.verdict:<10} {check.name}: {check.reason}" for check in record.checks]
    return "\n".join([*lines, f"evidence: {folder}"])
