"""What proves a scenario's NATs before an implementation is judged behind them."""

from __future__ import annotations

from .lab import Lab
from .nat.behaviour import Subject
from .nat.selfcheck import Probe
from .paths import outside
from .plans import LanPlan, NatPlan
from .scenario import Scenario


def probes(scenario: Scenario, lab: Lab) -> list[Probe]:
    """One from each initiator to each responder, by the address that it dials; and one to each NAT behind another.

    The first show what all NATs on the way make of it, and that a 1:1 NAT lets in; the others, each inner NAT alone.
    """
    found: dict[tuple[str, str], Probe] = {}
    for tunnel in scenario.tunnels():
        here, there = scenario.hosts_planned[tunnel.initiator], scenario.hosts_planned[tunnel.responder]
        nats = scenario.nats_before(here.name)
        expected = here.public if nats else None
        through = ", ".join(nat.name for nat in nats) if len(nats) > 1 else ""
        node, far = lab[here.name], lab[there.name]
        probe = Probe(node, here.address, far, there.address, there.public, expected, through)
        found.setdefault((here.name, there.name), probe)
        address = here.address
        for nat in nats:
            address = outside(nat, address)
            if isinstance(nat.wan, LanPlan):
                upstream: NatPlan = scenario.nats_planned[nat.wan.router]
                reflector, at = lab[upstream.name], upstream.lan.gateway
                probe = Probe(node, here.address, reflector, at, at, address, nat.name)
                found.setdefault((here.name, upstream.name), probe)
    return list(found.values())


def subjects(scenario: Scenario, lab: Lab) -> list[Subject]:
    """The NATs whose behaviour can be measured alone: those with a host right behind them.

    What is outside is the node before it, the Internet or another NAT, by two of that node's own addresses.
    """
    found: list[Subject] = []
    for nat in scenario.nats_planned.values():
        hosts = [plan for plan in scenario.hosts_planned.values() if plan.on == nat.lan.name]
        before = lab[nat.wan.router if isinstance(nat.wan, LanPlan) else nat.wan.name]
        addresses = [address.partition("/")[0] for address in before.addresses() if not address.startswith("127.")]
        if hosts and len(addresses) > 1:
            inside = tuple((lab[plan.name], plan.address) for plan in hosts[:2])
            found.append(Subject(nat.name, nat.profile, inside, before, (addresses[-1], addresses[0])))
    return found
