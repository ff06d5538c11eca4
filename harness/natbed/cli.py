"""`natbed run | shell | matrix | bench | baseline | doctor | conformance | fingerprint | reflector | nats`."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .bench.cli import app as bench
from .faults.cli import FaultOption, WithinOption, with_fault
from .nat.cli import NatOption, fingerprint, profile_of, reflector
from .nat_proof.cli import nats

if TYPE_CHECKING:
    from .runner import RunOptions
    from .scenario import Scenario
    from .settings import Protection

app = typer.Typer(
    name="natbed",
    help="Builds NAT scenarios from network namespaces and real iptables NATs, runs an IPsec implementation on every "
    "host, and says with evidence whether it connects and how fast it is.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")
for command in (fingerprint, reflector, nats):
    app.command()(command)

PASSED, FAILED, USAGE, LAB_BROKEN, INTERRUPTED = 0, 1, 2, 3, 130  # exit codes: 1 is a verdict, and nothing else is 1

ScenarioName = Annotated[str, typer.Argument(metavar="SCENARIO", help="a scenario's letter, as in topologies/: A")]
Clients = Annotated[int, typer.Option(min=1, max=14, help="clients behind the NAT")]
IkeSuite = Annotated[str, typer.Option("--ike", help="the phase 1 suite")]
EspSuite = Annotated[str, typer.Option("--esp", help="the ESP suite")]
Pfs = Annotated[str, typer.Option(help="the group of Quick Mode, or none")]
Encapsulation = Annotated[str, typer.Option(help="ESP in UDP: auto, always or never")]
Mode = Annotated[str, typer.Option(help="tunnel, or transport: the hosts' own addresses")]
Exchange = Annotated[str, typer.Option(help="phase 1: main or aggressive")]
Authentication = Annotated[str, typer.Option("--auth", help="psk, or rsa: certificates made for the run")]
Results = Annotated[pathlib.Path | None, typer.Option(help="where evidence goes; default: results/")]


@app.command()
def run(
    scenario: ScenarioName,
    clients: Clients = 2,
    nat: NatOption = "masquerade",
    ike: IkeSuite = "aes128-sha256-ecp256",
    esp: EspSuite = "aes128gcm16",
    pfs: Pfs = "ecp256",
    encapsulation: Encapsulation = "auto",
    mode: Mode = "tunnel",
    exchange: Exchange = "main",
    auth: Authentication = "psk",
    rekey: Annotated[str, typer.Option(help="who rekeys under traffic: initiator, responder, both or none")] = "both",
    idle: Annotated[
        bool, typer.Option(help="leave the tunnels idle, and let responders rekey then; not with none")
    ] = True,
    seconds: Annotated[int, typer.Option(min=0, max=600, help="length of each iperf3 measurement; 0: none")] = 2,
    fault: FaultOption = "",
    within: WithinOption = 10.0,
    results: Results = None,
) -> None:
    """Run a scenario end to end and judge it.

    Exit code 0: passed, 1: failed, 2: the command makes no sense, 3: the lab itself was broken, 130: interrupted.
    """
    found = _find(scenario)
    protection = _protection(ike, esp, pfs, encapsulation, mode, exchange, auth)
    options = _options(clients, nat, protection, seconds, results, rekey, idle)
    options = with_fault(found, options, fault, within)
    _isolate()
    from .results.store import StoreError
    from .screen import Screen

    screen = Screen()
    try:
        code = screen.run(found, options)
    except StoreError as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt:
        typer.echo("natbed: interrupted; everything is taken down", err=True)
        code = INTERRUPTED
    raise typer.Exit(code)


@app.command()
def shell(
    scenario: ScenarioName,
    clients: Clients = 2,
    nat: NatOption = "masquerade",
    ike: IkeSuite = "aes128-sha256-ecp256",
    esp: EspSuite = "aes128gcm16",
    pfs: Pfs = "ecp256",
    encapsulation: Encapsulation = "auto",
    mode: Mode = "tunnel",
    exchange: Exchange = "main",
    auth: Authentication = "psk",
    results: Results = None,
) -> None:
    """Bring a scenario's network and tunnels up and open Mininet's command line on it."""
    found = _find(scenario)
    protection = _protection(ike, esp, pfs, encapsulation, mode, exchange, auth)
    options = _options(clients, nat, protection, 0, results, "none", idle=False)
    _isolate()
    from .results.store import StoreError
    from .screen import Screen

    try:
        Screen().shell(found, options)
    except StoreError as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def matrix(
    cell: Annotated[list[str] | None, typer.Argument(metavar="[CELL]...", help="cells by their ids")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="every scenario in every mode once, no throughput")] = False,
    full: Annotated[bool, typer.Option("--full", help="every cell; else every pair of two axes' values")] = False,
    expression: Annotated[str, typer.Option("-k", metavar="EXPR", help="of these, those: 'E and transport'")] = "",
    last_failed: Annotated[bool, typer.Option("--last-failed", help="those that did not pass the last time")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="run each so many times; shows their pass rates")] = 1,
    workers: Annotated[str, typer.Option("-n", metavar="N", help="so many at once, or auto: one a core")] = "",
    tx: Annotated[
        list[str] | None, typer.Option("--tx", metavar="SPEC", help="a worker on that machine: see above; repeatable")
    ] = None,
    seconds: Annotated[
        int | None, typer.Option(min=0, max=600, help="length of each iperf3 measurement; default: 1, of --smoke 0")
    ] = None,
    junit: Annotated[pathlib.Path | None, typer.Option(metavar="FILE", help="write JUnit XML to FILE too")] = None,
    shell_on_failure: Annotated[
        bool,
        typer.Option("--shell-on-failure", help="open the shell on the lab of a cell that fails; not with -n, --tx"),
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="run nothing, list the cells")] = False,
    left_out: Annotated[bool, typer.Option("--left-out", help="with --list: what is left out, and why")] = False,
    topologies: Annotated[
        pathlib.Path | None, typer.Option(metavar="FOLDER", help="the scenarios' folder; default: natbed's own")
    ] = None,
    results: Results = None,
) -> None:
    """Run scenarios in all their variations: mode, suite, phase 1, clients, NAT, rekey, fault, impairment.

    Across machines, in pytest-xdist's terms: --tx ssh=root@host1//python=/path/to/.venv/bin/python --tx 2*ssh=... is a
    worker on one and two on another; --tx popen is one here. Such a machine needs the same version of natbed, what
    natbed doctor there calls needed (a user other than root needs user namespaces), and an ssh login without questions.
    The scenarios are sent along, all Python files of their folder; the evidence of each cell comes home when it ends,
    and nothing stays there. A machine that cannot be used, or is lost, is named, and the others run its cells.

    Exit code 0: all passed, 1: a cell failed, 2: the command makes no sense, 3: none failed, but a lab was broken or a
    cell was not run, 130: interrupted.
    """
    from rich.console import Console

    from .matrix import Extent, Matrix, MatrixError, scenarios_in
    from .matrix_machines import Place
    from .matrix_run import Request, run_matrix, show_cells
    from .matrix_select import Choice
    from .results import report
    from .results.store import StoreError, default_folder
    from .topology_files import topologies_directory

    ids, where = tuple(cell or ()), results or default_folder()
    _together({"--smoke": smoke, "--full": full, "--last-failed": last_failed, "CELL": bool(ids)})
    if left_out and not show:
        _fail("--left-out is for --list", USAGE)
    if workers not in ("", "auto") and not (workers.isdecimal() and int(workers)):
        raise typer.BadParameter(f"{workers!r}; a number of workers, or auto", param_hint="-n")
    _together({"-n": bool(workers), "--tx": bool(tx)})
    if shell_on_failure and (workers or tx):
        _fail(f"--shell-on-failure and {'-n' if workers else '--tx'}: several cells cannot share one terminal", USAGE)
    console = Console(soft_wrap=True, highlight=False)
    try:
        places = tuple(Place.of(asked) for asked in tx or ())
        folder = topologies or topologies_directory()
        cells = Matrix(scenarios_in(folder))
        if last_failed:
            ids = _last_failed(report.last_failed(where), {one.id for one in cells.cells})
        extent = Extent.SMOKE if smoke else Extent.FULL if full else Extent.DEFAULT
        choice = Choice(extent, ids, expression)
        if show:
            show_cells(cells, choice, console, left_out=left_out)
            raise typer.Exit(PASSED)
        length = seconds if seconds is not None else 0 if smoke else 1
        request = Request(choice, repeat, workers, places, length, where, junit, shell_on_failure, folder)
        code = run_matrix(cells, request, console)
    except (MatrixError, StoreError) as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt:
        typer.echo("natbed: interrupted; everything is taken down", err=True)
        code = INTERRUPTED
    raise typer.Exit(code)


def _together(given: dict[str, bool]) -> None:
    named = [name for name, value in given.items() if value]
    if len(named) > 1:
        _fail(f"{' and '.join(named)}: one of them", USAGE)


def _last_failed(failed: list[str] | None, known: set[str]) -> tuple[str, ...]:
    """The cells to run again: those that there are still. Ends the command where there are none."""
    if failed is None:
        _fail("no matrix has been run yet", USAGE)
    ids = tuple(name for name in failed if name in known)
    if not ids:
        typer.echo("no cell failed the last time")
        raise typer.Exit(PASSED)
    return ids


@app.command()
def baseline(
    rounds: Annotated[int, typer.Option(min=1, max=100, help="how often each is measured")] = 3,
    seconds: Annotated[int, typer.Option(min=1, max=60, help="length of each iperf3 measurement")] = 1,
    mode: Annotated[str, typer.Option(help="only this mode")] = "",
    esp: Annotated[str, typer.Option("--esp", help="only this ESP suite, one of the matrix or another")] = "",
    file: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE", help="where it is kept; default: results/baseline.json")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="measure and show, write nothing")] = False,
) -> None:
    """Measure what throughput is usual here, and keep it: what later runs on this kind of machine are compared with.

    Scenario A in each mode with each ESP suite of the matrix, the other scenarios in each mode with the first suite,
    all of them once a round: two minutes a round. Have nothing else run meanwhile. Other cases and other kinds of
    machines in the file stay as they are. A run fails where its ratio tunnel : plain stays below a third of the usual
    one's lower quartile in three attempts; on a kind of machine that the file does not have, and in a case that it
    says nothing about, any throughput passes.

    Exit code 0: measured, 1: the implementation failed, 2: the command makes no sense, 3: the lab was broken, 130:
    interrupted. Only with 0 is the file written.
    """
    from rich.console import Console

    from .matrix import load_axes, scenarios_in
    from .results.baseline import default_file
    from .results.store import StoreError
    from .settings import MODES
    from .topology_files import topologies_directory

    modes = (_one_of("--mode", mode, MODES),) if mode else MODES
    scenarios, suites = scenarios_in(topologies_directory()), (esp,) if esp else load_axes().esp
    _isolate()
    from .baseline_run import Request, renew, variants

    request = Request(variants(scenarios, modes, suites), rounds, seconds, file or default_file(), dry_run)
    try:
        code = renew(request, Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True))
    except StoreError as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt:
        typer.echo("natbed: interrupted; everything is taken down, nothing was written", err=True)
        code = INTERRUPTED
    raise typer.Exit(code)


@app.command()
def doctor() -> None:
    """Say what this machine has and what it lacks, found by trying. Exit code 1 if something needed is missing."""
    from .doctor import run_doctor
    from .screen import doctor_table, print_table

    findings = run_doctor()
    print_table(doctor_table(findings))
    missing = [finding.name for finding in findings if finding.needed and not finding.ok]
    if missing:
        _fail(f"needed and missing: {', '.join(missing)}", FAILED)


@app.command()
def conformance(
    tests: Annotated[bool, typer.Option("--tests", help="list the tests of each requirement")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead")] = False,
    markdown: Annotated[pathlib.Path | None, typer.Option(metavar="FILE", help="write Markdown to FILE too")] = None,
    results: Annotated[pathlib.Path | None, typer.Option(help="where the results are; default: results/")] = None,
) -> None:
    """Trace the draft's requirements: clause, requirement, tests that prove it, their last result.

    Exit code 0: each requirement that is built has a test that passes and none that fails, 1: one has not, or a test
    names a requirement that there is not, 2: there are no results yet, or they cannot be read.
    """
    import msgspec

    from .conformance import judge
    from .conformance_record import RECORD, RecordError, load
    from .conformance_report import as_markdown, show
    from .results.store import default_folder

    file = (results or default_folder()) / RECORD
    try:
        record = load(file)
    except RecordError as error:
        _fail(str(error), USAGE)
    if record is None or not record.tests:
        _fail(f"{file}: no results yet; run `make conformance`, or `pytest -m draft` in natbed's repository", USAGE)
    judged = judge(record)
    if markdown is not None:
        try:
            markdown.write_text(as_markdown(judged), encoding="utf-8")
        except OSError as error:
            _fail(f"{markdown}: cannot be written: {error.strerror}", USAGE)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(judged), indent=2))
    else:
        show(judged, tests=tests)
    raise typer.Exit(PASSED if judged.passed else FAILED)


def _find(name: str) -> type[Scenario]:
    from .scenario import ScenarioError
    from .topology_files import find

    try:
        return find(name)
    except ScenarioError as error:
        _fail(str(error), USAGE)


def _options(
    clients: int, nat: str, protection: Protection, seconds: int, results: pathlib.Path | None, rekey: str, idle: bool
) -> RunOptions:
    from .passing_through import unsuitable
    from .results.store import default_folder
    from .runner import RunOptions
    from .settings import REKEYS

    profile = profile_of(nat)
    if reason := unsuitable(profile, protection):
        raise typer.BadParameter(reason, param_hint="--nat")
    _one_of("--rekey", rekey, REKEYS)
    return RunOptions(clients, profile, protection, seconds, results or default_folder(), rekey, idle=idle)


def _protection(
    ike: str, esp: str, pfs: str, encapsulation: str, mode: str, exchange: str, authentication: str
) -> Protection:
    from .settings import AUTHENTICATIONS, ENCAPSULATIONS, EXCHANGES, MODES, Protection

    return Protection(
        ike,
        esp,
        pfs,
        _one_of("--encapsulation", encapsulation, ENCAPSULATIONS),
        _one_of("--mode", mode, MODES),
        _one_of("--exchange", exchange, EXCHANGES),
        _one_of("--auth", authentication, AUTHENTICATIONS),
    )


def _one_of(option: str, value: str, known: Iterable[str]) -> str:
    if value not in known:
        raise typer.BadParameter(f"{value!r}; there are {', '.join(known)}", param_hint=option)
    return value


def _isolate() -> None:
    """Before anything starts a thread: rich's progress and the nodes would stay outside."""
    from .isolation import IsolationError, isolate

    try:
        isolate()
    except IsolationError as error:
        _fail(str(error), LAB_BROKEN)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"natbed: {message}", err=True)
    raise typer.Exit(code)


def run_command(letter: str, arguments: list[str]) -> int:
    """`natbed run LETTER ARGUMENTS`; returns the exit code."""
    try:
        app(["run", letter, *arguments], prog_name=pathlib.Path(sys.argv[0]).name)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else FAILED
    return PASSED


def main() -> None:
    """The program's entry point."""
    app()


if __name__ == "__main__":
    main()
