"""NAT discovery, seen from three sides: both ends' own words and the NAT's connection tracking."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from natbed.stacks.base import TunnelStatus

from . import CheckResult, Verdict


class TunnelView(msgspec.Struct, frozen=True, kw_only=True):
    """One tunnel as its two ends describe it, the client's own address, and what the NATs on its way make of it.

    `nat` is whether there is one. `seen` are the address and port that the responder must see, by the NATs' connection
    tracking, None where a NAT has no mapping; `dialed` those that the initiator must see.
    """

    client: str
    inside: str
    initiator: TunnelStatus | None
    responder: TunnelStatus | None
    nat: bool
    seen: tuple[str, int] | None
    dialed: tuple[str, int]


def check_discovery(views: Sequence[TunnelView]) -> CheckResult:
    """Both ends of every tunnel report the NAT that is there; the responder's ports are conntrack's, all different."""
    name = "NAT discovery"
    if not views:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason="no tunnel to judge")
    details = {
        "tunnels": msgspec.to_builtins(list(views)),
        "conntrack": {view.inside: view.seen[1] for view in views if view.nat and view.seen},
    }
    problem = next((p for view in views if (p := _problem(view))), "") or _shared(views)
    if problem:
        return CheckResult(name=name, verdict=Verdict.FAILED, reason=problem, details=details)
    listed = ", ".join(dict.fromkeys(f"{v.client} {v.responder.remote[1]}" for v in views if v.nat and v.responder))
    reason = f"both ends report the NAT; mapped ports {listed}" if listed else "both ends report no NAT"
    return CheckResult(name=name, verdict=Verdict.PASSED, reason=reason, details=details)


def _shared(views: Sequence[TunnelView]) -> str:
    """Two clients that one responder, which others dial at one address, sees at one address and port."""
    seen: dict[tuple[object, ...], str] = {}
    for view in views:
        remote = view.responder.remote if view.responder else None
        if seen.setdefault((view.dialed, remote), view.client) != view.client:
            return f"the responder sees two clients at one address and port: {remote}"
    return ""


def _problem(view: TunnelView) -> str:
    for end, status in (("initiator", view.initiator), ("responder", view.responder)):
        if status is None:
            return f"{view.client}: the {end} has no SA"
        if status.nat != view.nat:
            there = "a NAT" if view.nat else "no NAT"
            return f"{view.client}: the {end} says {status.nat} to a NAT, there is {there}"
        expected = "udp" if view.nat else "none"
        if status.encapsulation not in (expected, "udp"):
            return f"{view.client}: the {end} carries ESP in {status.encapsulation!r}, needed is {expected!r}"
    assert view.initiator is not None
    assert view.responder is not None
    seen, remote = view.seen, view.responder.remote
    if seen is None or remote[1] != seen[1]:
        return (
            f"{view.client}: the responder answers port {remote[1]}, conntrack has {seen[1] if seen else 'no mapping'}"
        )
    if remote != seen:
        return f"{view.client}: the responder answers {remote[0]}, conntrack has {seen[0]}"
    if view.initiator.remote != view.dialed:
        return f"{view.client}: the initiator answers {view.initiator.remote}, dialed were {view.dialed}"
    return ""
