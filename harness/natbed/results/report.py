"""What a matrix leaves: a line of JSON for each run of a cell; and what it shows at its end."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import rich.box
from rich.table import Table
from rich.text import Text

from natbed.checks import Verdict
from natbed.results.store import StoreError

CELLS = "cells.jsonl"
NAME = "matrix"  # of a matrix' folder of evidence, where a run's has its scenario
COLOURS = {Verdict.PASSED: "green", Verdict.FAILED: "red", Verdict.LAB_BROKEN: "yellow"}


class CellRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one cell."""

    cell: str
    number: int = 1  # of its runs in this matrix
    verdict: Verdict
    reason: str
    seconds: float = 0.0
    evidence: str = ""  # folder
    machine: str = ""  # that it ran on, as --tx has it; "" for this one


def append(file: pathlib.Path, record: CellRecord) -> None:
    """Add a line, at once: an interrupted matrix keeps what it has found. StoreError if it cannot be written."""
    try:
        with file.open("ab") as lines:
            lines.write(msgspec.json.encode(record) + b"\n")
    except OSError as error:
        raise StoreError(f"{file}: cannot be written: {error.strerror}") from error


def load(file: pathlib.Path) -> list[CellRecord]:
    """Read the lines back. StoreError if they are no such lines."""
    try:
        return msgspec.json.Decoder(CellRecord).decode_lines(file.read_bytes())
    except OSError as error:
        raise StoreError(f"{file}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise StoreError(f"{file}: {error}") from error


def last_failed(results: pathlib.Path) -> list[str] | None:
    """The cells that did not pass in the last matrix that had them; None if there has been no matrix."""
    files = sorted(results.glob(f"*-{NAME}*/{CELLS}"), key=lambda file: (file.stat().st_mtime_ns, file.parent.name))
    passed: dict[str, bool] = {}
    for file in files:
        for cell, records in by_cell(load(file)).items():
            passed[cell] = all(record.verdict is Verdict.PASSED for record in records)
    return [cell for cell, good in passed.items() if not good] if files else None


def by_cell(records: Iterable[CellRecord]) -> dict[str, list[CellRecord]]:
    """The runs of each cell."""
    found: dict[str, list[CellRecord]] = {}
    for record in records:
        found.setdefault(record.cell, []).append(record)
    return found


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a matrix that took `seconds`, of `planned` runs of cells."""

    records: Sequence[CellRecord]
    planned: int
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """Failed if a cell failed; broken if a lab was, or not every cell was run; else passed."""
        verdicts = {record.verdict for record in self.records}
        if Verdict.FAILED in verdicts:
            return Verdict.FAILED
        if Verdict.LAB_BROKEN in verdicts or len(self.records) < self.planned or not self.records:
            return Verdict.LAB_BROKEN
        return Verdict.PASSED

    def count(self, verdict: Verdict) -> int:
        """How many runs ended so."""
        return sum(record.verdict is verdict for record in self.records)

    @property
    def bad(self) -> list[CellRecord]:
        """The runs that did not pass."""
        return [record for record in self.records if record.verdict is not Verdict.PASSED]

    def summary(self) -> str:
        """One line of figures."""
        done = len(self.records)
        times = [record.seconds for record in self.records] or [0.0]
        rate = 100 * self.count(Verdict.PASSED) / done if done else 0.0
        return (
            f"{done} of {self.planned} runs in {self.seconds:.0f} s, {60 * done / max(self.seconds, 1e-3):.1f} cells a "
            f"minute; a cell takes {statistics.median(times):.1f} s (median), {max(times):.1f} s at most; "
            f"pass rate {rate:.1f} %"
        )

    def table(self) -> Table:
        """One row a cell: how many of its runs passed, and how long one takes."""
        table = Table("cell", "passed", "s", "verdict", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.columns[0].overflow = "fold"
        for cell, records in sorted(by_cell(self.records).items()):
            good = sum(record.verdict is Verdict.PASSED for record in records)
            verdict = Report(records, len(records), 0).verdict
            seconds = statistics.median(record.seconds for record in records)
            passed = f"{good}/{len(records)} {100 * good / len(records):.0f} %"
            table.add_row(cell, passed, f"{seconds:.1f}", Text(verdict.value, style=COLOURS[verdict]))
        return table
