"""One run of one scenario: network up, implementations started, tunnels up, checks, evidence, everything down."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import inspect
import platform
import time
from collections.abc import Callable, Iterator

from pyroute2.netlink.exceptions import NetlinkError

from .capture import Capture, CaptureError
from .checks import CheckResult, Verdict, l2tp
from .checks.idle import KEPT_NAME
from .checks.leaks import Snapshot, check_leaks
from .checks.rekey import confirm_on_the_wire
from .checks.throughput import UsualRatio
from .conntrack import ConntrackError, ConntrackEvents
from .expectation import public_segments
from .faults.base import Fault, FaultError
from .faults.names import parse
from .faults.timeline import Timeline
from .impairments.base import ImpairmentError
from .isolation import IsolationError, isolated, runtime_directory
from .judging import Judge
from .lab import Lab, LabError
from .link import LinkError
from .machine_kind import machine_kind
from .nat.rules import NatError
from .nfqueue import QueueError
from .node import NodeError
from .passing_through import NOTE, declared, judge, unsuitable
from .process import CommandFailed
from .results import baseline, store
from .results.record import ClientRecord, HostRecord, RunRecord
from .results.summary import client_records
from .run_options import RunOptions
from .scenario import Scenario
from .settings import host_settings, identity
from .stacks.base import Daemon, Stack, StackError
from .stacks.espthrunat import EspThruNat
from .tunnels import EndedBadlyError, begin_all, connect, end_all, running, start_anew
from .turns import Turn

__all__ = [
    "LAB_ERRORS",
    "NAT_AGAIN",
    "Run",
    "RunOptions",
    "conclude",
    "planned_fault",
    "planned_scenario",
    "run_scenario",
]

NAT_AGAIN = "NAT, once more"  # the check of NATs that were good, where something has failed behind them since
# An OSError is the lab's: a program that is not there, a route that is refused. A stack reports its own as StackError.
LAB_ERRORS = (
    LabError,
    LinkError,
    NodeError,
    NatError,
    NetlinkError,
    CommandFailed,
    IsolationError,
    CaptureError,
    ConntrackError,
    FaultError,
    ImpairmentError,
    QueueError,
    OSError,
)


Progress = Callable[[str], None]


class Run:
    """The state of one run; `execute` takes it from nothing to a record and back to nothing."""

    def __init__(
        self, scenario: type[Scenario], options: RunOptions, progress: Progress, stack: Stack | None = None
    ) -> None:
        self.fault = planned_fault(scenario, options)
        self.options = options if self.fault is None or options.anew else options.before_a_fault()
        self.stack = stack or EspThruNat()
        self.scenario = planned_scenario(scenario, options)
        if declared(self.scenario) is not None:
            self.options = self.options.behind_a_quirk()
        self.started = datetime.datetime.now().astimezone()
        self.folder = store.new_evidence(options.results, scenario.letter, self.started)
        self.lab = self.make_lab()
        self.turn = Turn(lambda: progress("waiting for another run, which measures speed undisturbed"))
        self.judge = Judge(self.lab, options.protection, options.seconds, self._usual_ratio, self.turn.undisturbed)
        self._baseline = baseline.load(options.baseline) if options.seconds and options.baseline else None
        self.checks: list[CheckResult] = []
        self.notes: list[str] = []
        if options.idles and not self.options.idles:
            self.notes.append("the tunnels were not left idle, since a fault was to come")
        self.hosts: list[HostRecord] = []
        self.connect_seconds: dict[str, float] = {}
        self._ended_well = False  # the implementation, on all hosts
        self._struck = False  # a fault, on purpose
        self._progress = progress

    def make_lab(self) -> Lab:
        """The lab of the scenario, not up yet."""
        return Lab(self.scenario)

    def execute(self) -> RunRecord:
        """Run it all. What goes wrong in the lab or the implementation ends as a verdict; an interrupt is raised."""
        with self.turn:
            return self._execute()

    def _execute(self) -> RunRecord:
        begin = time.monotonic()
        before = Snapshot.take(runtime_directory()) if isolated() else None
        try:
            self._progress("building the network")
            with self.lab:
                try:
                    self._in_lab()
                except StackError as error:
                    self._add(Verdict.FAILED, self.stack.name, str(error))
                self._doubt_the_lab()
        except LAB_ERRORS as error:
            self._add(Verdict.LAB_BROKEN, "lab", str(error))
        if before is not None:
            leaks = check_leaks(before, runtime_directory(), self.folder.rglob("*.log"))
            self.checks += [] if leaks.passed else [leaks]
        record = self._record(time.monotonic() - begin)
        store.save(self.folder, record)
        return record

    def _in_lab(self) -> None:
        self._needs_something_to_judge()
        self.checks.append(nats := self.judge.nats())
        if not nats.passed or (self.options.protection.mode == "transport" and not self._plain_throughput()):
            return
        with contextlib.ExitStack() as stack:
            captures = stack.enter_context(self._watching())
            daemons = stack.enter_context(self.daemons())
            if (known := declared(self.scenario)) is not None:
                self._progress("bringing the tunnels up, one after the other")
                conversations = self.judge.conversations()
                self.checks.append(judge(known, self.lab, self.scenario.tunnels(), conversations, daemons, self.folder))
                self.notes.append(NOTE)
                return
            self._progress("bringing the tunnels up")
            self.connect(daemons)
            self.checks.append(self.judge.discovery(daemons))
            self._progress("checking connectivity, all clients at once")
            self.checks.append(self.judge.connectivity())
            if self.options.protection.mode == "transport" and "l2tp" in self.scenario.carries:
                self._carry_l2tp()
            if self.options.idles:
                self._progress("leaving the tunnels idle, held by keepalives")
                # before the other rekeys: what these replace is deleted seconds later, which is no idleness
                self.checks.append(self.judge.idle(daemons))
            if self.options.rekey != "none":
                self._progress(f"rekeying under traffic: {self.options.rekey}")
                self.checks.append(self.judge.rekey(daemons, self.options.rekey))
            for capture in captures.values():
                capture.stop()
            for row in self.judge.rows():
                self._progress(f"measuring throughput of {row}: tunnel and plain, forward and reverse")
                self.checks.append(self.judge.throughput(row))
            self._measure_hosts(daemons)
            if self.options.idles:
                self._progress("leaving the tunnels idle, without keepalives")
                silent = dataclasses.replace(self.options.usual_timing, keepalive=0, dpd=0)
                start_anew(self.scenario.tunnels(), daemons, silent)
                self.checks.append(self.judge.idle_without_keepalives(daemons))
            if self.options.impairment:
                self._progress(f"beginning anew under impairment: {self.options.impairment}")
                timing = self.options.timing_anew
                self.checks.append(self.judge.impaired(daemons, self.options.impairment, timing))
            if self.fault is not None:
                if self.options.anew:
                    end_all(self.scenario.tunnels(), daemons)
                    begin_all(self.scenario.tunnels(), daemons, self.options.timing_anew)
                self._progress(f"under traffic: {self.options.fault or 'the scenario has a timeline'}")
                self._struck = True
                self.checks.append(self.judge.recovery(daemons, self.fault, self.folder, self.options.within))
        self._progress("auditing the wire")
        self._audit(captures)

    def _doubt_the_lab(self) -> None:
        """Where something failed, let the NATs prove themselves again: one that has changed may be what failed.

        Not where the implementation did not end in order: then it is the hosts that may not be as they were. Nor after
        a fault, which has changed the lab on purpose, and has proved itself.
        """
        if self._struck:
            return
        failed = [check.name for check in self.checks if check.verdict is Verdict.FAILED]
        if failed and self._ended_well and not (again := self.judge.nats()).passed:
            reason = f"{again.reason}; it was right at the beginning, so this says nothing: {', '.join(failed)}"
            self._add(Verdict.LAB_BROKEN, NAT_AGAIN, reason)

    def _usual_ratio(self, encapsulation: str) -> UsualRatio | str:
        if self._baseline is None:
            return "not compared with a baseline"
        protection = self.options.protection
        case = baseline.Case(
            stack=self.stack.name,
            scenario=self.scenario.letter,
            mode=protection.mode,
            esp=protection.esp_suite,
            encapsulation=encapsulation,
        )
        return self._baseline.usual(machine_kind(), case)

    # the parts, in their order

    def _needs_something_to_judge(self) -> None:
        if not (self.scenario.tunnels() and self.scenario.clients and self.scenario.servers):
            raise LabError("the scenario needs hosts called client... and server..., and a tunnel between them")
        mode = self.options.protection.mode
        if mode not in self.scenario.modes:
            reason = self.scenario.not_supported.get(mode, "it does not say why")
            raise LabError(f"scenario {self.scenario.letter} has no {mode} mode: {reason}")
        for nat in self.scenario.nats_planned.values():
            if reason := unsuitable(nat.profile, self.options.protection):
                raise LabError(reason)

    def _plain_throughput(self) -> bool:
        for row in self.judge.rows():
            self._progress(f"measuring throughput of {row} without IPsec")
            if (problem := self.judge.plain_throughput(row)) is not None:
                self.checks.append(problem)
                return False
        return True

    @contextlib.contextmanager
    def _watching(self) -> Iterator[dict[str, Capture]]:
        """Captures on every public segment, and the NATs' conntrack events; all listen before the block begins."""
        with contextlib.ExitStack() as stack:
            captures = {}
            for nat in self.lab.nats:
                stack.enter_context(ConntrackEvents(nat, self.folder / f"{nat.name}-conntrack.txt"))
            for name, interface in public_segments(self.scenario).items():
                file = self.folder / f"{name}-public.pcap"
                captures[name] = stack.enter_context(Capture(self.lab[name], interface, file))
            yield captures
            for nat in self.lab.nats:
                # insert_failed: the NAT dropped the first packet of a client that met another's, both from port 500
                (self.folder / f"{nat.name}-conntrack-counters.txt").write_text(nat.run(["conntrack", "-S"]).stdout)

    @contextlib.contextmanager
    def daemons(self) -> Iterator[dict[str, Daemon]]:
        """The implementation on every host with a tunnel; stopped in order at the end, which is checked too."""
        protection = self.options.protection
        credentials = None
        if protection.authentication == "rsa":
            from . import pki  # which takes a tenth of a second to load, and has no other use

            self._progress("making certificates")
            names = dict.fromkeys(name for t in self.scenario.tunnels() for name in (t.initiator, t.responder))
            credentials = pki.issue(self.folder, {name: identity(name) for name in names})
        settings = host_settings(self.scenario, protection, self.options.usual_timing, credentials)
        self._progress(f"starting {self.stack.name} on {len(settings)} hosts")
        started = False
        try:
            with running(self.stack, self.lab, settings, self.folder) as daemons:
                started = True
                yield daemons
        except EndedBadlyError:
            raise
        except StackError:
            self._ended_well = started
            raise
        self._ended_well = True

    def connect(self, daemons: dict[str, Daemon]) -> None:
        """Bring all tunnels up at once. Raises StackError with the first reason why one does not come up."""
        self.connect_seconds = connect(self.scenario.tunnels(), daemons)

    def _carry_l2tp(self) -> None:
        if reason := l2tp.missing():
            self.notes.append(f"L2TP was left out: {reason}")
            return
        self._progress("making L2TP control connections, all clients at once")
        self.checks.append(self.judge.l2tp(self.folder))

    def _measure_hosts(self, daemons: dict[str, Daemon]) -> None:
        for name, daemon in daemons.items():
            ready, memory = round(daemon.ready_seconds * 1000, 1), round(daemon.memory() / 1e6, 1)
            self.hosts.append(HostRecord(name=name, ready_milliseconds=ready, memory_megabytes=memory))

    def _audit(self, captures: dict[str, Capture]) -> None:
        if (wire := self.judge.wire(captures, self.folder)) is not None:
            self.checks.append(wire)
            spis = wire.details.get("spis", [])
            self.checks = [
                confirm_on_the_wire(one, spis) if one.name in ("rekey", KEPT_NAME) else one for one in self.checks
            ]

    # the record

    def _add(self, verdict: Verdict, name: str, reason: str) -> None:
        self.checks.append(CheckResult(name=name, verdict=verdict, reason=reason))

    def _clients(self) -> list[ClientRecord]:
        if self.options.protection.mode not in self.scenario.modes:
            return []
        return client_records(self.judge.conversations(), self.judge.views, self.connect_seconds, self.checks)

    def _record(self, seconds: float) -> RunRecord:
        verdict, reason = conclude(self.checks)
        return RunRecord(
            scenario=self.scenario.letter,
            title=self.scenario.title,
            started=self.started.isoformat(timespec="milliseconds"),
            nat=", ".join(sorted({nat.profile.name for nat in self.scenario.nats_planned.values()})),
            stack=self.stack.name,
            mode=self.options.protection.mode,
            phase1=self.options.protection.phase1,
            verdict=verdict,
            reason=reason,
            seconds=round(seconds, 3),
            build_milliseconds=round(self.lab.build_seconds * 1000, 1),
            teardown_milliseconds=round(self.lab.teardown_seconds * 1000, 1),
            clients=self._clients(),
            hosts=self.hosts,
            checks=self.checks,
            notes=self.notes,
            evidence=sorted(str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file()),
            hostname=platform.node(),
            kernel=platform.release(),
            version=importlib.metadata.version("natbed"),
        )


