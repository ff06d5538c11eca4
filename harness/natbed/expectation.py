"""What the public wires of a run may show: what must be there, not what the implementation says that it did."""

from __future__ import annotations

from .checks import PATTERN
from .checks.outer import WireExpectation
from .link import interface_name
from .paths import Mappings, initiator_seen, responder_seen, translated
from .plans import GatewayPlan, Tunnel
from .scenario import Scenario
from .settings import Protection


def public_segments(scenario: Scenario) -> dict[str, str]:
    """Node and interface of each wire that others may read: outside of NATs and gateways, and on the Internet."""
    segments = {name: nat.wan_interface for name, nat in scenario.nats_planned.items()}
    for tunnel in scenario.tunnels():
        for name in (tunnel.initiator, tunnel.responder):
            if isinstance(scenario.hosts_planned[name], GatewayPlan) or not scenario.routers_before(name):
                segments[name] = interface_name(name, 0)
    return segments


def wire_expectation(
    scenario: Scenario, segment: str, mappings: Mappings, protection: Protection
) -> WireExpectation | None:
    """Of a public segment once the tunnels are up; None where no tunnel passes.

    `mappings` are what the NATs' connection tracking knows by then.
    """
    passing = [tunnel for tunnel in scenario.tunnels() if segment in _way(scenario, tunnel)]
    if not passing:
        return None
    peers = {initiator_seen(scenario, tunnel, mappings, segment) for tunnel in passing}
    servers = list(dict.fromkeys(responder_seen(scenario, tunnel, segment) for tunnel in passing))
    in_udp = protection.encapsulation == "always" or any(translated(scenario, tunnel) for tunnel in passing)
    return WireExpectation(
        server=servers[0],
        more_servers=frozenset(servers[1:]),
        peers=frozenset(peer for peer in peers if peer),
        protected=tuple(scenario.networks(tunnel) for tunnel in passing),
        encapsulation="udp" if in_udp else "none",
        mode=protection.mode,
        pattern=PATTERN,
    )


def _way(scenario: Scenario, tunnel: Tunnel) -> set[str]:
    ends = (tunnel.initiator, tunnel.responder)
    return {*ends, *(nat.name for end in ends for nat in scenario.routers_before(end))}
