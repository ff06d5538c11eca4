"""What the public wire of a run may show: what must be there, not what the implementation says that it did."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import PATTERN
from .checks.discovery import mapped_ports
from .checks.outer import WireExpectation
from .conntrack import Mapping
from .lab import Lab
from .nat.profile import Kind
from .node import Nat
from .scenario import Scenario
from .settings import Protection

_IKE_PORT = 500


def wire_expectation(
    scenario: Scenario, lab: Lab, nat: Nat, mappings: Sequence[Mapping], protection: Protection
) -> WireExpectation:
    """Of the public side of `nat`, once the tunnels are up and `mappings` are the NATs' connection tracking."""
    server = lab.host(scenario.servers[0])
    tunnels = scenario.tunnels()
    if nat.profile.kind is Kind.NONE:
        peers = {(lab.host(tunnel.initiator).address, _IKE_PORT) for tunnel in tunnels}
    else:
        peers = {(nat.public_address, port) for port in mapped_ports(mappings, server.address).values()}
    in_udp = protection.encapsulation == "always" or any(n.profile.kind is not Kind.NONE for n in lab.nats)
    return WireExpectation(
        server=(server.address, _IKE_PORT),
        peers=frozenset(peers),
        protected=tuple((lab.host(t.initiator).protected, lab.host(t.responder).protected) for t in tunnels),
        encapsulation="udp" if in_udp else "none",
        mode=protection.mode,
        pattern=PATTERN,
    )
