"""What people see: progress while a run goes on, one table at its end."""

from __future__ import annotations

from collections.abc import Sequence

import rich.box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from .checks import Verdict
from .doctor import Finding
from .results.record import ClientRecord, RunRecord
from .runner import LAB_ERRORS, Run, RunOptions
from .scenario import Scenario
from .shell import open_shell
from .stacks.base import StackError

EXIT_CODES = {Verdict.PASSED: 0, Verdict.FAILED: 1, Verdict.LAB_BROKEN: 3}
# narrow enough for a terminal of 80 columns
COLUMNS = (
    "client",
    "NAT seen",
    "port",
    "ms",
    "loss",
    "TCP",
    "tunnel",
    "plain",
    "wire",
    "verdict",
)
_WIDEST = 200  # columns
COLOURS = {Verdict.PASSED: "green", Verdict.FAILED: "red", Verdict.LAB_BROKEN: "yellow"}


class Screen:
    """Progress on standard error, results on standard output."""

    def __init__(self) -> None:
        self._out = Console(soft_wrap=True)
        self._progress = Console(stderr=True, highlight=False, soft_wrap=True)

    def run(self, scenario: type[Scenario], options: RunOptions) -> int:
        """Run, show, and return the exit code."""
        run = Run(scenario, options, self._step)
        with self._progress.status("") as self._status:
            record = run.execute()
        table = run_table(record)
        # better a long line than figures cut off
        width = max(self._out.width, Console(width=_WIDEST).measure(table).maximum)
        Console(width=width, soft_wrap=True).print(table)
        for check in record.checks:
            line = Text.assemble((f"  {check.verdict:<10} ", COLOURS[check.verdict]), f"{check.name}: {check.reason}")
            self._out.print(line)
        for note in record.notes:
            self._out.print(f"  {'note':<10} {note}", markup=False)
        timing = f"network up in {record.build_milliseconds:.0f} ms, down in {record.teardown_milliseconds:.0f} ms"
        self._out.print(f"  {timing}; the whole run took {record.seconds:.1f} s")
        self._out.print(Text.assemble("\nverdict   ", (record.verdict.value, f"bold {COLOURS[record.verdict]}")))
        if record.verdict is not Verdict.PASSED:
            self._out.print(f"reason    {record.reason}", markup=False)
        self._out.print(f"evidence  {run.folder}", markup=False, highlight=False)
        return EXIT_CODES[record.verdict]

    def shell(self, scenario: type[Scenario], options: RunOptions) -> None:
        """Bring everything up, open Mininet's command line, take everything down."""
        run = Run(scenario, options.before_a_fault(), self._step)
        try:
            with run.lab, run.daemons() as daemons:
                run.connect(daemons)
                self._out.print(f"tunnels are up: {', '.join(run.connect_seconds)}; logs in {run.folder}", markup=False)
                open_shell(run.lab, daemons=daemons)
        except (StackError, *LAB_ERRORS) as error:
            verdict = Verdict.FAILED if isinstance(error, StackError) else Verdict.LAB_BROKEN
            self._progress.print(f"natbed: {error}", markup=False)
            raise SystemExit(EXIT_CODES[verdict]) from None

    def _step(self, text: str) -> None:
        status = getattr(self, "_status", None)
        if status is not None and self._progress.is_terminal:
            status.update(text)
        else:
            self._progress.print(text, markup=False)


def run_table(record: RunRecord) -> Table:
    """One row a client."""
    title = f"{record.scenario}. {record.title}; NAT: {record.nat}, implementation: {record.stack}"
    title += f"\n   {record.mode} mode, phase 1: {record.phase1}"
    # one line says what the narrow heads mean: a terminal has 80 columns
    caption = "NAT seen by initiator/responder; ms: Main and Quick Mode; tunnel, plain: Mbit/s forward/reverse"
    table = Table(
        *COLUMNS,
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in table.columns:
        column.no_wrap = True
    audits = [check.verdict for check in record.checks if check.name == "wire"]
    audit = next((v for v in audits if v is not Verdict.PASSED), audits[0] if audits else None)
    for client in record.clients:
        table.add_row(*_row(client), _verdict(audit), _verdict(record.verdict))
    return table


def _row(client: ClientRecord) -> list[str]:
    rates = client.throughput
    return [
        client.name,
        f"{_yes(client.nat_seen_by_initiator)}/{_yes(client.nat_seen_by_responder)}",
        str(client.mapped_port or "-"),
        "-" if client.connect_milliseconds is None else f"{client.connect_milliseconds:.0f}",
        "-" if client.ping_loss_percent is None else f"{client.ping_loss_percent:g} %",
        {True: "yes", False: "FAILED", None: "-"}[client.tcp_both_ways],
        f"{rates.tunnel_forward:.0f}/{rates.tunnel_reverse:.0f}" if rates else "-",
        f"{rates.plain_forward:.0f}/{rates.plain_reverse:.0f}" if rates else "-",
    ]


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[value]


def _verdict(verdict: Verdict | None) -> Text:
    return Text(verdict.value, style=COLOURS[verdict]) if verdict else Text("-")


def doctor_table(findings: Sequence[Finding]) -> Table:
    """What was tried, what came of it, and what to do."""
    # Folded: the names of settings are long words, and to be typed.
    sentences = [Column(header, overflow="fold") for header in ("found", "what to do")]
    table = Table("", "what", *sentences, box=rich.box.SIMPLE_HEAD)
    for finding in findings:
        state = ("ok", "green") if finding.ok else ("missing", "red") if finding.needed else ("absent", "yellow")
        table.add_row(Text(*state), finding.name, finding.detail, "" if finding.ok else finding.remedy)
    return table


def print_table(table: Table) -> None:
    """To standard output."""
    Console().print(table)
