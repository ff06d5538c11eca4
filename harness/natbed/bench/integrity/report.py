"""What a benchmark of integrity shows on the terminal: a line for each transfer, and the verdict."""

from __future__ import annotations

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from natbed.checks import Verdict
from natbed.results.report import COLOURS

from .record import MEGA, IntegrityRecord

_SHOWN = 8  # hexadecimal digits of a digest


def show(record: IntegrityRecord, console: Console) -> None:
    """Print it all, down to the verdict."""
    table = Table("link", "way", "MB", "s", "Mbit/s", "SHA-256", box=rich.box.SIMPLE, pad_edge=False)
    for passage in record.passages:
        for number, one in enumerate(passage.transfers):
            sent, arrived = one.sent_digest[:_SHOWN], one.arrived_digest[:_SHOWN]
            equal = Text(f"{sent}, equal", COLOURS[Verdict.PASSED])
            differs = Text(f"{sent}, then {arrived}", COLOURS[Verdict.FAILED])
            table.add_row(
                passage.link if not number else "",
                one.way,
                f"{one.octets / MEGA:g}",
                f"{one.seconds:.1f}",
                f"{one.megabits_per_second:.0f}",
                equal if one.passed else differs,
            )
    if table.row_count:
        console.print(table)
    for passage in record.passages:
        style = COLOURS[passage.verdict]
        console.print(Text.assemble((f"{passage.verdict.value:<10} ", style), f"{passage.link}: {passage.reason}"))
        for link in passage.links:
            means = ", ".join(f"{name} by {what}" for name, what in link.means.items())
            measured = ", ".join(f"{name} {link.measured[name]:g}" for name in link.means if name in link.measured)
            counts = ", ".join(f"{count} {what}" for what, count in link.passed.items() if count)
            line = f"{link.sender} to {link.receiver}: {means}; measured before: {measured}"
            console.print(f"{'':<11}{line}{f'; meanwhile: {counts}' if counts else ''}", markup=False)
    console.print(
        f"scenario {record.scenario}, {record.suite}, {record.took:.0f} s; Linux {record.machine.kernel}, "
        f"Python {record.machine.python}, natbed {record.machine.natbed}",
        markup=False,
    )
    console.print(Text.assemble("\nverdict   ", (record.verdict.value, f"bold {COLOURS[record.verdict]}")))
    if record.verdict is not Verdict.PASSED:
        console.print(f"reason    {record.reason}", markup=False)
