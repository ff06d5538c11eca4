"""Records how tests with `@pytest.mark.draft("ID")` end; an id that the table lacks is an error of the collection."""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Generator
from typing import Any

import msgspec
import pytest

from .conformance import identifiers
from .conformance_record import Found, Outcome, Proof, RecordError, merge, update

MARK = "draft"
PROPERTY = "draft"  # of a test's report: one for each id, which JUnit reports show too
PARCEL = "natbed_conformance"  # what an xdist worker hands to its controller


class Recorder:
    """One for each process of a session. xdist's workers say what they found; only the controller writes."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file
        self._found = Found()
        self._items: dict[str, pytest.Item] = {}
        self._phases: dict[str, dict[str, Outcome]] = {}
        self._ids: dict[str, tuple[str, ...]] = {}
        self._problem = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Note what is there; refuse marks that name nothing."""
        report = yield
        if isinstance(collector, (pytest.Session, pytest.Directory)) or not report.passed:
            return report
        items = [child for child in report.result if isinstance(child, pytest.Item)]
        complaints = [complaint for item in items for complaint in _complaints(item)]
        if complaints:
            report.outcome, report.longrepr, report.result = "failed", "\n".join(complaints), []
            return report
        self._found.children[collector.nodeid] = [child.nodeid for child in report.result]
        self._items.update((item.nodeid, item) for item in items)
        return report

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note also what was made of what is there: the cells of a matrix, in the place of their scenario."""
        if item.nodeid not in self._items and item.parent is not None:
            self._items[item.nodeid] = item
            self._found.children.setdefault(item.parent.nodeid, []).append(item.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """xdist's workers pass on what could not be collected."""
        if report.failed:
            self._found.broken.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """The ids travel with the report, from a worker too."""
        report = yield
        report.user_properties.extend((PROPERTY, identifier) for identifier in ids_of(item))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Each phase of each test; a crash of a worker comes as a failure without ids."""
        ids = tuple(str(value) for name, value in report.user_properties if name == PROPERTY)
        self._ids[report.nodeid] = ids or self._ids.get(report.nodeid, ())
        self._phases.setdefault(report.nodeid, {})[report.when or ""] = _outcome(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """What a worker found, unless it crashed."""
        parcel = getattr(node, "workeroutput", {}).get(PARCEL)
        if parcel:
            found = msgspec.json.decode(parcel, type=Found)
            self._found.children.update(found.children)
            self._found.ids.update(found.ids)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand over, or write."""
        marked = {node: ids for node, item in self._items.items() if (ids := ids_of(item))}
        self._found.ids.update(marked)
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[PARCEL] = msgspec.json.encode(self._found).decode()
        else:
            self._write(session)

    def _write(self, session: pytest.Session) -> None:
        when = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        new = {
            node: Proof(ids=self._ids[node], outcome=outcome, when=when)
            for node, phases in self._phases.items()
            if (outcome := _together(phases)) is not None
        }
        root = session.config.rootpath
        try:
            update(self._file, lambda old: merge(old, self._found, new, lambda name: (root / name).is_file()))
        except RecordError as error:
            self._problem = str(error)
            session.exitstatus = session.exitstatus or pytest.ExitCode.INTERNAL_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """A record that could not be kept must not go unnoticed."""
        if self._problem:
            terminalreporter.write_line(f"natbed: {self._problem}", red=True)


def ids_of(item: pytest.Item) -> tuple[str, ...]:
    """The requirements that a test says it proves: by its own marks, its class's and its module's."""
    return tuple(dict.fromkeys(str(name) for mark in item.iter_markers(MARK) for name in mark.args))


def _complaints(item: pytest.Item) -> list[str]:
    unknown = [name for name in ids_of(item) if name not in identifiers()]
    lines = [f"{item.nodeid}: draft({name!r}): the conformance table has no such row" for name in unknown]
    if any(not mark.args or mark.kwargs for mark in item.iter_markers(MARK)):
        lines.append(f"{item.nodeid}: a draft mark takes ids of the conformance table, one or more")
    return lines


def _outcome(report: pytest.TestReport) -> Outcome:
    if hasattr(report, "wasxfail"):
        return Outcome.XFAILED
    return Outcome(report.outcome)


def _together(phases: dict[str, Outcome]) -> Outcome | None:
    """The outcome of a test from those of its phases; None if it was not run to its end."""
    for worst in (Outcome.FAILED, Outcome.XFAILED, Outcome.SKIPPED):
        if worst in phases.values():
            return worst
    return Outcome.PASSED if {"call", "teardown"} <= phases.keys() else None
