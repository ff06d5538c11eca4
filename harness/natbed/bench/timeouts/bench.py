"""The benchmark of timeouts, part by part. A new part is a function here, its fields in the record, and a section."""

from __future__ import annotations

import datetime
import pathlib
import time
from collections.abc import Callable, Iterator

import msgspec

from natbed.bench.machine import this_machine
from natbed.checks import Verdict
from natbed.judging import Judge
from natbed.lab import Lab, LabError
from natbed.nat import presets
from natbed.runner import LAB_ERRORS
from natbed.settings import Protection
from natbed.stacks.base import Stack, StackError

from . import survival
from .cliff import Cliff
from .costs import METHODS, keepalive_cost
from .lifetime import STATES, UNREPLIED, Subject, measure_lifetimes
from .lifetime import WIDTH as PROBES
from .network import NatsSideBySide
from .options import Plan
from .record import (
    Between,
    KeepaliveCost,
    KeepalivesSeen,
    Lifetime,
    Overhead,
    Survival,
    TimeoutsRecord,
    Trouble,
    conclude,
)
from .recovery import RecoveryBench
from .sections import seconds
from .wire_costs import measure_costs

NAME = "bench-timeouts"  # of the folder of evidence
LIMIT = 1.25  # of the longest timeout: how long anything is looked at
LIFETIME_RESOLUTION, LIFETIME_TOLERANCE = 0.1, 0.5  # seconds, real
STRIKES = 3  # of each fault, for each policy and sender
SURVIVAL_RESOLUTION, SURVIVAL_TOLERANCE = 0.7, 1.0


