"""Runs behind a NAT with a quirk: clients connect one after the other, and each must fare as is declared."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Sequence

from .checks import CheckResult, Verdict
from .checks.declared import NAME, Outcome, Talk, check_as_declared, traffic
from .checks.flows import End, LabError
from .lab import Lab
from .nat.passthrough_presets import PASSTHROUGH, PassThrough, Traffic
from .nat.profile import NatProfile, Pooling, Quirk
from .nat.quirk_check import check_quirk
from .nat.quirks import apply
from .node_kinds import Host, Nat
from .node_like import NodeLike
from .plans import Conversation, Tunnel
from .scenario import Scenario
from .settings import Protection
from .stacks.base import Daemons, StackError
from .tunnels import RESPONDER_SECONDS, UP_SECONDS

NOTE = "behind a NAT with a quirk each client is compared with what is declared of it; all other checks were left out"
IKE_TRIES = 3  # of each message there: given up after 3.5 s instead of 31.5 with the bundled implementation's 6
_POLL = 0.005  # seconds between questions; a stack says nothing unasked


def declared(scenario: Scenario) -> PassThrough | None:
    """What is declared of the NAT with a quirk that the initiators are behind; None where there is none."""
    profiles = [nat.profile for nat in scenario.nats_planned.values() if nat.profile.quirk is not None]
    return PASSTHROUGH.get(profiles[0].name) if profiles else None


def unsuitable(profile: NatProfile, protection: Protection) -> str:
    """Why a run behind a NAT of that profile cannot be judged, "" where it can."""
    if profile.addresses > 1 and profile.pooling is Pooling.ARBITRARY:
        # RFC 4787, REQ-2, is against it: IKE and ESP of one client may come from two addresses
        return (
            f"{profile.name} gives each flow any of {profile.addresses} outside addresses (pooling arbitrary), so no "
            "check can say beforehand whose packets are whose"
        )
    if profile.quirk is None:
        return ""
    if profile.name not in PASSTHROUGH:
        return f"nothing is declared of clients behind {profile.name}"
    if protection.mode != "tunnel" or protection.encapsulation == "never":
        return f"what becomes of clients behind {profile.name} is declared of tunnel mode, and of ESP in UDP, alone"
    return ""


def check_quirks(scenario: Scenario, lab: Lab) -> CheckResult | None:
    """See that each NAT with a quirk does what that says to the initiators on its own LAN; None where none has any."""
    result = None
    for nat in lab.nats:
        if nat.profile.quirk is None:
            continue
        lan = scenario.nats_planned[nat.name].lan.name
        tunnels = [one for one in scenario.tunnels() if scenario.hosts_planned[one.initiator].on == lan]
        if not tunnels:
            reason = f"{nat.name} has the quirk {nat.profile.quirk}, and no initiator on its LAN to see it"
            return CheckResult(name="NAT", verdict=Verdict.LAB_BROKEN, reason=reason)
        names = dict.fromkeys(tunnel.initiator for tunnel in tunnels)
        clients = [(lab[name], scenario.hosts_planned[name].address) for name in names]
        server = lab.host(tunnels[0].responder)
        result = check_quirk_of(nat, nat.profile.quirk, clients, server)
        if not result.passed:
            break
    return result


def check_quirk_of(nat: Nat, quirk: Quirk, clients: Sequence[tuple[NodeLike, str]], server: Host) -> CheckResult:
    """See that one NAT does to clients, nodes with their addresses, what the quirk says. It forgets all mappings."""
    forget = functools.partial(_forget, nat)
    return check_quirk(quirk, clients, server, server.address, nat.public_address, forget)


def _forget(nat: Nat) -> None:
    """End all mappings, and what the quirk has learned."""
    nat.run(["conntrack", "-F"])
    apply(nat, nat.profile, nat.wan, nat.lan)


def judge(
    known: PassThrough,
    lab: Lab,
    tunnels: list[Tunnel],
    conversations: list[Conversation],
    daemons: Daemons,
    evidence: pathlib.Path,
) -> CheckResult:
    """Connect one client after the other, send both ways through the tunnels that are up, and compare.

    What the implementation says is in the logs below `evidence`, in a folder of each host.
    """
    answers = {tunnel.name: _connect(tunnel, daemons) for tunnel in tunnels}
    up = {one.tunnel: one for one in reversed(conversations) if not answers[one.tunnel]}
    talks = {name: _talk(lab, one) for name, one in sorted(up.items(), key=lambda item: list(answers).index(item[0]))}
    try:
        ways = dict(zip(talks, traffic(list(talks.values())), strict=True))
    except LabError as error:
        return CheckResult(name=NAME, verdict=Verdict.LAB_BROKEN, reason=str(error))
    outcomes = [
        Outcome(
            client=tunnel.initiator,
            connected=tunnel.name in ways,
            traffic=ways.get(tunnel.name, Traffic.NONE),
            said="\n".join(
                (*(_log(evidence, host) for host in (tunnel.responder, tunnel.initiator)), answers[tunnel.name])
            ),
        )
        for tunnel in tunnels
    ]
    return check_as_declared(known.profile.name, list(known.of(len(tunnels))), outcomes)


def _connect(tunnel: Tunnel, daemons: Daemons) -> str:
    """Why a tunnel did not come up, "" where it did, at both ends."""
    try:
        daemons[tunnel.initiator].up(tunnel.name, UP_SECONDS)
        until = time.monotonic() + RESPONDER_SECONDS
        while tunnel.name not in {status.name for status in daemons[tunnel.responder].status()}:
            if time.monotonic() > until:
                return f"{tunnel.responder}: not up {RESPONDER_SECONDS:g} s after the initiator"
            time.sleep(_POLL)
    except StackError as error:
        return str(error)
    return ""


def _talk(lab: Lab, one: Conversation) -> Talk:
    return Talk(
        End(lab[one.client], one.client_address, one.client_seen),
        End(lab[one.server], one.server_address, one.server_seen),
    )


def _log(evidence: pathlib.Path, host: str) -> str:
    return "\n".join(file.read_text(errors="replace") for file in sorted((evidence / host).glob("*.log")))
