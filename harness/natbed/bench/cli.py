"""`natbed bench throughput | timeouts | integrity`."""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, NoReturn, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from natbed.checks import Verdict

    from .integrity.bench import Plan as IntegrityPlan
    from .integrity.record import IntegrityRecord
    from .record import ThroughputRecord
    from .throughput import Plan
    from .timeouts.options import Plan as TimeoutsPlan
    from .timeouts.record import TimeoutsRecord

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
    from .candidates import DEFAULT_SUITES, SUITES, field

    suites = suite or DEFAULT_SUITES
    for name in suites:
        if name not in SUITES:
            raise typer.BadParameter(f"{name!r}; there are {', '.join(SUITES)}", param_hint="--suite")
    _isolate()
    from .throughput import NAME, Plan
    from .visit import Program

    contenders = field(suites, peers=peers)
    for line in contenders.left_out:
        typer.echo(f"natbed: {line}", err=True)
    _end_with(NAME, results, lambda folder: _measure(Plan(contenders, Program(seconds, singles, udp), rounds), folder))


@app.command()
def timeouts(
    timeout: Annotated[
        list[float] | None,
        typer.Option(metavar="SECONDS", help="a NAT's timeout, once or more; default: 3, 5, 7 and 10 real seconds"),
    ] = None,
    speed: Annotated[
        float, typer.Option(help="model seconds in a real one: 60 makes an hour of a NAT's memory a minute")
    ] = 1.0,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="lifetime, survival, costs or recovery, once or more; default: all"),
    ] = None,
    results: Annotated[pathlib.Path | None, typer.Option(help="where evidence goes; default: results/")] = None,
) -> None:
    """Measure how long NATs remember, what tunnels survive behind them and how soon, and what keepalives cost.

    After faults (reboot, renumbering, expiry, port change, link flap) the time until traffic flows again is measured.
    Mappings and tunnels are left idle side by side, and the cliffs found by bisection. With --speed all timeouts,
    intervals, lifetimes and waits are so much shorter; what is given and shown are model seconds. A NAT's timeouts are
    whole real seconds, one at least, so at speed 60 they are minutes. The results are tables, a page with plots and
    JSON.

    Exit code 0: everything was measured, 1: a tunnel did not survive what its NAT lets it, 2: the command makes no
    sense, 3: the lab itself was broken, 130: interrupted.
    """
    from .timeouts.options import OptionsError, plan_of

    try:
        plan = plan_of(timeout, speed, part)
    except OptionsError as error:
        raise typer.BadParameter(str(error), param_hint=error.option) from None
    _isolate()
    from .timeouts.bench import NAME

    _end_with(NAME, results, lambda folder: _measure_timeouts(plan, folder))


@app.command()
def integrity(
    megabytes: Annotated[int, typer.Option(min=1, max=1_000_000, help="of each transfer: 10^6 octets each")] = 1000,
    link: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORDS",
            help="once or more: unimpaired, or what the link between NAT and Internet does, as in the shell's impair; "
            "default: unimpaired, loss 1 %, delay 2 ms reorder 5 %, corrupt 0.1 %",
        ),
    ] = None,
    suite: Annotated[str, typer.Option(help="the ESP suite")] = "aes128gcm16",
    results: Annotated[pathlib.Path | None, typer.Option(help="where evidence goes; default: results/")] = None,
) -> None:
    """Send random octets both ways at once through scenario A's tunnel, and compare SHA-256 at both ends.

    First over the link as it is, then over one that loses, reorders or damages packets both ways, which is measured to
    do so before. The results are a table and JSON.

    Exit code 0: all arrived as it was sent, 1: it did not, 2: the command makes no sense, 3: the lab itself was broken,
    130: interrupted.
    """
    from natbed.impairments.names import ImpairmentNameError

    from .candidates import SUITES

    if suite not in SUITES:
        raise typer.BadParameter(f"{suite!r}; there are {', '.join(SUITES)}", param_hint="--suite")
    _isolate()
    from .integrity.bench import DEFAULT_LINKS, NAME, check_link
    from .integrity.bench import Plan as IntegrityPlan
    from .integrity.record import MEGA

    plan = IntegrityPlan(megabytes * MEGA, suite, tuple(link or DEFAULT_LINKS))
    try:
        for words in plan.links:
            check_link(words)
    except ImpairmentNameError as error:
        raise typer.BadParameter(str(error), param_hint="--link") from None
    _end_with(NAME, results, lambda folder: _send(plan, folder))


def _isolate() -> None:
    """Before anything starts a thread."""
    from natbed.isolation import IsolationError, isolate

    try:
        isolate()
    except IsolationError as error:
        _fail(str(error), LAB_BROKEN)


def _end_with(name: str, results: pathlib.Path | None, measure: Callable[[pathlib.Path], Verdict]) -> NoReturn:
    """Measure, with a folder for evidence, and leave with the verdict's exit code."""
    from natbed.results.store import StoreError, default_folder, new_evidence
    from natbed.screen import EXIT_CODES

    try:
        folder = new_evidence(results or default_folder(), name, datetime.datetime.now().astimezone())
        code = EXIT_CODES[measure(folder)]
    except StoreError as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt:
        typer.echo("natbed: interrupted; everything is taken down", err=True)
        code = INTERRUPTED
    raise typer.Exit(code)


def _measure(plan: Plan, folder: pathlib.Path) -> Verdict:
    from .evidence import save
    from .report import show
    from .throughput import ThroughputBench

    return _carry_out(lambda say: ThroughputBench(plan, folder, say), lambda record: save(record, folder), show)


def _measure_timeouts(plan: TimeoutsPlan, folder: pathlib.Path) -> Verdict:
    from natbed.stacks.espthrunat import EspThruNat

    from .timeouts.bench import TimeoutsBench
    from .timeouts.evidence import save
    from .timeouts.report import show

    stack = EspThruNat()
    return _carry_out(lambda say: TimeoutsBench(plan, stack, folder, say), lambda record: save(record, folder), show)


def _send(plan: IntegrityPlan, folder: pathlib.Path) -> Verdict:
    from natbed.stacks.espthrunat import EspThruNat

    from .integrity.bench import IntegrityBench
    from .integrity.evidence import save
    from .integrity.report import show

    stack = EspThruNat()
    return _carry_out(lambda say: IntegrityBench(plan, stack, folder, say), lambda record: save(record, folder), show)


Record = TypeVar("Record", "ThroughputRecord", "TimeoutsRecord", "IntegrityRecord")


Kept = TypeVar("Kept", covariant=True)


class _Bench(Protocol[Kept]):
    def run(self) -> Iterator[Kept]: ...

    def record(self) -> Kept: ...


def _carry_out(
    begin: Callable[[Callable[[str], None]], _Bench[Record]],
    save: Callable[[Record], list[pathlib.Path]],
    show: Callable[[Record, Console], None],
) -> Verdict:
    """Measure, keep and show it; an interrupt too shows what there is until then."""
    from rich.console import Console

    from .report import WIDTH

    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    with progress.status("") as status:

        def say(text: str) -> None:
            if progress.is_terminal:
                status.update(text)
            else:
                progress.print(text, markup=False)

        bench = begin(say)
        try:
            for record in bench.run():
                save(record)
        finally:
            record = bench.record()
            status.stop()
            files = save(record)
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
