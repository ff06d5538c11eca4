"""A pytest plugin of workers on other machines: evidence goes home with the report of its cell, and does not stay."""

from __future__ import annotations

import pathlib
import re
import shutil
from collections.abc import Generator, Mapping

import pytest

from .machine import File, read_files, write_files
from .results import store

ATTRIBUTE = "natbed_evidence"  # of a report; pytest carries it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the cell has left to the report that its record is made from."""
    report = yield
    results: pathlib.Path = item.config.getoption("--natbed-results")
    if call.when == "call" or report.failed:
        setattr(report, ATTRIBUTE, (str(results), take(results)))
    return report


def take(results: pathlib.Path) -> list[File]:
    """All files of the runs in a folder of results, which is empty after that."""
    if not results.is_dir():
        return []
    (results / "latest").unlink(missing_ok=True)
    files = read_files(results, sorted(path for path in results.rglob("*") if path.is_file()))
    shutil.rmtree(results)
    return files


def bring_home(report: pytest.TestReport, results: pathlib.Path) -> dict[str, str]:
    """Put the evidence that a report carries into a folder of results here; returns which folder there is which here.

    Raises `StoreError`.
    """
    there, files = report.__dict__.pop(ATTRIBUTE, ("", []))
    moved = {}
    for name in dict.fromkeys(path.partition("/")[0] for path, *_ in files):
        folder = store.new_folder(results, name)
        own = [(path.removeprefix(f"{name}/"), *rest) for path, *rest in files if path.startswith(f"{name}/")]
        try:
            write_files(folder, own)
        except (OSError, ValueError) as error:
            raise store.StoreError(f"{folder}: cannot be written: {error}") from error
        if (folder / store.RECORD).exists():
            store.let_latest_be(folder)
        moved[f"{there}/{name}"] = str(folder)
    return moved


def rename(report: pytest.TestReport, moved: Mapping[str, str]) -> None:
    """Let the report name folders where they are now."""

    def renamed(text: str) -> str:
        for there, here in moved.items():
            text = re.sub(rf"{re.escape(there)}(?![\w-])", here.replace("\\", r"\\"), text)
        return text

    properties = report.user_properties
    report.user_properties = [(name, renamed(one) if isinstance(one, str) else one) for name, one in properties]
    report.sections = [(name, renamed(text)) for name, text in report.sections]
    if isinstance(report.longrepr, str):
        report.longrepr = renamed(report.longrepr)
