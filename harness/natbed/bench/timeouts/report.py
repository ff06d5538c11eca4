"""What a benchmark of timeouts shows on the terminal: its tables, and what went wrong."""

from __future__ import annotations

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from natbed.bench.report import BUSY
from natbed.checks import Verdict
from natbed.results.report import COLOURS

from .record import TimeoutsRecord
from .sections import Section, sections

WIDTH = 80  # columns that the tables need


def show(record: TimeoutsRecord, console: Console) -> None:
    """Print it all, down to the verdict."""
    for section in sections(record):
        console.print(_table(section))
        console.print(f"{section.caption}\n", markup=False, style="dim", highlight=False)
    for trouble in record.troubles:
        verdict = (f"{trouble.verdict.value:<10} ", COLOURS[trouble.verdict])
        console.print(Text.assemble(verdict, f"{trouble.part}: {trouble.reason}"))
    for line in remarks(record):
        console.print(line, markup=False)
    console.print(measured_on(record), markup=False)
    console.print(Text.assemble("\nverdict   ", (record.verdict.value, f"bold {COLOURS[record.verdict]}")))
    if record.verdict is not Verdict.PASSED:
        console.print(f"reason    {record.reason}", markup=False)


def remarks(record: TimeoutsRecord) -> list[str]:
    """What a reader must know of the figures: the speed and what it cost, trials that said nothing, a busy machine."""
    lines = []
    if record.speed != 1:
        lines.append(
            f"speed {record.speed:g}: seconds are model seconds, {record.speed:g} of them a real one; a NAT's timeouts "
            f"are whole real seconds, {record.speed:g} s apart here"
        )
    for asked, had in record.rounded.items():
        lines.append(f"a timeout of {asked} s cannot be had at this speed: it was {had:g} s")
    if void := [trial.void for trial in record.trials if trial.void]:
        lines.append(f"{len(void)} of {len(record.trials)} trials said nothing and do not count; one: {void[0]}")
    if record.machine.load >= BUSY * record.machine.processors:
        lines.append("the machine was busy before it began: what is late is measured, but takes more rounds")
    return lines


def measured_on(record: TimeoutsRecord) -> str:
    """One line: how long, and where."""
    machine = record.machine
    return (
        f"{', '.join(record.parts)} in {record.took:.0f} s; {machine.processors} processors, load {machine.load:g} "
        f"before; Linux {machine.kernel}, Python {machine.python}, natbed {machine.natbed}"
    )


def _table(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for title, unit in section.heads:
        table.add_column(f"{title}\n{unit}", justify="right", no_wrap=True)
    for name, cells in section.rows:
        table.add_row(name, *(_text(list(lines)) for lines in cells))
    return table


def _text(lines: list[str]) -> Text:
    return Text("\n").join([Text(lines[0], "bold"), *(Text(line, "dim") for line in lines[1:])])