class TimeoutsBench:
    """A benchmark on its way: `run` measures, `record` says what there is until now."""

    def __init__(self, plan: Plan, stack: Stack, folder: pathlib.Path, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._stack = stack
        self._folder = folder
        self._progress = progress
        self._started = datetime.datetime.now().astimezone()
        self._begin = time.monotonic()
        self._machine = this_machine()
        self._lifetimes: list[Lifetime] = []
        self._survival: list[Survival] = []
        self._survival_bench = survival.SurvivalBench(plan.pace, stack, folder, progress)
        self._costs: list[KeepaliveCost] = []
        self._keepalives: list[KeepalivesSeen] = []
        self._overheads: list[Overhead] = []
        self._recovery: RecoveryBench | None = None
        self._done: list[str] = []
        self._troubles: list[Trouble] = []

    def run(self) -> Iterator[TimeoutsRecord]:
        """Measure, and yield the record after each part. A broken lab ends it early; the record says why."""
        for part in self._plan.parts:
            try:
                PARTS[part](self)
            except LAB_ERRORS as error:
                self._blame(part, Verdict.LAB_BROKEN, str(error))
                yield self.record()
                return
            except (StackError, survival.SurvivalError) as error:
                self._blame(part, Verdict.FAILED, str(error))
            self._done.append(part)
            yield self.record()
            if any(trouble.verdict is Verdict.LAB_BROKEN for trouble in self._troubles):
                return

    def record(self) -> TimeoutsRecord:
        """Everything measured until now."""
        plan = self._plan
        verdict, reason = conclude(plan.parts, self._done, self._troubles)
        return TimeoutsRecord(
            started=self._started.isoformat(timespec="milliseconds"),
            took=round(time.monotonic() - self._begin, 3),
            speed=plan.pace.speed,
            timeouts=[plan.pace.model(one) for one in plan.real],
            rounded={f"{asked:g}": had for asked, had in plan.pace.rounded(plan.timeouts).items()},
            parts=list(plan.parts),
            machine=self._machine,
            lifetimes=self._lifetimes,
            survival=self._survival,
            trials=self._survival_bench.trials,
            costs=self._costs,
            keepalives=self._keepalives,
            overheads=self._overheads,
            recovery=self._recovery.recovery() if self._recovery else None,
            troubles=self._troubles,
            verdict=verdict,
            reason=reason,
        )

    @property
    def _limit(self) -> float:
        """Real seconds."""
        return max(self._plan.real) * LIMIT

    def _blame(self, part: str, verdict: Verdict, reason: str) -> None:
        self._troubles.append(Trouble(part=part, verdict=verdict, reason=reason))

    def _between(self, cliff: Cliff) -> Between:
        model = self._plan.pace.model
        return Between(low=model(cliff.low), high=None if cliff.high is None else model(cliff.high))

    def _off(self, cliff: Cliff, timeout: float, tolerance: float) -> str:
        """How a cliff differs from the real timeout by more than is tolerated, "" where it does not."""
        if cliff.high is not None and cliff.low >= timeout - tolerance and cliff.high <= timeout + tolerance:
            return ""
        found, speed = self._between(cliff), self._plan.pace.speed
        if found.high is None:
            return f"held for all of {seconds(found.low, speed)} s"
        return f"held for {seconds(found.low, speed)} s and was lost after {seconds(found.high, speed)} s"

    # the parts

    def measure_lifetimes(self) -> None:
        """Each timeout in both states: in one NAT as that of unreplied mappings, in another as that of replied ones."""
        timeouts = self._plan.real
        pairs = list(zip(timeouts, reversed(timeouts), strict=True))  # unlike ones: neither may pass for the other
        profiles = [
            msgspec.structs.replace(presets.MASQUERADE, udp_timeout=first, udp_timeout_stream=then)
            for first, then in pairs
        ]
        scenario = NatsSideBySide(nats=profiles, clients=[1] * len(profiles))
        with Lab(scenario) as lab:
            nats = Judge(lab, Protection(), 0).nats()
            if not nats.passed:
                raise LabError(f"NAT: {nats.reason}")
            subjects = []
            for client in scenario.clients:
                host = lab.host(client)
                for state in STATES:
                    cliff = Cliff(self._limit, LIFETIME_RESOLUTION, PROBES)
                    subjects.append(Subject(scenario.nat_of(client), state, host, host.address, cliff))
            measure_lifetimes(lab, subjects, self._progress)
            configured = {nat.name: nat.profile for nat in lab.nats}
        for subject in sorted(subjects, key=lambda one: STATES.index(one.state)):
            profile = configured[subject.nat]
            timeout = profile.udp_timeout if subject.state == UNREPLIED else profile.udp_timeout_stream
            self._lifetimes.append(
                Lifetime(
                    state=subject.state,
                    configured=self._plan.pace.model(timeout),
                    cliff=self._between(subject.cliff),
                    probes=subject.probes,
                )
            )
            if off := self._off(subject.cliff, timeout, LIFETIME_TOLERANCE):
                where = f"{subject.state} mappings, configured {self._plan.pace.model(timeout):g} s"
                self._blame("lifetime", Verdict.LAB_BROKEN, f"{where}: {off}")
        self._lifetimes.sort(key=lambda one: (STATES.index(one.state), one.configured))

    def measure_survival(self) -> None:
        """The silence that tunnels survive, without keepalives and between them."""
        timeouts = self._plan.real
        resolution = min(SURVIVAL_RESOLUTION, min(timeouts) / 4)
        fronts = survival.fronts(timeouts, self._limit, resolution)
        self._survival_bench.find(fronts)
        for front in fronts:
            timeout = self._plan.pace.model(front.timeout)
            self._survival.append(
                Survival(kind=front.kind, timeout=timeout, cliff=self._between(front.cliff), trials=front.trials)
            )
            if off := self._off(front.cliff, front.timeout, SURVIVAL_TOLERANCE):
                self._blame("survival", Verdict.FAILED, f"{front.kind}, the NAT forgets after {timeout:g} s: {off}")

    def measure_costs(self) -> None:
        """What keepalives cost by the method of NAT traversal, and what was counted of this implementation's."""
        self._costs = [keepalive_cost(method, self._plan.keepalive) for method in METHODS]
        self._keepalives, self._overheads = measure_costs(self._plan.pace, self._stack, self._folder, self._progress)

    def measure_recovery(self) -> None:
        """How long traffic stays away after faults. What does not come back in time is a figure too, no failure."""
        self._recovery = RecoveryBench(self._plan.pace, self._stack, self._folder, self._progress)
        self._recovery.measure(STRIKES)


PARTS: dict[str, Callable[[TimeoutsBench], None]] = {
    "lifetime": TimeoutsBench.measure_lifetimes,
    "survival": TimeoutsBench.measure_survival,
    "costs": TimeoutsBench.measure_costs,
    "recovery": TimeoutsBench.measure_recovery,
}
"""By name, in the order in which they are measured."""
