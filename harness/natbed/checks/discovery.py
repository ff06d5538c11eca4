"""NAT discovery, seen from three sides: both ends' own words and the NAT's connection tracking."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from natbed.conntrack import Mapping
from natbed.stacks.base import TunnelStatus

from . import CheckResult, Verdict

IKE_PORT = 500


class TunnelView(msgspec.Struct, frozen=True, kw_only=True):
    """One tunnel as its two ends describe it, and the client's address inside the NAT."""

    client: str
    inside: str
    initiator: TunnelStatus | None
    responder: TunnelStatus | None


def mapped_ports(mappings: Sequence[Mapping], server: str) -> dict[str, int]:
    """The public port of each inside address that speaks IKE with the server."""
    return {m.inside[0]: m.public[1] for m in mappings if m.inside[1] == IKE_PORT and m.remote == (server, IKE_PORT)}


def check_discovery(views: Sequence[TunnelView], mappings: Sequence[Mapping], server: str, *, nat: bool) -> CheckResult:
    """Both ends of every tunnel report the NAT that is there; the responder's ports are conntrack's, all different."""
    ports = mapped_ports(mappings, server)
    details = {"tunnels": msgspec.to_builtins(list(views)), "conntrack": ports}
    if not views:
        return CheckResult(name="NAT discovery", verdict=Verdict.LAB_BROKEN, reason="no tunnel to judge")
    problem = next((p for view in views if (p := _problem(view, ports, nat))), "")
    seen = [view.responder.remote for view in views if view.responder]
    if not problem and len(set(seen)) != len(seen):
        problem = f"the responder sees two clients at one address and port: {seen}"
    if problem:
        return CheckResult(name="NAT discovery", verdict=Verdict.FAILED, reason=problem, details=details)
    listed = ", ".join(f"{view.client} {port}" for view, (_, port) in zip(views, seen, strict=True))
    reason = f"both ends report the NAT; mapped ports {listed}" if nat else "both ends report no NAT"
    return CheckResult(name="NAT discovery", verdict=Verdict.PASSED, reason=reason, details=details)


def _problem(view: TunnelView, ports: dict[str, int], nat: bool) -> str:
    for end, status in (("initiator", view.initiator), ("responder", view.responder)):
        if status is None:
            return f"{view.client}: the {end} has no SA"
        if status.nat != nat:
            there = "a NAT" if nat else "no NAT"
            return f"{view.client}: the {end} says {status.nat} to a NAT, there is {there}"
        expected = "udp" if nat else "none"
        if status.encapsulation not in (expected, "udp"):
            return f"{view.client}: the {end} carries ESP in {status.encapsulation!r}, needed is {expected!r}"
    assert view.responder is not None
    if nat and view.responder.remote[1] != ports.get(view.inside):
        return (
            f"{view.client}: the responder answers port {view.responder.remote[1]}, "
            f"conntrack has {ports.get(view.inside, 'no mapping')}"
        )
    return ""
