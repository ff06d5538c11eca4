"""One run of one scenario: network up, implementations started, tunnels up, checks, evidence, everything down."""

from __future__ import annotations

import contextlib
import dataclasses
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
from .checks.leaks import Snapshot, check_leaks
from .checks.rekey import RekeyTarget, check_rekey, confirm_on_the_wire, steps
from .checks.throughput import IperfError, IperfPath, PathRates, measure, measure_path
from .checks.transport import HostPair, check_transport
from .checks.wire import audit_wire, merge_segments
from .conntrack import ConntrackError, ConntrackEvents, Mapping, udp_mappings
from .expectation import public_segments, wire_expectation
from .isolation import IsolationError, isolated, runtime_directory
from .lab import Lab, LabError
from .link import LinkError
from .nat import presets
from .nat.profile import Kind, NatProfile
from .nat.rules import NatError
from .nat.selfcheck import check_probes
from .node import NodeError
from .paths import initiator_seen, responder_seen, translated
from .plans import Conversation
from .probes import probes
from .process import CommandFailed
from .results import store
from .results.record import ClientRecord, HostRecord, RunRecord
from .results.summary import client_records, row_names
from .scenario import Scenario, Tunnel
from .settings import Protection, host_settings, identity
from .stacks.base import Daemon, Stack, StackError, Timing, TunnelStatus
from .stacks.espthrunat import EspThruNat

