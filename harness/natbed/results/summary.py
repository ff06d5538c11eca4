"""What the checks found out about each client, gathered for the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from natbed.checks import CheckResult
from natbed.checks.discovery import TunnelView

from .record import ClientRecord, Throughput


def client_records(
    clients: Sequence[str],
    views: Mapping[str, TunnelView],
    connect_seconds: Mapping[str, float],
    checks: Sequence[CheckResult],
) -> list[ClientRecord]:
    """One row a client, None where nothing was measured."""
    details = {check.name: check.details for check in checks}
    flows = details.get("connectivity", {}).get("flows", [])
    return [
        _client(name, views.get(name), connect_seconds.get(name), flows, details.get(f"throughput {name}", {}))
        for name in clients
    ]


def _client(
    name: str, view: TunnelView | None, seconds: float | None, flows: list[dict[str, Any]], rates: dict[str, Any]
) -> ClientRecord:
    initiator = view.initiator if view else None
    responder = view.responder if view else None
    mine = [flow for flow in flows if name in flow["path"].split()]
    pings = [flow["loss_percent"] for flow in mine if flow["kind"] == "ping"]
    return ClientRecord(
        name=name,
        nat_seen_by_initiator=initiator.nat if initiator else None,
        nat_seen_by_responder=responder.nat if responder else None,
        mapped_port=responder.remote[1] if responder else None,
        encapsulation=initiator.encapsulation if initiator else "",
        connect_milliseconds=None if seconds is None else round(seconds * 1000, 1),
        ping_loss_percent=max(pings) if pings else None,
        tcp_both_ways=_all_passed(mine, "tcp"),
        udp_both_ways=_all_passed(mine, "udp"),
        throughput=_throughput(rates),
    )


def _all_passed(flows: list[dict[str, Any]], kind: str) -> bool | None:
    passed = [flow["passed"] for flow in flows if flow["kind"] == kind]
    return all(passed) if passed else None


def _throughput(details: dict[str, Any]) -> Throughput | None:
    if "tunnel" not in details:
        return None
    rates = {
        f"{path}_{way}": round(details[path][way]["megabits_per_second"], 1)
        for path in ("tunnel", "plain")
        for way in ("forward", "reverse")
    }
    return Throughput(**rates)
