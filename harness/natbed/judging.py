"""Lets the checks look at a lab whose tunnels are up: whom each of them asks, where, and what must be found."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Mapping as MappingOf
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import msgspec

from .capture import Capture
from .checks import CheckResult, Verdict
from .checks.connectivity import Pair, check_connectivity
from .checks.discovery import TunnelView, check_discovery
from .checks.idle import IdleTunnel, check_forgotten, check_kept
from .checks.iperf import IperfError, IperfPath, PathRates, measure_path
from .checks.l2tp import check_l2tp
from .checks.rekey import check_rekey, steps
from .checks.sa_pairs import RekeyTarget
from .checks.throughput import UsualRatio, measure
from .checks.transport import HostPair, check_transport
from .checks.wire import audit_wire, merge_segments
from .conntrack import Mapping, udp_mappings
from .expectation import wire_expectation
from .faults.base import Fault, Scene
from .idling import NatsOfALab, forgets
from .impairing import judge_impaired
from .isolation import runtime_directory
from .lab import Lab
from .nat.behaviour import check_behaviour
from .nat.profile import Kind
from .nat.selfcheck import check_probes
from .passing_through import check_quirks
from .paths import initiator_seen, responder_seen, translated, translating
from .plans import Conversation, Tunnel
from .probes import probes, subjects
from .recovering import judge_recovery
from .results.summary import row_names
from .settings import Protection
from .stacks.base import Daemons, Timing, TunnelStatus
from .turns import alone

AUDITS_AT_ONCE = 2  # each a tshark, which takes a processor
Usual = Callable[[str], UsualRatio | str]  # by encapsulation; or why there is no usual ratio


class Judge:
    """Of one lab. What one check finds out, others need: views of the tunnels, mappings of the NATs, plain rates."""

    def __init__(
        self,
        lab: Lab,
        protection: Protection,
        seconds: int,
        usual: Usual = lambda _encapsulation: "",
        undisturbed: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """`seconds` is the length of each iperf3 measurement; 0 leaves throughput out.

        What seems slow is measured again inside `undisturbed()`.
        """
        self.views: dict[str, TunnelView] = {}  # by tunnel
        self._lab = lab
        self._scenario = lab.scenario
        self._protection = protection
        self._seconds = seconds
        self._usual = usual
        self._undisturbed = undisturbed
        self._mappings: dict[str, list[Mapping]] = {}  # by NAT
        self._plain_rates: dict[str, PathRates] = {}  # by row, where they had to be measured beforehand

    def nats(self) -> CheckResult:
        """Whether each NAT translates, filters and gives out ports as declared, and has its quirk."""
        found = check_probes(probes(self._scenario, self._lab))
        if not found.passed:
            return found
        behaviour = check_behaviour(subjects(self._scenario, self._lab))
        if not behaviour.passed:
            return msgspec.structs.replace(behaviour, name=found.name)
        details = {**found.details, **behaviour.details}
        quirks = check_quirks(self._scenario, self._lab)
        if quirks is None:
            return msgspec.structs.replace(found, details=details)
        reason = f"{found.reason}; {quirks.reason}" if quirks.passed else quirks.reason
        return CheckResult(name=found.name, verdict=quirks.verdict, reason=reason, details=details)

    def discovery(self, daemons: Daemons) -> CheckResult:
        """What both ends of each tunnel found out about the NATs between them."""
        statuses = {name: {s.name: s for s in daemon.status()} for name, daemon in daemons.items()}
        self._mappings = {nat.name: udp_mappings(nat) for nat in self._lab.nats if nat.profile.kind is not Kind.NONE}
        self.views = {tunnel.name: self._view(tunnel, statuses) for tunnel in self._scenario.tunnels()}
        return check_discovery(list(self.views.values()))

    def _view(self, tunnel: Tunnel, statuses: dict[str, dict[str, TunnelStatus]]) -> TunnelView:
        return TunnelView(
            client=tunnel.initiator,
            inside=self._lab.host(tunnel.initiator).address,
            initiator=statuses[tunnel.initiator].get(tunnel.name),
            responder=statuses[tunnel.responder].get(tunnel.name),
            nat=translated(self._scenario, tunnel),
            seen=initiator_seen(self._scenario, tunnel, self._mappings),
            dialed=responder_seen(self._scenario, tunnel),
        )

    def conversations(self) -> list[Conversation]:
        """Who talks to whom, by the addresses that discovery has found."""
        return self._conversations({name: view.responder for name, view in self.views.items() if view.responder})

    def _conversations(self, responders: MappingOf[str, TunnelStatus]) -> list[Conversation]:
        """With the addresses by which the responders say that they know their clients, where they gave them any."""
        known_as = {name: status.mapped_network.partition("/")[0] for name, status in responders.items()}
        return [
            dataclasses.replace(one, client_seen=known_as.get(one.tunnel) or one.client_seen)
            for one in self._scenario.conversations(self._protection.mode)
        ]

    @property
    def _transport(self) -> bool:
        return self._protection.mode == "transport"

    def connectivity(self) -> CheckResult:
        """All conversations at once."""
        if self._transport:
            return check_transport(self._host_pairs())
        talk = [(one, self._lab[one.client], self._lab[one.server]) for one in self.conversations()]
        return check_connectivity(
            [Pair(c, s, o.client_address, o.server_address, o.client_seen, o.server_seen) for o, c, s in talk]
        )

    def _host_pairs(self) -> list[HostPair]:
        talk = [(one, self._lab[one.client], self._lab[one.server]) for one in self.conversations()]
        return [
            HostPair(c, s, o.client_address, o.server_address, o.client_seen, o.server_seen, o.both_ways)
            for o, c, s in talk
        ]

    def l2tp(self, evidence: pathlib.Path) -> CheckResult:
        """Control connections of L2TP in all conversations at once; what its programs say goes to `evidence`."""
        return check_l2tp(self._host_pairs(), evidence, runtime_directory())

    def rekey(self, daemons: Daemons, side: str) -> CheckResult:
        """All tunnels at once, by `side`: initiator, responder or both."""
        return check_rekey(self._rekey_targets(daemons, self.conversations()), steps(side), one_flow=self._transport)

    def idle(self, daemons: Daemons) -> CheckResult:
        """All tunnels at once, while initiators send keepalives often enough."""
        tunnels = self._idle_tunnels(self._rekey_targets(daemons, self.conversations()))
        return check_kept(tunnels, NatsOfALab(self._lab), one_flow=self._transport)

    def idle_without_keepalives(self, daemons: Daemons) -> CheckResult:
        """All tunnels at once, made anew by initiators that send none."""
        tunnels = self._idle_tunnels(self._targets_now(daemons))
        return check_forgotten(tunnels, NatsOfALab(self._lab), one_flow=self._transport)

    def recovery(self, daemons: Daemons, fault: Fault, evidence: pathlib.Path, within: float) -> CheckResult:
        """Whether traffic comes back within so many seconds after the fault, in all tunnels."""
        targets, scene = self._targets_now(daemons), Scene(self._lab, daemons)
        return judge_recovery(scene, fault, targets, evidence, one_flow=self._transport, within=within)

    def impaired(self, daemons: Daemons, words: str, timing: Timing) -> CheckResult:
        """What the first tunnel is good for, begun anew with that timing while its way is impaired so."""

        def target() -> RekeyTarget:
            return self._targets_now(daemons)[0]

        return judge_impaired(self._lab, daemons, target, words, timing, one_flow=self._transport)

    def _targets_now(self, daemons: Daemons) -> list[RekeyTarget]:
        """With the addresses by which responders know their clients now, in tunnels that have been made anew."""
        statuses = {name: {s.name: s for s in daemon.status()} for name, daemon in daemons.items()}
        found = {tunnel.name: statuses[tunnel.responder].get(tunnel.name) for tunnel in self._scenario.tunnels()}
        responders = {name: status for name, status in found.items() if status}
        return self._rekey_targets(daemons, self._conversations(responders))

    def _idle_tunnels(self, targets: list[RekeyTarget]) -> list[IdleTunnel]:
        return [
            IdleTunnel(target, translating(self._scenario, tunnel), forgets(self._scenario, tunnel))
            for target, tunnel in zip(targets, self._scenario.tunnels(), strict=True)
        ]

    def _rekey_targets(self, daemons: Daemons, conversations: list[Conversation]) -> list[RekeyTarget]:
        talk = {one.tunnel: one for one in reversed(conversations)}  # the first of each tunnel
        return [
            RekeyTarget(
                name=tunnel.name,
                client=self._lab[talk[tunnel.name].client],
                server=self._lab[talk[tunnel.name].server],
                client_address=talk[tunnel.name].client_address,
                server_address=talk[tunnel.name].server_address,
                initiator=daemons[tunnel.initiator],
                responder=daemons[tunnel.responder],
                client_seen=talk[tunnel.name].client_seen,
                server_seen=talk[tunnel.name].server_seen,
            )
            for tunnel in self._scenario.tunnels()
        ]

    def rows(self) -> list[str]:
        """The names of what throughput is measured of, one a conversation; none where it is left out."""
        return row_names(self.conversations()) if self._seconds else []

    def _conversation(self, row: str) -> Conversation:
        conversations = self.conversations()
        return conversations[row_names(conversations).index(row)]

    def plain_throughput(self, row: str) -> CheckResult | None:
        """Measure a path without IPsec while it can be: in transport mode the same addresses are protected.

        Returns why that is not possible; what was measured is kept for `throughput`.
        """
        try:
            with alone():
                self._plain_rates[row] = measure_path(self.tunnel_path(row), duration=self._seconds)
        except IperfError as error:
            name, reason = f"throughput {row}", f"plain path: {error}"
            return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason=reason)
        return None

    def throughput(self, row: str) -> CheckResult:
        """Of the tunnel, beside that of the path without IPsec, and against what is usual."""
        return measure(
            self.tunnel_path(row),
            self._plain_rates.get(row) or self.plain_path(row),
            name=f"throughput {row}",
            duration=self._seconds,
            usual=self._usual(self.encapsulation(row)),
            alone=alone,
            undisturbed=self._undisturbed,
        )

    def encapsulation(self, row: str) -> str:
        """What the initiator said of a conversation's tunnel: udp or none; "" before `discovery`."""
        view = self.views.get(self._conversation(row).tunnel)
        return view.initiator.encapsulation if view and view.initiator else ""

    def tunnel_path(self, row: str) -> IperfPath:
        """Where a conversation goes through its tunnel."""
        one = self._conversation(row)
        client, server = self._lab[one.client], self._lab[one.server]
        return IperfPath(client, server, one.client_address, one.server_address, dialed=one.server_seen)

    def plain_path(self, row: str) -> IperfPath:
        """Without IPsec: between the ends of the tunnel, since what is behind them is not reached any other way."""
        one = self._conversation(row)
        tunnel = next(tunnel for tunnel in self._scenario.tunnels() if tunnel.name == one.tunnel)
        client, server = self._lab.host(tunnel.initiator), self._lab.host(tunnel.responder)
        dialed = self._scenario.hosts_planned[server.name].public
        return IperfPath(client, server, client.address, server.address, dialed=dialed)

    def wire(self, captures: MappingOf[str, Capture], folder: pathlib.Path) -> CheckResult | None:
        """Audit what was captured, by segment, with the keys below `folder`; None where no tunnel passes any of it."""
        keys = [folder / name / "keys" for name in self._scenario.hosts_planned]

        def audit(segment: str) -> CheckResult | None:
            expected = wire_expectation(self._scenario, segment, self._mappings, self._protection)
            if expected is None:
                return None
            profile, capture = folder / f"{segment}-wireshark", captures[segment]
            return audit_wire(capture.path, keys, expected, profile=profile, summary=capture.summary)

        with ThreadPoolExecutor(AUDITS_AT_ONCE) as pool:
            found = {name: one for name, one in zip(captures, pool.map(audit, captures), strict=True) if one}
        return merge_segments(found) if found else None
