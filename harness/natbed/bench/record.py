"""What a benchmark of throughput leaves: every sample, what could not be measured, and the figures of all together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from natbed.checks import Verdict

from .candidates import Candidate

TRAINS, SINGLES = "trains", "singles"
WIRES = (TRAINS, SINGLES)
"""How packets travel: in trains that every link carries whole, or singly."""


TCP = ("tcp_forward", "tcp_reverse")
CPU = ("cpu_client", "cpu_server")
UDP, PING = "udp", "ping"
REPEATED = "tcp_repeated"
"""Segments that TCP sent again, forward and reverse together: 0 where nothing was lost, so no ratio is made of it."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that is measured. `digits` behind the point are worth showing."""

    key: str
    title: str
    unit: str
    more_is_better: bool = True
    digits: int = 0


QUANTITIES = (
    Quantity(TCP[0], "TCP forward", "Mbit/s"),
    Quantity(TCP[1], "TCP reverse", "Mbit/s"),
    Quantity(UDP, "UDP", "Mbit/s"),
    Quantity(PING, "round trip", "us", more_is_better=False),
    Quantity(CPU[0], "CPU, client", "s/GB", more_is_better=False, digits=2),
    Quantity(CPU[1], "CPU, server", "s/GB", more_is_better=False, digits=2),
)
"""TCP is what arrives; UDP the highest rate of which no more than 0.1 % is lost; CPU what the implementation's own
processes take at that end, user and system, for both directions of TCP together."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement in one round."""

    round: int
    candidate: str
    wire: str
    quantity: str
    value: float


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong in one round: something is missing, or an implementation did not end in order."""

    round: int
    candidate: str
    verdict: Verdict
    reason: str


class Spread(msgspec.Struct, frozen=True):
    """Of several values."""

    median: float
    low: float
    high: float
    count: int


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity of one candidate over all rounds; `failed` are the rounds that lack it."""

    candidate: str
    wire: str
    quantity: str
    spread: Spread | None
    failed: int = 0


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate's quantity over another's: that of the medians, and those within each round."""

    over: str
    under: str
    wire: str
    quantity: str
    of_medians: float
    by_round: Spread


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured; figures of different machines cannot be compared."""

    processors: int
    kernel: str
    python: str
    natbed: str
    congestion: str  # TCP's congestion control
    load: float  # processes that wanted a processor in the minute before


class ThroughputRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One `natbed bench throughput`."""

    started: str  # ISO 8601, with zone
    scenario: str
    rounds: int  # asked for; an interrupted one has fewer in its samples
    seconds: int  # of each TCP test
    took: float  # seconds
    machine: Machine
    versions: dict[str, str]  # of peers
    candidates: list[Candidate]
    left_out: list[str]
    samples: list[Sample]
    problems: list[Problem]
    figures: list[Figure]
    ratios: list[Ratio]
    verdict: Verdict
    reason: str


def spread_of(values: Sequence[float]) -> Spread | None:
    """None of no values."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


def figures(
    expected: Mapping[str, Sequence[tuple[str, str]]], samples: Sequence[Sample], problems: Sequence[Problem]
) -> list[Figure]:
    """One for each candidate's wires and quantities in `expected` that was measured, or should have been."""
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for sample in samples:
        values.setdefault((sample.candidate, sample.wire, sample.quantity), {})[sample.round] = sample.value
    found = []
    for candidate, promised in expected.items():
        troubled = {problem.round for problem in problems if problem.candidate == candidate}
        for wire, quantity in promised:
            measured = values.get((candidate, wire, quantity), {})
            failed = len(troubled - measured.keys())
            if measured or failed:
                spread = spread_of(list(measured.values()))
                found.append(Figure(candidate=candidate, wire=wire, quantity=quantity, spread=spread, failed=failed))
    return found


def ratios(pairs: Iterable[tuple[Candidate, Candidate]], samples: Sequence[Sample]) -> list[Ratio]:
    """Of each pair what both have: of the medians, and in each round that has both."""
    by_key: dict[tuple[str, str, str], dict[int, float]] = {}
    for sample in samples:
        by_key.setdefault((sample.candidate, sample.wire, sample.quantity), {})[sample.round] = sample.value
    found = []
    for over, under in pairs:
        for wire in WIRES:
            for quantity in QUANTITIES:
                above = by_key.get((over.name, wire, quantity.key), {})
                below = by_key.get((under.name, wire, quantity.key), {})
                each = spread_of([above[n] / below[n] for n in sorted(above.keys() & below.keys()) if below[n]])
                divisor = statistics.median(below.values()) if below else 0.0
                if each is None or not divisor:
                    continue
                found.append(
                    Ratio(
                        over=over.name,
                        under=under.name,
                        wire=wire,
                        quantity=quantity.key,
                        of_medians=statistics.median(above.values()) / divisor,
                        by_round=each,
                    )
                )
    return found


def conclude(samples: Sequence[Sample], problems: Sequence[Problem], missing: int = 0) -> tuple[Verdict, str]:
    """Broken if the lab was, since then no figure counts; failed if an implementation could not be measured.

    `missing` are the visits to candidates that were not made: it was interrupted.
    """
    for verdict in (Verdict.LAB_BROKEN, Verdict.FAILED):
        for problem in problems:
            if problem.verdict is verdict:
                return verdict, f"round {problem.round}, {problem.candidate}: {problem.reason}"
    if missing or not samples:
        return Verdict.LAB_BROKEN, f"{missing} measurements were not begun" if missing else "nothing was measured"
    return Verdict.PASSED, "everything was measured"
