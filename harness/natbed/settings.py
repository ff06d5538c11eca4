"""From a scenario's tunnels to what each host's implementation is told."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from .scenario import HostPlan, Scenario, Tunnel
from .stacks.base import Credentials, HostSettings, Timing, TunnelSettings

MODES = ("tunnel", "transport")
EXCHANGES = ("main", "aggressive")
AUTHENTICATIONS = ("psk", "rsa")
ENCAPSULATIONS = ("auto", "always", "never")
REKEYS = ("none", "initiator", "responder", "both")
DOMAIN = "natbed.example"  # RFC 2606: names that mean nothing outside


@dataclass(frozen=True, slots=True)
class Protection:
    """The suites and policies of a run, the same on all hosts."""

    ike_suite: str = "aes128-sha256-ecp256"
    esp_suite: str = "aes128gcm16"
    pfs: str = "ecp256"
    encapsulation: str = "auto"
    mode: str = "tunnel"
    exchange: str = "main"
    authentication: str = "psk"

    @property
    def phase1(self) -> str:
        """How phase 1 is made and proved, in short: main-psk."""
        return f"{self.exchange}-{self.authentication}"


def identity(host: str) -> str:
    """The name by which a host proves who it is: behind NATs an address would prove nothing (the draft, 4.1)."""
    return f"{host}.{DOMAIN}"


def host_settings(
    scenario: Scenario,
    protection: Protection,
    timing: Timing = Timing(),  # noqa: B008 - frozen
    credentials: Mapping[str, Credentials] | None = None,
) -> dict[str, HostSettings]:
    """Settings by host. Every tunnel gets a pre-shared key of its own; responders do not know where peers come from.

    `credentials`, by host, are those of certificates, for `protection.authentication` rsa.
    """
    tunnels: dict[str, list[TunnelSettings]] = {name: [] for name in scenario.hosts_planned}
    for tunnel in scenario.tunnels():
        secret = secrets.token_hex(16)
        initiator = scenario.hosts_planned[tunnel.initiator]
        responder = scenario.hosts_planned[tunnel.responder]
        tunnels[initiator.name].append(_side(tunnel, initiator, responder, responder.address, secret, protection))
        tunnels[responder.name].append(_side(tunnel, responder, initiator, None, secret, protection))
    return {
        name: HostSettings(plan.address, identity(name), tuple(tunnels[name]), (credentials or {}).get(name), timing)
        for name, plan in scenario.hosts_planned.items()
        if tunnels[name]
    }


def _side(
    tunnel: Tunnel, here: HostPlan, there: HostPlan, peer_address: str | None, secret: str, protection: Protection
) -> TunnelSettings:
    return TunnelSettings(
        name=tunnel.name,
        peer_address=peer_address,
        peer_identity=identity(there.name),
        secret=secret,
        local_network=here.protected,
        remote_network=there.protected,
        ike_suite=protection.ike_suite,
        esp_suite=protection.esp_suite,
        pfs=protection.pfs,
        encapsulation=protection.encapsulation,
        mode=protection.mode,
        exchange=protection.exchange,
        authentication=protection.authentication,
    )
