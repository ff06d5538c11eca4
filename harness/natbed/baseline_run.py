"""`natbed baseline`: measures what throughput is usual on this kind of machine, and keeps it for later runs."""

from __future__ import annotations

import datetime
import pathlib
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import rich.box
from rich.console import Console
from rich.table import Table

from .checks import CheckResult, Verdict
from .checks.throughput import Spread
from .isolation import runtime_directory
from .load import load
from .machine_kind import machine_kind
from .nat import presets
from .results import baseline
from .results.baseline import Baseline, Case, Figures, Sample
from .runner import LAB_ERRORS, Run, RunOptions
from .scenario import Scenario
from .settings import Protection
from .stacks.base import StackError

BUSY = 0.2  # of all processors' time: above this, others take too much of it
EXIT_CODES = {Verdict.FAILED: 1, Verdict.LAB_BROKEN: 3}
Variant = tuple[type[Scenario], str, str]  # with mode and ESP suite


class CannotMeasure(Exception):  # noqa: N818 - reads as what happened
    """A measurement came to nothing: whose fault that is, and why."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure, and where to keep it."""

    variants: Sequence[Variant]
    rounds: int
    seconds: int  # of each iperf3 measurement
    file: pathlib.Path
    dry_run: bool = False


def variants(scenarios: Sequence[type[Scenario]], modes: Sequence[str], suites: Sequence[str]) -> list[Variant]:
    """The reference scenario with every suite, the others with the first: from these the rest can be put together."""
    return [
        (scenario, mode, esp)
        for scenario in scenarios
        for mode in modes
        if mode in scenario.modes
        for esp in (suites if scenario.letter == baseline.REFERENCE else suites[:1])
    ]


def renew(request: Request, out: Console, progress: Console) -> int:
    """Measure everything, show it, and keep it if all of it could be measured; returns the exit code.

    Raises StoreError, before anything is measured where the file is damaged already; KeyboardInterrupt.
    """
    before, kind = baseline.load(request.file), machine_kind()
    progress.print(f"this machine: {kind}", markup=False)
    if (taken := load()) > BUSY:
        progress.print(f"natbed: others take {taken:.0%} of the processors: these figures will be of little use")
    try:
        figures = _figures(request, progress)
    except CannotMeasure as problem:
        progress.print(f"natbed: {problem}; nothing was written", markup=False)
        return EXIT_CODES[problem.verdict]
    out.print(_table(figures, before, kind))
    if request.dry_run:
        out.print("dry run: nothing was written")
    else:
        baseline.save(request.file, before.renewed(kind, figures))
        out.print(f"written: {request.file}", markup=False)
    return 0


def _figures(request: Request, progress: Console) -> list[Figures]:
    """All variants once a round: what changes while it goes on touches all of them alike."""
    samples: dict[Case, list[Sample]] = {}
    total = request.rounds * len(request.variants)
    todo = [variant for _ in range(request.rounds) for variant in request.variants]
    for number, (scenario, mode, esp) in enumerate(todo, 1):
        case, sample = measure_once(scenario, mode, esp, request.seconds)
        samples.setdefault(case, []).append(sample)
        progress.print(f"[{number:>{len(str(total))}}/{total}] {case}: {_rates(sample)}", markup=False)
    return [
        Figures.of(
            case,
            found,
            seconds=request.seconds,
            measured=f"{datetime.datetime.now().astimezone():%Y-%m-%d}",
            kernel=platform.release(),
            python=platform.python_version(),
        )
        for case, found in samples.items()
    ]


def measure_once(scenario: type[Scenario], mode: str, esp: str, seconds: int) -> tuple[Case, Sample]:
    """The scenario with as few clients as it has, up, its first client measured, and down. Raises CannotMeasure."""
    protection = Protection(mode=mode, esp_suite=esp)
    with tempfile.TemporaryDirectory(prefix="baseline-", dir=runtime_directory()) as folder:
        nat, clients = presets.PRESETS[scenario.nats[0]], scenario.client_counts[0]
        options = RunOptions(clients, nat, protection, seconds, pathlib.Path(folder), baseline=None)
        run = Run(scenario, options, lambda step: None)
        try:
            encapsulation, result = _measured(run)
        except StackError as error:
            raise CannotMeasure(Verdict.FAILED, str(error)) from error
        except LAB_ERRORS as error:
            raise CannotMeasure(Verdict.LAB_BROKEN, str(error)) from error
    rates = {
        f"{path}_{way}": result.details[path][way]["megabits_per_second"]
        for path in ("tunnel", "plain")
        for way in ("forward", "reverse")
    }
    case = Case(stack=run.stack.name, scenario=scenario.letter, mode=mode, esp=esp, encapsulation=encapsulation)
    return case, Sample(**rates)


def _measured(run: Run) -> tuple[str, CheckResult]:
    """The encapsulation, and the throughput of the first row; every check on the way has passed."""
    with run.lab:
        _passed(run.judge.nats())
        row = run.judge.rows()[0]
        if run.options.protection.mode == "transport" and (problem := run.judge.plain_throughput(row)):
            _passed(problem)
        with run.daemons() as daemons:
            run.connect(daemons)
            _passed(run.judge.discovery(daemons))
            return run.judge.encapsulation(row), _passed(run.judge.throughput(row))


def _passed(result: CheckResult) -> CheckResult:
    if not result.passed:
        raise CannotMeasure(result.verdict, f"{result.name}: {result.reason}")
    return result


def _rates(sample: Sample) -> str:
    return (
        f"tunnel {sample.tunnel_forward:.0f} / {sample.tunnel_reverse:.0f} Mbit/s, "
        f"plain {sample.plain_forward:.0f} / {sample.plain_reverse:.0f} Mbit/s"
    )


def _table(figures: Sequence[Figures], before: Baseline, kind: str) -> Table:
    """One row a case: rates, and the ratio's quartiles, beside the medians of what was kept before."""
    table = Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    for head in ("", "mode", "ESP suite", "tunnel", "plain", "forward", "reverse", "before"):
        table.add_column(head, no_wrap=True)
    table.caption = (
        "tunnel, plain: median Mbit/s forward/reverse; forward, reverse: lower and upper\n"
        "quartile of tunnel : plain in %; before: the medians that were kept, in %"
    )
    kept = before.figures(kind)
    for one in figures:
        rates, old = one.rates, kept.get(one.case)
        table.add_row(
            one.case.scenario,
            one.case.mode,
            one.case.esp,
            f"{rates.tunnel_forward:.0f}/{rates.tunnel_reverse:.0f}",
            f"{rates.plain_forward:.0f}/{rates.plain_reverse:.0f}",
            _quartiles(one.ratio.forward),
            _quartiles(one.ratio.reverse),
            f"{100 * old.ratio.forward.median:.3g}/{100 * old.ratio.reverse.median:.3g}" if old else "-",
        )
    return table


def _quartiles(spread: Spread) -> str:
    return f"{100 * spread.low:.3g}-{100 * spread.high:.3g}"
