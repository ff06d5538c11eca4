"""What a benchmark shows on the terminal: figures of every candidate, ratios of those to compare, what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from natbed.checks import Verdict
from natbed.results.report import COLOURS

from .record import (
    QUANTITIES,
    REPEATED,
    SINGLES,
    TRAINS,
    WIRES,
    Figure,
    Problem,
    Quantity,
    Ratio,
    Spread,
    ThroughputRecord,
)

WIDTH = 80  # columns that the tables need
BUSY = 0.5  # of the processors, wanted by others
WIRE_TITLES = {TRAINS: "packets travel in trains", SINGLES: "packets travel singly"}
CAPTION = """\
Medians, below them minimum and maximum. TCP: what arrived; UDP: the highest
rate of which no more than 0.1 % was lost; CPU: seconds that the processes of
the implementation took at that end for a gigabyte (10^9 octets) of TCP."""
RATIO_CAPTION = """\
Of the medians, below them minimum and maximum of the rounds. Of round trip and
CPU less is better."""


def show(record: ThroughputRecord, console: Console) -> None:
    """Print it all, down to the verdict."""
    for wire, figures in by_wire(record.figures):
        console.print(_figures(WIRE_TITLES[wire], figures), "")
    console.print(f"{CAPTION}\n", markup=False, style="dim", highlight=False)
    for wire, ratios in by_wire(record.ratios):
        console.print(_ratios(f"compared, {WIRE_TITLES[wire]}", ratios), "")
    if record.ratios:
        console.print(f"{RATIO_CAPTION}\n", markup=False, style="dim", highlight=False)
    for line in record.left_out:
        console.print(line, markup=False)
    for problem, rounds in grouped(record.problems):
        where = f"{problem.candidate}, round {', '.join(map(str, rounds))}: "
        console.print(Text.assemble((f"{problem.verdict.value:<10} ", COLOURS[problem.verdict]), where, problem.reason))
    for line in (*repeated(record), measured_on(record), *busy(record)):
        console.print(line, markup=False)
    console.print(Text.assemble("\nverdict   ", (record.verdict.value, f"bold {COLOURS[record.verdict]}")))
    if record.verdict is not Verdict.PASSED:
        console.print(f"reason    {record.reason}", markup=False)


def measured_on(record: ThroughputRecord) -> str:
    """One line: how often, how long, and where."""
    machine = record.machine
    done = len({sample.round for sample in record.samples})
    rounds = f"{record.rounds} round{'s' if record.rounds > 1 else ''}"
    if done < record.rounds:
        rounds = f"{done} of {rounds}"
    return (
        f"scenario {record.scenario}; {rounds} in {record.took:.0f} s, {record.seconds} s each TCP test; "
        f"{machine.processors} processors, load {machine.load:g} before; "
        f"Linux {machine.kernel}, TCP {machine.congestion}, Python {machine.python}, natbed {machine.natbed}"
        + "".join(f", {name} {version}" for name, version in record.versions.items())
    )


def repeated(record: ThroughputRecord) -> list[str]:
    """A line for each wire: how often TCP had to repeat itself."""
    lines = []
    for wire, figures in by_wire(record.figures):
        counts = [(one.candidate, one.spread) for one in figures if one.quantity == REPEATED and one.spread]
        words = [f"{candidate} {number(spread.median, 0)}" + _most(spread) for candidate, spread in counts]
        if words:
            lines.append(f"TCP segments sent again, {WIRE_TITLES[wire]}: {'; '.join(words)}")
    return lines


def _most(spread: Spread) -> str:
    return f" (at most {number(spread.high, 0)})" if spread.high > spread.median else ""


def busy(record: ThroughputRecord) -> list[str]:
    """A warning where others had the machine as it began, which would explain much."""
    if record.machine.load < BUSY * record.machine.processors:
        return []
    return ["the machine was busy before it began: rates are of what was left; processor time suffers less"]


def grouped(problems: Sequence[Problem]) -> Iterator[tuple[Problem, list[int]]]:
    """Equal ones of several rounds together."""
    rounds: dict[tuple[str, str], tuple[Problem, list[int]]] = {}
    for problem in problems:
        rounds.setdefault((problem.candidate, problem.reason), (problem, []))[1].append(problem.round)
    yield from rounds.values()


def quantities_of(found: Sequence[Figure] | Sequence[Ratio]) -> list[Quantity]:
    """Those that are among them, in their order."""
    present = {one.quantity for one in found}
    return [quantity for quantity in QUANTITIES if quantity.key in present]


def number(value: float, digits: int) -> str:
    """With so many digits behind the point as make three in all, `digits` at most."""
    whole = len(f"{value:.0f}") if value >= 1 else 0
    return f"{value:.{max(min(digits, 3 - whole), 0)}f}" if value >= 10**-digits or not value else f"{value:.2g}"


def cell(figure: Figure | None, digits: int) -> list[str]:
    """Median, and what is below it: the range, and in how many rounds it could not be measured."""
    if figure is None:
        return ["-"]
    if figure.spread is None:
        return ["failed"]
    failed = [f"{figure.failed} failed"] if figure.failed else []
    return [number(figure.spread.median, digits), *_range(figure.spread, digits), *failed]


def ratio_cell(ratio: Ratio | None) -> list[str]:
    """That of the medians, and below it the range of the rounds."""
    return ["-"] if ratio is None else [number(ratio.of_medians, 2), *_range(ratio.by_round, 2)]


def _range(spread: Spread, digits: int) -> list[str]:
    return [f"{number(spread.low, digits)}-{number(spread.high, digits)}"] if spread.count > 1 else []


Found = TypeVar("Found", Figure, Ratio)


def by_wire(found: Sequence[Found]) -> Iterator[tuple[str, list[Found]]]:
    """Those of each wire that has any."""
    for wire in WIRES:
        if those := [one for one in found if one.wire == wire]:
            yield wire, those


def by_quantity(found: Sequence[Figure]) -> dict[str, dict[str, Figure]]:
    """By candidate and quantity, in the order in which they are found."""
    rows: dict[str, dict[str, Figure]] = {}
    for figure in found:
        rows.setdefault(figure.candidate, {})[figure.quantity] = figure
    return rows


def by_pair(found: Sequence[Ratio]) -> dict[tuple[str, str], dict[str, Ratio]]:
    """By pair and quantity, in the order in which they are found."""
    rows: dict[tuple[str, str], dict[str, Ratio]] = {}
    for ratio in found:
        rows.setdefault((ratio.over, ratio.under), {})[ratio.quantity] = ratio
    return rows


def pair_name(over: str, under: str) -> str:
    """Without repeating what both have: "espthrunat aes128-sha1 : strongswan"."""
    other = under.removeprefix(f"{over}, ").removesuffix(f" {over.partition(' ')[2]}")
    return f"{over} : {other}"


def _figures(title: str, figures: Sequence[Figure]) -> Table:
    quantities = quantities_of(figures)
    table = _table(title, [f"{quantity.title}\n{quantity.unit}" for quantity in quantities])
    for candidate, row in by_quantity(figures).items():
        cells = [_text(cell(row.get(one.key), one.digits)) for one in quantities]
        table.add_row(candidate.replace(" ", "\n", 1).replace(", ", "\n"), *cells)
    return table


def _ratios(title: str, ratios: Sequence[Ratio]) -> Table:
    quantities = quantities_of(ratios)
    table = _table(title, [quantity.title for quantity in quantities])
    for pair, row in by_pair(ratios).items():
        cells = [_text(ratio_cell(row.get(one.key))) for one in quantities]
        table.add_row(pair_name(*pair).replace(" ", "\n", 1).replace(" : ", "\n: "), *cells)
    return table


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head.replace(" ", "\n", 1), justify="right", no_wrap=True)
    return table


def _text(lines: Sequence[str]) -> Text:
    first, *below = lines
    return Text("\n").join(
        [Text(first, "red" if first == "failed" else "bold"), *(Text(line, "dim") for line in below)]
    )
