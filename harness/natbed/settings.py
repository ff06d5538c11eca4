"""From a scenario's tunnels to what each host's implementation is told."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from .plans import GatewayPlan, HostPlan, Tunnel
from .scenario import Scenario
from .stacks.base import Credentials, Forwards, HostSettings, Timing, TunnelSettings

MODES = ("tunnel", "transport")
EXCHANGES = ("main", "aggressive")
AUTHENTICATIONS = ("psk", "rsa")
ENCAPSULATIONS = ("auto", "always", "never")
REKEYS = ("none", "initiator", "responder", "both")
POOL = "10.200.0.0/24"  # of a responder whose peers' inner addresses may be the same
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
    """Settings by host. Every pair of hosts has a pre-shared key of its own; responders do not know where peers come
    from.

    `credentials`, by host, are those of certificates, for `protection.authentication` rsa.
    """
    tunnels: dict[str, list[TunnelSettings]] = {name: [] for name in scenario.hosts_planned}
    keys: dict[tuple[str, str], str] = {}
    for tunnel in scenario.tunnels():
        secret = keys.setdefault((tunnel.initiator, tunnel.responder), secrets.token_hex(16))
        initiator = scenario.hosts_planned[tunnel.initiator]
        responder = scenario.hosts_planned[tunnel.responder]
        here, there = scenario.networks(tunnel)
        tunnels[initiator.name].append(_side(tunnel, responder, responder.public, secret, here, there, protection))
        tunnels[responder.name].append(
            _side(tunnel, initiator, None, secret, there, here, protection, translate=tunnel.translate)
        )
    return {
        name: HostSettings(
            plan.address,
            identity(name),
            tuple(tunnels[name]),
            (credentials or {}).get(name),
            _forwards(plan, tunnels[name]),
            timing,
            POOL if any(tunnel.translate for tunnel in tunnels[name]) else None,
        )
        for name, plan in scenario.hosts_planned.items()
        if tunnels[name]
    }


def _forwards(plan: HostPlan, tunnels: list[TunnelSettings]) -> Forwards | None:
    """Of a gateway that translates: a source is mapped only after the route is chosen."""
    if not isinstance(plan, GatewayPlan) or (plan.protected == str(plan.lan.network) and plan.remote is None):
        return None
    return Forwards(plan.lan_interface, tuple(dict.fromkeys(tunnel.remote_network for tunnel in tunnels)))


def _side(
    tunnel: Tunnel,
    peer: HostPlan,
    peer_address: str | None,
    secret: str,
    local_network: str,
    remote_network: str,
    protection: Protection,
    *,
    translate: bool = False,
) -> TunnelSettings:
    return TunnelSettings(
        name=tunnel.name,
        peer_address=peer_address,
        peer_identity=identity(peer.name),
        secret=secret,
        local_network=local_network,
        remote_network=remote_network,
        ike_suite=protection.ike_suite,
        esp_suite=protection.esp_suite,
        pfs=protection.pfs,
        encapsulation=protection.encapsulation,
        mode=protection.mode,
        exchange=protection.exchange,
        authentication=protection.authentication,
        translate=translate and protection.mode == "tunnel",
    )
