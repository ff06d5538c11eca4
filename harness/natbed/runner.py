"""One run of one scenario: network up, implementations started, tunnels up, checks, evidence, everything down."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import inspect
import pathlib
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pyroute2.netlink.exceptions import NetlinkError

from . import pki
from .capture import Capture, CaptureError
from .checks import CheckResult, Verdict
from .checks.connectivity import Pair, check_connectivity
from .checks.discovery import TunnelView, check_discovery
from .checks.rekey import RekeyTarget, check_rekey, confirm_on_the_wire, steps
from .checks.throughput import IperfError, IperfPath, PathRates, measure, measure_path
from .checks.transport import HostPair, check_transport
from .checks.wire import audit_wire
from .conntrack import ConntrackError, ConntrackEvents, Mapping, udp_mappings
from .expectation import wire_expectation
from .isolation import IsolationError
from .lab import Lab, LabError
from .link import LinkError
from .nat import presets
from .nat.profile import Kind, NatProfile
from .nat.rules import NatError
from .nat.selfcheck import check_translation
from .node import Host, NodeError
from .process import CommandFailed
from .results import store
from .results.record import ClientRecord, HostRecord, RunRecord
from .results.summary import client_records
from .scenario import Scenario, Tunnel
from .settings import Protection, host_settings, identity
from .stacks.base import Daemon, Stack, StackError, Timing, TunnelStatus
from .stacks.espthrunat import EspThruNat

UP_SECONDS = 40.0
RESPONDER_SECONDS = 5.0  # that a responder may be up later than its initiator
_POLL = 0.005  # seconds between questions; a stack says nothing unasked
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
    OSError,
)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What may be varied about a run."""

    clients: int = 2
    nat: NatProfile = presets.MASQUERADE
    protection: Protection = field(default_factory=Protection)
    seconds: int = 2  # of each iperf3 measurement; 0 leaves throughput out
    results: pathlib.Path = field(default_factory=store.default_folder)
    rekey: str = "none"  # who replaces SAs under traffic: initiator, responder, both
    timing: Timing = field(default_factory=Timing)


Progress = Callable[[str], None]


