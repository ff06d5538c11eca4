"""What `espthrunat status` shows, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .ike.endpoint import Endpoint
from .ike.ike_sa import IkeSa
from .ike.sa_table import Pair
from .messages import SaStats

_PROTOCOLS = {0: "any", 1: "icmp", 6: "tcp", 17: "udp"}


def status(
    endpoint: Endpoint,
    failures: Mapping[str, str],
    notes: Mapping[str, str],
    plane: Mapping[str, int],
    now: float,
) -> dict[str, Any]:
    """Connections, phase 1 SAs, the ESP SA pairs that traffic may be sent on, and those that were replaced.

    `failures` has the newest reason of each connection that is down, `notes` what is odd about one.
    """
    pairs = endpoint.pairs()
    usable = [pair for pair in pairs if pair.usable]
    sas = endpoint.ike_sas()
    up = {pair.child.connection for pair in usable}
    connecting = {sa.connection.name for sa in sas if not sa.established}
    connecting |= {pair.child.connection for pair in pairs}
    return {
        "connections": [
            {
                "name": name,
                "state": "up" if name in up else "connecting" if name in connecting else "down",
                "remote": connection.remote or "any",
                "last_failure": failures.get(name, ""),
                "note": notes.get(name, ""),
            }
            for name, connection in endpoint.connections.items()
        ],
        "ike_sas": [_ike_sa(sa, endpoint.is_replaced(sa), now) for sa in sas],
        "sas": [_pair(pair, now) for pair in usable],
        "retired": [_pair(pair, now) for pair in pairs if pair.retired],
        "plane": dict(plane),
    }


def _ike_sa(sa: IkeSa, replaced: bool, now: float) -> dict[str, Any]:
    return {
        "connection": sa.connection.name,
        "role": "initiator" if sa.initiator else "responder",
        "identity": sa.identity.text if sa.identity else "",
        "remote": sa.path.remote,
        "remote_port": sa.path.remote_port,
        "established": sa.established,
        "replaced": replaced,
        "exchange": sa.connection.exchange.value,
        "authentication": sa.connection.authentication.value,
        "nat": sa.nat.value,
        "suite": sa.suite.name if sa.suite else "",
        "expires_in": _seconds(sa.expires - now),
    }


def _pair(pair: Pair, now: float) -> dict[str, Any]:
    child = pair.child
    return {
        "connection": child.connection,
        "mode": child.mode.value,
        "remote": child.path.remote,
        "remote_port": child.path.remote_port,
        "inbound_spi": f"0x{child.inbound_spi:08x}",
        "outbound_spi": f"0x{child.outbound_spi:08x}",
        "suite": child.suite.name,
        "encapsulation": child.encapsulation.value,
        "local_network": child.selector.local,
        "remote_network": child.selector.remote,
        "mapped_network": child.mapped,
        "traffic_protocol": _PROTOCOLS.get(child.selector.protocol, str(child.selector.protocol)),
        "traffic_local_port": child.selector.local_port,
        "traffic_remote_port": child.selector.remote_port,
        "age": _seconds(now - pair.since),
        "expires_in": _seconds(child.expires - now),
        "retired": pair.retired,
    }


def _seconds(value: float) -> float | None:
    return round(max(0.0, value), 1) if math.isfinite(value) else None


def sa_stats(stats: SaStats) -> dict[str, Any]:
    """One SA's counters."""
    return {
        "spi": f"0x{stats.spi:08x}",
        "direction": stats.direction.value,
        "remote": stats.path.remote,
        "remote_port": stats.path.remote_port,
        "suite": stats.suite,
        "packets": stats.packets,
        "octets": stats.octets,
        "dropped": stats.dropped,
    }
