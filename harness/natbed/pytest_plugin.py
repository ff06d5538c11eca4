"""pytest and natbed: scenarios are collected from topology files as test items, each in isolation from the machine."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import pathlib
from collections.abc import Iterator

import pytest

from .matrix_items import NOT_ISOLATED, ScenarioItem, expand

EXTENTS = ("smoke", "default", "full")  # natbed.matrix.Extent's, whose module takes long to load


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--natbed`, for repositories that keep scenarios of their own; `natbed_isolate` makes it the default of one."""
    group = parser.getgroup("natbed")
    group.addoption("--natbed", action="store_true", help="collect natbed scenarios and isolate the process for them")
    group.addoption("--natbed-seconds", type=int, default=1, help="length of each iperf3 measurement; 0: none")
    group.addoption("--natbed-results", type=pathlib.Path, help="where evidence goes; default: results/")
    group.addoption("--natbed-matrix", choices=EXTENTS, help="run the cells of the matrix instead; implies --natbed")
    group.addoption("--natbed-select", metavar="EXPR", default="", help="only these cells: 'E and transport'")
    group.addoption("--natbed-cell", metavar="ID", action="append", default=[], help="this cell, of the full matrix")
    group.addoption("--natbed-repeat", metavar="N", type=_positive, default=1, help="run each cell so many times")
    group.addoption("--natbed-shell-on-failure", action="store_true", help="open a shell on a broken lab; needs -s")
    parser.addini("natbed_isolate", "isolate test processes as natbed needs it", type="bool", default=False)
    parser.addini(
        "natbed_conformance", "file for the last results of tests with a draft mark; default: none", default=""
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a number of times, 1 or more")
    return int(text)


def _asked_for(config: pytest.Config) -> bool:
    return bool(config.getoption("--natbed") or _as_matrix(config))


def _as_matrix(config: pytest.Config) -> bool:
    return bool(config.getoption("--natbed-matrix") or config.getoption("--natbed-cell"))


def _wanted(config: pytest.Config) -> bool:
    return bool(_asked_for(config) or config.getini("natbed_isolate"))


def pytest_configure(config: pytest.Config) -> None:
    """Isolate the process while it has one thread only: an xdist worker, or pytest itself where there are none."""
    config.addinivalue_line(
        "markers", "draft(id): a requirement of the draft (its id in the conformance table) that this test proves"
    )
    record = config.getini("natbed_conformance")
    if record:
        from .conformance_plugin import Recorder

        config.pluginmanager.register(Recorder(config.rootpath / record), "natbed-conformance")
    if not _as_matrix(config) and (config.getoption("--natbed-select") or config.getoption("--natbed-repeat") > 1):
        raise pytest.UsageError("--natbed-select and --natbed-repeat are for --natbed-matrix")
    controls_workers = _distributes(config) and not hasattr(config, "workerinput")
    if config.getoption("--natbed-shell-on-failure") and (_distributes(config) or config.getoption("capture") != "no"):
        raise pytest.UsageError("--natbed-shell-on-failure needs -s, and no workers")
    if not _wanted(config):
        return
    from .isolation import IsolationError, become_root, isolate

    if controls_workers:
        if any(worker.rpartition("*")[2] == "popen" for worker in config.getoption("tx")):
            with contextlib.suppress(IsolationError):  # then a worker says why
                become_root()
        return
    try:
        isolate()
    except IsolationError as error:
        config.stash[NOT_ISOLATED] = str(error)
    else:
        config.stash[NOT_ISOLATED] = ""


def _distributes(config: pytest.Config) -> bool:
    """Whether xdist runs the tests, by -n or by --tx."""
    return bool(getattr(config.option, "numprocesses", None) or getattr(config.option, "dist", "no") != "no")


def pytest_collect_file(file_path: pathlib.Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Topology files: those of a folder called topologies/, and with --natbed those that are named."""
    if file_path.suffix != ".py" or not _wanted(parent.config):
        return None
    if file_path.name.startswith(("test_", "conftest")):
        return None
    named = _asked_for(parent.config) and _named(file_path, parent)
    if not named and "topologies" not in _folders(file_path, parent.config.rootpath):
        return None  # to collect a file is to run it, and a setup.py is not to be run
    return TopologyFile.from_parent(parent, path=file_path)


def _named(file: pathlib.Path, parent: pytest.Collector) -> bool:
    """Whether a file is named on the command line; or its folder, and it says that it is about natbed."""
    if parent.session.isinitpath(file):
        return True
    root = parent.config.rootpath
    folders = itertools.takewhile(lambda folder: folder != root, file.parents)
    return any(parent.session.isinitpath(folder) for folder in folders) and b"natbed" in file.read_bytes()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the matrix's cells in the scenarios' place, before `-k` and the like look at them."""
    if _as_matrix(config):
        items[:] = expand(items, config)


def _folders(file: pathlib.Path, root: pathlib.Path) -> tuple[str, ...]:
    """The folders that a file is in, from the root of the tests on."""
    return file.relative_to(root).parent.parts if file.is_relative_to(root) else file.parent.parts[-1:]


class TopologyFile(pytest.File):
    """A file with scenarios."""

    def collect(self) -> Iterator[pytest.Item]:
        """One item a scenario."""
        from .scenario import ScenarioError
        from .topology_files import scenarios_of

        try:
            scenarios = scenarios_of(self.path)
        except ScenarioError as error:
            raise self.CollectError(str(error)) from error
        for scenario in scenarios:
            yield ScenarioItem.from_parent(self, name=scenario.letter, scenario=scenario)