class Run:
    """The state of one run; `execute` takes it from nothing to a record and back to nothing."""

    def __init__(
        self, scenario: type[Scenario], options: RunOptions, progress: Progress, stack: Stack | None = None
    ) -> None:
        self.options = options
        self.stack = stack or EspThruNat()
        self.scenario = scenario(**_parameters(scenario, options))
        self.started = datetime.datetime.now().astimezone()
        self.folder = store.new_evidence(options.results, scenario.letter, self.started)
        self.lab = Lab(self.scenario)
        self.checks: list[CheckResult] = []
        self.hosts: list[HostRecord] = []
        self.connect_seconds: dict[str, float] = {}
        self.views: list[TunnelView] = []
        self.mappings: list[Mapping] = []
        self.plain_rates: dict[str, PathRates] = {}  # by tunnel, where they had to be measured beforehand
        self._progress = progress

    def execute(self) -> RunRecord:
        """Run it all. What goes wrong in the lab or the implementation ends as a verdict; an interrupt is raised."""
        begin = time.monotonic()
        try:
            self._progress("building the network")
            with self.lab:
                self._in_lab()
        except StackError as error:
            self._add(Verdict.FAILED, self.stack.name, str(error))
        except LAB_ERRORS as error:
            self._add(Verdict.LAB_BROKEN, "lab", str(error))
        record = self._record(time.monotonic() - begin)
        store.save(self.folder, record)
        return record

    def _in_lab(self) -> None:
        self._needs_something_to_judge()
        if not self._nats_prove_themselves():
            return
        if self._transport and not self._plain_throughput():
            return
        with contextlib.ExitStack() as stack:
            captures = stack.enter_context(self._watching())
            daemons = stack.enter_context(self.daemons())
            self._progress("bringing the tunnels up")
            self.connect(daemons)
            self._discover(daemons)
            self._progress("checking connectivity, all clients at once")
            self.checks.append(self._connectivity())
            self._rekey(daemons)
            for capture in captures:
                capture.stop()
            self._throughput()
            self._measure_hosts(daemons)
        self._progress("auditing the wire")
        self._audit(captures)

    # the parts, in their order

    def _needs_something_to_judge(self) -> None:
        if not (self.scenario.tunnels() and self.scenario.clients and self.scenario.servers):
            raise LabError("the scenario needs hosts called client... and server..., and a tunnel between them")

    def _nats_prove_themselves(self) -> bool:
        clients = [(self.lab[name], self.lab.host(name).address) for name in self.scenario.clients]
        server = self.lab.host(self.scenario.servers[0])
        translated = [nat.public_address for nat in self.lab.nats if nat.profile.kind is not Kind.NONE]
        result = check_translation(clients, server, server.address, translated[0] if translated else None)
        self.checks.append(result)
        return result.passed

    @contextlib.contextmanager
    def _watching(self) -> Iterator[list[Capture]]:
        """Captures on every NAT's public side, and its conntrack events; all are listening before the block begins."""
        with contextlib.ExitStack() as stack:
            captures = []
            for nat in self.lab.nats:
                stack.enter_context(ConntrackEvents(nat, self.folder / f"{nat.name}-conntrack.txt"))
                captures.append(stack.enter_context(Capture(nat, nat.wan, self.folder / f"{nat.name}-public.pcap")))
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
            self._progress("making certificates")
            names = dict.fromkeys(name for t in self.scenario.tunnels() for name in (t.initiator, t.responder))
            credentials = pki.issue(self.folder, {name: identity(name) for name in names})
        settings = host_settings(self.scenario, protection, self.options.timing, credentials)
        running: dict[str, Daemon] = {}
        self._progress(f"starting {self.stack.name} on {len(settings)} hosts")
        try:
            for name, host in settings.items():
                running[name] = self.stack.start(self.lab[name], host, self.folder / name)
            yield running
        except StackError as error:
            # one end may only have noticed that the other has died, which says why
            raise StackError("; ".join([str(error), *_stop(running)])) from error
        except BaseException:
            _stop(running)
            raise
        if problems := _stop(running):
            raise StackError("; ".join(problems))

    def connect(self, daemons: dict[str, Daemon]) -> None:
        """Bring all tunnels up at once. Raises StackError with the first reason why one does not come up."""
        tunnels = self.scenario.tunnels()
        with ThreadPoolExecutor(len(tunnels)) as pool:
            waiting = {t.name: pool.submit(daemons[t.initiator].up, t.name, UP_SECONDS) for t in tunnels}
        self.connect_seconds = {name: future.result() for name, future in waiting.items()}
        self._await_responders(daemons)

    def _await_responders(self, daemons: dict[str, Daemon]) -> None:
        """Wait until responders can send as well: an initiator is up with QM3 sent, they are with QM3 received."""
        until = time.monotonic() + RESPONDER_SECONDS
        missing = {(t.responder, t.name) for t in self.scenario.tunnels()}
        while missing:
            responders = {host for host, _ in missing}
            missing -= {(host, status.name) for host in responders for status in daemons[host].status()}
            if missing and time.monotonic() > until:
                listed = ", ".join(sorted(f"{name} on {host}" for host, name in missing))
                raise StackError(f"not up {RESPONDER_SECONDS:g} s after the initiator: {listed}")
            if missing:
                time.sleep(_POLL)

    def _discover(self, daemons: dict[str, Daemon]) -> None:
        statuses = {name: {s.name: s for s in daemon.status()} for name, daemon in daemons.items()}
        self.views = [self._view(tunnel, statuses) for tunnel in self.scenario.tunnels()]
        translating = [nat for nat in self.lab.nats if nat.profile.kind is not Kind.NONE]
        self.mappings = [mapping for nat in translating for mapping in udp_mappings(nat)]
        server = self.lab.host(self.scenario.servers[0]).address
        self.checks.append(check_discovery(self.views, self.mappings, server, nat=bool(translating)))

    def _view(self, tunnel: Tunnel, statuses: dict[str, dict[str, TunnelStatus]]) -> TunnelView:
        return TunnelView(
            client=tunnel.initiator,
            inside=self.lab.host(tunnel.initiator).address,
            initiator=statuses[tunnel.initiator].get(tunnel.name),
            responder=statuses[tunnel.responder].get(tunnel.name),
        )

    @property
    def _transport(self) -> bool:
        return self.options.protection.mode == "transport"

    def _ends(self, tunnel: Tunnel) -> tuple[Host, Host, str, str]:
        """Client and server, and the addresses that the tunnel's traffic carries: in transport mode their own."""
        client, server = self.lab.host(tunnel.initiator), self.lab.host(tunnel.responder)
        if self._transport:
            return client, server, client.address, server.address
        return client, server, _address(client.protected), _address(server.protected)

    def _connectivity(self) -> CheckResult:
        ends = [self._ends(tunnel) for tunnel in self.scenario.tunnels()]
        if not self._transport:
            return check_connectivity([Pair(*one) for one in ends])
        translated = [nat.public_address for nat in self.lab.nats if nat.profile.kind is not Kind.NONE]
        return check_transport([HostPair(*one, translated[0] if translated else one[2]) for one in ends])

    def _rekey(self, daemons: dict[str, Daemon]) -> None:
        if self.options.rekey == "none":
            return
        self._progress(f"rekeying under traffic: {self.options.rekey}")
        targets = [
            RekeyTarget(tunnel.name, *self._ends(tunnel), daemons[tunnel.initiator], daemons[tunnel.responder])
            for tunnel in self.scenario.tunnels()
        ]
        self.checks.append(check_rekey(targets, steps(self.options.rekey), one_flow=self._transport))

    def _plain_throughput(self) -> bool:
        """Measure the paths without IPsec while they can be: in transport mode the same addresses are protected."""
        for tunnel in self.scenario.tunnels() if self.options.seconds else []:
            self._progress(f"measuring throughput of {tunnel.initiator} without IPsec")
            try:
                rates = measure_path(IperfPath(*self._ends(tunnel)), duration=self.options.seconds)
            except IperfError as error:
                self._add(Verdict.LAB_BROKEN, f"throughput {tunnel.initiator}", f"plain path: {error}")
                return False
            self.plain_rates[tunnel.name] = rates
        return True

    def _throughput(self) -> None:
        if not self.options.seconds:
            return
        for tunnel in self.scenario.tunnels():
            client, server, *_ = ends = self._ends(tunnel)
            self._progress(f"measuring throughput of {client.name}: tunnel and plain, forward and reverse")
            through = IperfPath(*ends)
            plain = self.plain_rates.get(tunnel.name) or IperfPath(client, server, client.address, server.address)
            name = f"throughput {client.name}"
            self.checks.append(measure(through, plain, name=name, duration=self.options.seconds))

    def _measure_hosts(self, daemons: dict[str, Daemon]) -> None:
        for name, daemon in daemons.items():
            ready, memory = round(daemon.ready_seconds * 1000, 1), round(daemon.memory() / 1e6, 1)
            self.hosts.append(HostRecord(name=name, ready_milliseconds=ready, memory_megabytes=memory))

    def _audit(self, captures: list[Capture]) -> None:
        keys = [self.folder / name / "keys" for name in self.scenario.hosts_planned]
        spis: set[str] = set()
        for nat, capture in zip(self.lab.nats, captures, strict=True):
            expected = wire_expectation(self.scenario, self.lab, nat, self.mappings, self.options.protection)
            profile = self.folder / f"{nat.name}-wireshark"
            result = audit_wire(capture.path, keys, expected, profile=profile, summary=capture.summary)
            self.checks.append(result)
            spis.update(result.details.get("spis", []))
        if captures:
            self.checks = [confirm_on_the_wire(one, spis) if one.name == "rekey" else one for one in self.checks]

    # the record

    def _add(self, verdict: Verdict, name: str, reason: str) -> None:
        self.checks.append(CheckResult(name=name, verdict=verdict, reason=reason))

    def _clients(self) -> list[ClientRecord]:
        return client_records(
            [tunnel.initiator for tunnel in self.scenario.tunnels()],
            {view.client: view for view in self.views},
            {
                t.initiator: self.connect_seconds[t.name]
                for t in self.scenario.tunnels()
                if t.name in self.connect_seconds
            },
            self.checks,
        )

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
            evidence=sorted(str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file()),
            kernel=platform.release(),
            version=importlib.metadata.version("natbed"),
        )


def conclude(checks: list[CheckResult]) -> tuple[Verdict, str]:
    """The run's verdict: failed if anything failed, broken if the lab was, passed only if every check passed."""
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


def _stop(daemons: dict[str, Daemon]) -> list[str]:
    """Stop them, the last started first; what was wrong with each."""
    problems = []
    for daemon in reversed(daemons.values()):
        try:
            daemon.stop()
        except StackError as error:
            problems.append(str(error))
    return problems


def _address(network: str) -> str:
    return network.partition("/")[0]


def run_scenario(scenario: type[Scenario], argv: list[str]) -> int:
    """`python topologies/a.py`: the same as `natbed run A` with these arguments; returns the exit code."""
    from .cli import run_command

    return run_command(scenario.letter, argv)