UP_SECONDS = 40.0
RESPONDER_SECONDS = 5.0  # that a responder may be up later than its initiator
AUDITS_AT_ONCE = 2  # each a tshark, which takes a processor
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
        self.views: dict[str, TunnelView] = {}  # by tunnel
        self.mappings: dict[str, list[Mapping]] = {}  # by NAT
        self.plain_rates: dict[str, PathRates] = {}  # by row, where they had to be measured beforehand
        self._progress = progress

    def execute(self) -> RunRecord:
        """Run it all. What goes wrong in the lab or the implementation ends as a verdict; an interrupt is raised."""
        begin = time.monotonic()
        before = Snapshot.take(runtime_directory()) if isolated() else None
        try:
            self._progress("building the network")
            with self.lab:
                self._in_lab()
        except StackError as error:
            self._add(Verdict.FAILED, self.stack.name, str(error))
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
            for capture in captures.values():
                capture.stop()
            self._throughput()
            self._measure_hosts(daemons)
        self._progress("auditing the wire")
        self._audit(captures)

    # the parts, in their order

    def _needs_something_to_judge(self) -> None:
        if not (self.scenario.tunnels() and self.scenario.clients and self.scenario.servers):
            raise LabError("the scenario needs hosts called client... and server..., and a tunnel between them")
        mode = self.options.protection.mode
        if mode not in self.scenario.modes:
            reason = self.scenario.not_supported.get(mode, "it does not say why")
            raise LabError(f"scenario {self.scenario.letter} has no {mode} mode: {reason}")

    def _nats_prove_themselves(self) -> bool:
        result = check_probes(probes(self.scenario, self.lab))
        self.checks.append(result)
        return result.passed

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
        translating = [nat for nat in self.lab.nats if nat.profile.kind is not Kind.NONE]
        self.mappings = {nat.name: udp_mappings(nat) for nat in translating}
        self.views = {tunnel.name: self._view(tunnel, statuses) for tunnel in self.scenario.tunnels()}
        self.checks.append(check_discovery(list(self.views.values())))

    def _view(self, tunnel: Tunnel, statuses: dict[str, dict[str, TunnelStatus]]) -> TunnelView:
        return TunnelView(
            client=tunnel.initiator,
            inside=self.lab.host(tunnel.initiator).address,
            initiator=statuses[tunnel.initiator].get(tunnel.name),
            responder=statuses[tunnel.responder].get(tunnel.name),
            nat=translated(self.scenario, tunnel),
            seen=initiator_seen(self.scenario, tunnel, self.mappings),
            dialed=responder_seen(self.scenario, tunnel),
        )

    @property
    def _transport(self) -> bool:
        return self.options.protection.mode == "transport"

    def _conversations(self) -> list[Conversation]:
        return [self._as_mapped(one) for one in self.scenario.conversations(self.options.protection.mode)]

    def _as_mapped(self, one: Conversation) -> Conversation:
        """With the address by which the responder says that it knows the client, where it gave it one."""
        view = self.views.get(one.tunnel)
        mapped = view.responder.mapped_network if view and view.responder else ""
        return dataclasses.replace(one, client_seen=mapped.partition("/")[0]) if mapped else one

    def _connectivity(self) -> CheckResult:
        talk = [(one, self.lab[one.client], self.lab[one.server]) for one in self._conversations()]
        if not self._transport:
            return check_connectivity(
                [Pair(c, s, o.client_address, o.server_address, o.client_seen, o.server_seen) for o, c, s in talk]
            )
        return check_transport(
            [HostPair(c, s, o.client_address, o.server_address, o.client_seen, o.server_seen) for o, c, s in talk]
        )

    def _rekey(self, daemons: dict[str, Daemon]) -> None:
        if self.options.rekey == "none":
            return
        self._progress(f"rekeying under traffic: {self.options.rekey}")
        talk = {one.tunnel: one for one in reversed(self._conversations())}  # the first of each tunnel
        targets = [
            RekeyTarget(
                name=tunnel.name,
                client=self.lab[talk[tunnel.name].client],
                server=self.lab[talk[tunnel.name].server],
                client_address=talk[tunnel.name].client_address,
                server_address=talk[tunnel.name].server_address,
                initiator=daemons[tunnel.initiator],
                responder=daemons[tunnel.responder],
                client_seen=talk[tunnel.name].client_seen,
                server_seen=talk[tunnel.name].server_seen,
            )
            for tunnel in self.scenario.tunnels()
        ]
        self.checks.append(check_rekey(targets, steps(self.options.rekey), one_flow=self._transport))

    def _path(self, one: Conversation) -> IperfPath:
        client, server = self.lab[one.client], self.lab[one.server]
        return IperfPath(client, server, one.client_address, one.server_address, dialed=one.server_seen)

    def _plain_path(self, one: Conversation) -> IperfPath:
        """Without IPsec: between the ends of the tunnel, since what is behind them is not reached any other way."""
        tunnel = next(tunnel for tunnel in self.scenario.tunnels() if tunnel.name == one.tunnel)
        client, server = self.lab.host(tunnel.initiator), self.lab.host(tunnel.responder)
        dialed = self.scenario.hosts_planned[server.name].public
        return IperfPath(client, server, client.address, server.address, dialed=dialed)

    def _rows(self) -> list[tuple[str, Conversation]]:
        conversations = self._conversations()
        return list(zip(row_names(conversations), conversations, strict=True))

    def _plain_throughput(self) -> bool:
        """Measure the paths without IPsec while they can be: in transport mode the same addresses are protected."""
        for name, one in self._rows() if self.options.seconds else []:
            self._progress(f"measuring throughput of {name} without IPsec")
            try:
                self.plain_rates[name] = measure_path(self._path(one), duration=self.options.seconds)
            except IperfError as error:
                self._add(Verdict.LAB_BROKEN, f"throughput {name}", f"plain path: {error}")
                return False
        return True

    def _throughput(self) -> None:
        if not self.options.seconds:
            return
        for row, one in self._rows():
            self._progress(f"measuring throughput of {row}: tunnel and plain, forward and reverse")
            plain = self.plain_rates.get(row) or self._plain_path(one)
            name = f"throughput {row}"
            self.checks.append(measure(self._path(one), plain, name=name, duration=self.options.seconds))

    def _measure_hosts(self, daemons: dict[str, Daemon]) -> None:
        for name, daemon in daemons.items():
            ready, memory = round(daemon.ready_seconds * 1000, 1), round(daemon.memory() / 1e6, 1)
            self.hosts.append(HostRecord(name=name, ready_milliseconds=ready, memory_megabytes=memory))

    def _audit(self, captures: dict[str, Capture]) -> None:
        keys = [self.folder / name / "keys" for name in self.scenario.hosts_planned]

        def audit(segment: str) -> CheckResult | None:
            expected = wire_expectation(self.scenario, segment, self.mappings, self.options.protection)
            if expected is None:
                return None
            profile, capture = self.folder / f"{segment}-wireshark", captures[segment]
            return audit_wire(capture.path, keys, expected, profile=profile, summary=capture.summary)

        with ThreadPoolExecutor(AUDITS_AT_ONCE) as pool:
            found = {name: one for name, one in zip(captures, pool.map(audit, captures), strict=True) if one}
        if found:
            self.checks.append(merge_segments(found))
            spis = {spi for one in found.values() for spi in one.details.get("spis", [])}
            self.checks = [confirm_on_the_wire(one, spis) if one.name == "rekey" else one for one in self.checks]

    # the record

    def _add(self, verdict: Verdict, name: str, reason: str) -> None:
        self.checks.append(CheckResult(name=name, verdict=verdict, reason=reason))

    def _clients(self) -> list[ClientRecord]:
        if self.options.protection.mode not in self.scenario.modes:
            return []
        return client_records(self._conversations(), self.views, self.connect_seconds, self.checks)

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


def run_scenario(scenario: type[Scenario], argv: list[str]) -> int:
    """`python topologies/a.py`: the same as `natbed run A` with these arguments; returns the exit code."""
    from .cli import run_command

    return run_command(scenario.letter, argv)