def planned_scenario(scenario: type[Scenario], options: RunOptions) -> Scenario:
    """The scenario as a run with these options has it."""
    return scenario(**_parameters(scenario, options))


def planned_fault(scenario: type[Scenario], options: RunOptions) -> Fault | None:
    """The fault of a run with these options, or the scenario's timeline, if there is any. Raises `FaultNameError`."""
    if options.fault:
        return parse(options.fault, planned_scenario(scenario, options))
    return Timeline(tuple(scenario.timeline)) if scenario.timeline else None


def conclude(checks: list[CheckResult]) -> tuple[Verdict, str]:
    """The run's verdict: failed if anything failed, broken if the lab was, passed only if every check passed.

    What failed behind a NAT that was no longer what it had been counts against nobody.
    """
    for check in checks:
        if check.name == NAT_AGAIN:
            return check.verdict, f"{check.name}: {check.reason}"
    for verdict in (Verdict.FAILED, Verdict.LAB_BROKEN):
        for check in checks:
            if check.verdict is verdict:
                return verdict, f"{check.name}: {check.reason}"
    if not checks:
        return Verdict.LAB_BROKEN, "nothing was checked"
    return Verdict.PASSED, "all checks passed"


def _parameters(scenario: type[Scenario], options: RunOptions) -> dict[str, object]:
    """Those of a run's axes that the scenario's `build` has."""
    axes = {"clients": options.clients, "nat": options.nat}
    return {name: axes[name] for name in inspect.signature(scenario.build).parameters if name in axes}


def run_scenario(scenario: type[Scenario], argv: list[str]) -> int:
    """`python topologies/a.py`: the same as `natbed run A` with these arguments; returns the exit code."""
    from .cli import run_command

    return run_command(scenario.letter, argv)
