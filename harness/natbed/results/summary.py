"""What the checks found out about each client, gathered for the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from natbed.checks import CheckResult
from natbed.checks.discovery import TunnelView
from natbed.plans import Conversation

from .record import ClientRecord, Throughput


def row_names(conversations: Sequence[Conversation]) -> list[str]:
    """What each conversation is called for people: its client, and its server too where a client has several."""
    count = Counter(one.client for one in conversations)
    return [one.client if count[one.client] == 1 else f"{one.client}-{one.server}" for one in conversations]


def client_records(
    conversations: Sequence[Conversation],
    views: Mapping[str, TunnelView],
    connect_seconds: Mapping[str, float],
    checks: Sequence[CheckResult],
) -> list[ClientRecord]:
    """One row a conversation, None where nothing was measured; views and seconds are those of tunnels."""
    details = {check.name: check.details for check in checks}
    flows = details.get("connectivity", {}).get("flows", [])
    return [
        _client(
            name,
            views.get(one.tunnel),
            connect_seconds.get(one.tunnel),
            [flow for flow in flows if {one.client, one.server} <= set(flow["path"].split())],
            details.get(f"throughput {name}", {}),
        )
        for name, one in zip(row_names(conversations), conversations, strict=True)
    ]


def _client(
    name: str, view: TunnelView | None, seconds: float | None, mine: list[dict[str, Any]], rates: dict[str, Any]
) -> ClientRecord:
    initiator = view.initiator if view else None
    responder = view.responder if view else None
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
