"""A tunnel's two ends as each point of its way sees them, by what the NATs' connection tracking says."""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from collections.abc import Sequence

from .conntrack import Mapping
from .nat.profile import Kind
from .plans import NatPlan, Tunnel
from .scenario import Scenario

IKE_PORT = 500

Endpoint = tuple[str, int]
Mappings = MappingOf[str, Sequence[Mapping]]  # by NAT


def initiator_seen(scenario: Scenario, tunnel: Tunnel, mappings: Mappings, outside_of: str = "") -> Endpoint | None:
    """The initiator's address and port outside of the NAT of that name, or of all; None where a NAT has no mapping.

    `outside_of` may be the initiator itself: on its own link.
    """
    seen = (scenario.hosts_planned[tunnel.initiator].address, IKE_PORT)
    if outside_of == tunnel.initiator:
        return seen
    remote = scenario.hosts_planned[tunnel.responder].public, IKE_PORT
    for nat in scenario.routers_before(tunnel.initiator):
        if nat.profile.kind is not Kind.NONE:
            found = [m.public for m in mappings.get(nat.name, ()) if m.inside == seen and m.remote == remote]
            if not found:
                return None
            seen = found[0]
        if nat.name == outside_of:
            break
    return seen


def responder_seen(scenario: Scenario, tunnel: Tunnel, outside_of: str = "") -> Endpoint:
    """The responder's address and port outside of the NAT of that name before it, or of all: what is dialed."""
    host = scenario.hosts_planned[tunnel.responder]
    routers = scenario.routers_before(tunnel.responder)
    if outside_of not in {nat.name for nat in routers}:
        return host.public, IKE_PORT
    seen = host.address
    for nat in routers:
        seen = outside(nat, seen)
        if nat.name == outside_of:
            break
    return seen, IKE_PORT


def on_the_way(scenario: Scenario, tunnel: Tunnel, mappings: Mappings) -> dict[str, Mapping]:
    """The tunnel's mapping in each NAT on its way that has one.

    A NAT knows the tunnel by what it is inside and what is dialed there, or, before the responder, who dials. Where a
    NAT has no mapping, those beyond it are asked for any that its outside could have.
    """
    host, peer = scenario.hosts_planned[tunnel.initiator], scenario.hosts_planned[tunnel.responder]
    found: dict[str, Mapping] = {}
    inside, seen = host.address, {IKE_PORT}
    for nat in scenario.nats_before(tunnel.initiator):
        ours = [
            one
            for one in mappings.get(nat.name, ())
            if one.inside[0] == inside and one.remote == (peer.public, IKE_PORT) and (not seen or one.inside[1] in seen)
        ]
        if ours:
            found[nat.name] = ours[0]
        inside, seen = outside(nat, inside), {one.public[1] for one in ours}
    inside = peer.address
    for nat in scenario.nats_before(tunnel.responder):
        for one in mappings.get(nat.name, ()):
            if (
                one.inside == (inside, IKE_PORT)
                and one.remote[0] == host.public
                and (not seen or one.remote[1] in seen)
            ):
                found.setdefault(nat.name, one)
        inside = outside(nat, inside)
    return found


def outside(nat: NatPlan, address: str) -> str:
    """What an inside address is outside of a NAT."""
    if nat.profile.kind is Kind.ONE_TO_ONE:
        return {inside: outside.partition("/")[0] for outside, inside in nat.static}[address]
    return nat.pooled(address) if nat.profile.kind is Kind.MASQUERADE else address


def translated(scenario: Scenario, tunnel: Tunnel) -> bool:
    """Whether a NAT is on the tunnel's way."""
    return bool(translating(scenario, tunnel))


def translating(scenario: Scenario, tunnel: Tunnel) -> tuple[str, ...]:
    """The NATs that translate on the tunnel's way."""
    return tuple(nat.name for end in (tunnel.initiator, tunnel.responder) for nat in scenario.nats_before(end))
