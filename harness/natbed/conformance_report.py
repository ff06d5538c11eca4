"""The conformance table as people read it: in a terminal, in a pipe, as Markdown."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .conformance import Conformance, Row, Standing
from .conformance_record import Outcome

COLOURS = {
    Standing.PASSED: "green",
    Standing.FAILED: "red",
    Standing.SKIPPED: "red",
    Standing.UNTESTED: "red",
    Standing.NOT_BUILT: "yellow",
}


def show(conformance: Conformance, *, tests: bool) -> None:
    """Print the table and what it comes to. With `tests` every node id stands below its row."""
    console = Console(highlight=False)
    table = _table(conformance, tests=tests)
    if not console.is_terminal:
        console.width = max(80, console.measure(table, options=console.options.update(max_width=10_000)).maximum)
    console.print(table)
    for line in remarks(conformance):
        console.print(line, markup=False, soft_wrap=True)
    verdict, colour = ("passed", "green") if conformance.passed else ("failed", "red")
    console.print(Text.assemble("verdict   ", (verdict, f"bold {colour}")))


def _table(conformance: Conformance, *, tests: bool) -> Table:
    table = Table("clause", "id", "requirement", "tests", "last result", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in (1, 4):
        table.columns[column].no_wrap = True
    section = ""
    for row in conformance.rows:
        if row.section != section:
            section = row.section
            table.add_section()
            table.add_row("", "", Text(section, style="bold"))
        result = Text(row.standing.value, style=COLOURS[row.standing])
        table.add_row(row.clause, row.id, Text(row.requirement), _count(row), result)
        for node, proof in row.tests.items() if tests else ():
            table.add_row("", "", Text(f"  {node}", style="dim", overflow="fold"), "", proof.outcome.value)
    return table


def _count(row: Row) -> str:
    """How many tests, and how many of them did not pass where some did."""
    outcomes = collections.Counter(proof.outcome for proof in row.tests.values())
    parts = [f"{number} {outcome}" for outcome, number in outcomes.items() if outcome is not Outcome.PASSED]
    return f"{len(row.tests)} ({', '.join(parts)})" if parts else str(len(row.tests) or "-")


def remarks(conformance: Conformance) -> Iterator[str]:
    """What a reader must not miss, and the sums."""
    for row in conformance.rows:
        if row.wanting:
            yield f"{row.id}: {row.standing}"
            yield from (
                f"    {proof.outcome:<8} {node}" for node, proof in row.tests.items() if proof.outcome != "passed"
            )
        if row.ahead:
            yield f"{row.id}: not yet built, the table says, but tests that name it pass: {row.ahead}"
    for identifier, nodes in conformance.unknown.items():
        yield f"{identifier}: the table has no such row, but tests name it: {', '.join(nodes)}"
    counts = collections.Counter(row.standing for row in conformance.rows)
    sums = ", ".join(f"{counts[standing]} {standing}" for standing in Standing if counts[standing])
    yield f"{len(conformance.rows)} requirements: {sums}"
    span = (
        conformance.oldest
        if conformance.oldest == conformance.newest
        else f"{conformance.oldest} to {conformance.newest}"
    )
    yield f"results of {span}"


def as_markdown(conformance: Conformance) -> str:
    """The same, with the tests, as a Markdown document."""
    lines = ["# Conformance", "", f"Verdict: {'passed' if conformance.passed else 'failed'}", "", "```"]
    lines += [*remarks(conformance), "```"]
    section = ""
    for row in conformance.rows:
        if row.section != section:
            section = row.section
            lines += [
                "",
                f"## {section}",
                "",
                "| clause | id | requirement | tests | last result |",
                "|---|---|---|---|---|",
            ]
        tests = "<br>".join(f"{proof.outcome} `{_cell(node)}`" for node, proof in row.tests.items())
        cells = (row.clause, row.id, _cell(row.requirement), tests or "-", row.standing.value)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A bar would end the cell."""
    return text.replace("|", "\\|").replace("\n", " ")
