"""What `espthrunat status` shows, as plain data."""

from __future__ import annotations

from typing import Any

from .ike.endpoint import Endpoint
from .messages import SaStats


def status(endpoint: Endpoint, failures: dict[str, str]) -> dict[str, Any]:
    """Connections, phase 1 SAs and the ESP SA pairs that traffic may be sent on.

    `failures` has the newest reason of each connection that is down.
    """
    children = endpoint.usable_children()
    sas = endpoint.ike_sas()
    up = {child.connection for child in children}
    connecting = {sa.connection.name for sa in sas if not sa.established}
    connecting |= {child.connection for child in endpoint.children()}
    return {
        "connections": [
            {
                "name": name,
                "state": "up" if name in up else "connecting" if name in connecting else "down",
                "remote": connection.remote or "any",
                "last_failure": failures.get(name, ""),
            }
            for name, connection in endpoint.connections.items()
        ],
        "ike_sas": [
            {
                "connection": sa.connection.name,
                "role": "initiator" if sa.initiator else "responder",
                "identity": sa.identity.text if sa.identity else "",
                "remote": sa.path.remote,
                "remote_port": sa.path.remote_port,
                "established": sa.established,
                "nat": sa.nat.value,
                "suite": sa.suite.name if sa.suite else "",
            }
            for sa in sas
        ],
        "sas": [
            {
                "connection": child.connection,
                "remote": child.path.remote,
                "remote_port": child.path.remote_port,
                "inbound_spi": f"0x{child.inbound_spi:08x}",
                "outbound_spi": f"0x{child.outbound_spi:08x}",
                "suite": child.suite.name,
                "encapsulation": child.encapsulation.value,
                "local_network": child.selector.local,
                "remote_network": child.selector.remote,
            }
            for child in children
        ],
    }


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
