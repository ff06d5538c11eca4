"""Throughput of every candidate through the NAT of scenario A, in rounds: each round measures each candidate once.

Rounds begin with another candidate each time, so that what changes on the machine meanwhile favours none.
"""

from __future__ import annotations

import datetime
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from natbed.checks import Verdict
from natbed.runner import LAB_ERRORS

from .candidates import Candidate, Field
from .machine import this_machine
from .record import UDP, Problem, Sample, ThroughputRecord, conclude, figures, ratios
from .visit import SCENARIO, Program, Visit

T = TypeVar("T")

NAME = "bench-throughput"  # of the folder of evidence, where a run's has its scenario


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and how often."""

    field: Field
    program: Program
    rounds: int = 5


class ThroughputBench:
    """A benchmark on its way: `run` measures, `record` says what there is until now."""

    def __init__(self, plan: Plan, folder: pathlib.Path, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._folder = folder
        self._progress = progress
        self._started = datetime.datetime.now().astimezone()
        self._begin = time.monotonic()
        self._machine = this_machine()
        self._samples: list[Sample] = []
        self._problems: list[Problem] = []
        self._visits = 0

    def run(self) -> Iterator[ThroughputRecord]:
        """Measure, and yield the record after each round. A broken lab ends it early; the record says why."""
        for number in range(1, self._plan.rounds + 1):
            for candidate in rotated(self._plan.field.candidates, number - 1):
                if not self._visit(number, candidate):
                    yield self.record()
                    return
            yield self.record()

    def record(self) -> ThroughputRecord:
        """Everything measured until now."""
        field = self._plan.field
        missing = self._plan.rounds * len(field.candidates) - self._visits
        verdict, reason = conclude(self._samples, self._problems, missing)
        expected = {candidate.name: self._plan.program.expected(candidate) for candidate in field.candidates}
        return ThroughputRecord(
            started=self._started.isoformat(timespec="milliseconds"),
            scenario=SCENARIO,
            rounds=self._plan.rounds,
            seconds=self._plan.program.seconds,
            took=round(time.monotonic() - self._begin, 3),
            machine=self._machine,
            versions=field.versions,
            candidates=list(field.candidates),
            left_out=list(field.left_out),
            samples=self._samples,
            problems=self._problems,
            figures=figures(expected, self._samples, self._problems),
            ratios=ratios(field.pairs(), self._samples),
            verdict=verdict,
            reason=reason,
        )

    def _visit(self, number: int, candidate: Candidate) -> bool:
        """Whether the lab held."""
        visit = Visit(
            number,
            candidate,
            self._plan.field.stacks.get(candidate.name),
            self._plan.program,
            self._folder,
            lambda what: self._say(number, candidate, what),
            self._last_udp(candidate),
        )
        broken = False
        try:
            visit.measure()
        except LAB_ERRORS as error:
            visit.blame(Verdict.LAB_BROKEN, str(error))
            broken = True
        finally:
            self._samples += visit.samples
            self._problems += visit.problems
        self._visits += 1
        return not broken

    def _last_udp(self, candidate: Candidate) -> float | None:
        wanted = candidate.name, UDP
        return next((one.value for one in reversed(self._samples) if (one.candidate, one.quantity) == wanted), None)

    def _say(self, number: int, candidate: Candidate, what: str) -> None:
        """What is being done, and how long all may still take."""
        planned, left = self._plan.rounds * len(self._plan.field.candidates), ""
        if self._visits:
            minutes = (time.monotonic() - self._begin) / self._visits * (planned - self._visits) / 60
            left = f", {minutes:.0f} min to go" if minutes >= 1 else ", less than a minute to go"
        place = f"round {number} of {self._plan.rounds}, {self._visits + 1}/{planned}{left}"
        self._progress(f"{place}: {candidate.name}: {what}")


def rotated(candidates: Sequence[T], by: int) -> Sequence[T]:
    """The same in the same order, beginning elsewhere."""
    first = by % len(candidates)
    return [*candidates[first:], *candidates[:first]]
