"""`natbed bench throughput`."""

from __future__ import annotations

import datetime
import pathlib
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from natbed.checks import Verdict

    from .throughput import Plan

app = typer.Typer(
    help="Measures implementations side by side, in one run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

USAGE, LAB_BROKEN, INTERRUPTED = 2, 3, 130  # exit codes, as those of natbed's other commands


@app.callback()
def bench() -> None:
    """Measure implementations side by side, in one run."""


@app.command()
def throughput(
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="how often each is measured")] = 5,
    seconds: Annotated[int, typer.Option(min=1, max=600, help="length of each TCP test")] = 2,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUITE", help="an ESP suite, once or more; default: aes128gcm16, aes128-sha1, aes128-sha256"
        ),
    ] = None,
    peers: Annotated[bool, typer.Option(help="measure strongSwan too, where it is installed")] = True,
    singles: Annotated[bool, typer.Option(help="measure also where packets travel singly")] = True,
    udp: Annotated[bool, typer.Option(help="look for the highest UDP rate without loss")] = True,
    results: Annotated[pathlib.Path | None, typer.Option(help="where evidence goes; default: results/")] = None,
) -> None:
    """Measure TCP, UDP, round trip and processor time of each suite through scenario A's NAT, beside the plain path.

    All is measured in rounds, each of which begins with another candidate. The results are a table, a page with plots
    and JSON.

    Exit code 0: everything was measured, 1: an implementation failed, 2: the command makes no sense, 3: the lab itself
    was broken, 130: interrupted.
    """
    from natbed.isolation import IsolationError, isolate
    from natbed.results.store import StoreError, default_folder, new_evidence

    from .candidates import DEFAULT_SUITES, SUITES, field

    suites = suite or DEFAULT_SUITES
    for name in suites:
        if name not in SUITES:
            raise typer.BadParameter(f"{name!r}; there are {', '.join(SUITES)}", param_hint="--suite")
    try:
        isolate()  # before anything starts a thread
    except IsolationError as error:
        _fail(str(error), LAB_BROKEN)
    from natbed.screen import EXIT_CODES

    from .throughput import NAME, Plan
    from .visit import Program

    contenders = field(suites, peers=peers)
    for line in contenders.left_out:
        typer.echo(f"natbed: {line}", err=True)
    try:
        folder = new_evidence(results or default_folder(), NAME, datetime.datetime.now().astimezone())
        code = EXIT_CODES[_measure(Plan(contenders, Program(seconds, singles, udp), rounds), folder)]
    except StoreError as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt:
        typer.echo("natbed: interrupted; everything is taken down", err=True)
        code = INTERRUPTED
    raise typer.Exit(code)


def _measure(plan: Plan, folder: pathlib.Path) -> Verdict:
    """Measure, keep and show it; an interrupt too shows what there is until then."""
    from rich.console import Console

    from .evidence import save
    from .report import WIDTH, show
    from .throughput import ThroughputBench

    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    with progress.status("") as status:

        def say(text: str) -> None:
            if progress.is_terminal:
                status.update(text)
            else:
                progress.print(text, markup=False)

        bench = ThroughputBench(plan, folder, say)
        try:
            for record in bench.run():
                save(record, folder)
        finally:
            record = bench.record()
            status.stop()
            files = save(record, folder)
            console = Console(soft_wrap=True, highlight=False)
            if console.width < WIDTH:  # better long lines than figures cut off
                console = Console(soft_wrap=True, highlight=False, width=WIDTH)
            show(record, console)
            for file in files:
                console.print(f"evidence  {file}", markup=False)
    return record.verdict


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"natbed: {message}", err=True)
    raise typer.Exit(code)
