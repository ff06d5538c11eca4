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


def outside(nat: NatPlan, address: str) -> str:
    """What an inside address is outside of a NAT."""
    if nat.profile.kind is Kind.ONE_TO_ONE:
        return {inside: outside.partition("/")[0] for outside, inside in nat.static}[address]
    return nat.public_address if nat.profile.kind is Kind.MASQUERADE else address


def translated(scenario: Scenario, tunnel: Tunnel) -> bool:
    """Whether a NAT is on the tunnel's way."""
    return bool(scenario.nats_before(tunnel.initiator) or scenario.nats_before(tunnel.responder))
