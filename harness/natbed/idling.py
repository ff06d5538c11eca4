"""What the checks of idle tunnels need of a lab: which NAT forgets whom, what each holds, and how fast it forgets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from .conntrack import Mapping, udp_mappings
from .lab import Lab
from .nat import rules
from .nat.profile import Filtering, Kind
from .node_kinds import Nat
from .paths import IKE_PORT, on_the_way, outside
from .plans import NatPlan, Tunnel
from .scenario import Scenario


def forgets(scenario: Scenario, tunnel: Tunnel) -> str:
    """The NAT that shuts the responder out once it has forgotten the initiator; "" where none does.

    That is the many:1 NAT before the initiator that its peer's packets come to first, whatever it filters: it gives a
    port only to what comes from inside. A 1:1 NAT has the initiator's address for good if it lets strangers in, a NAT
    that forwards IKE's port to the initiator its port, a router translates nothing, and those before the responder are
    opened by its own packets.
    """
    shut, address = "", scenario.hosts_planned[tunnel.initiator].address
    for nat in scenario.nats_before(tunnel.initiator):
        if not _keeps(nat, address):
            shut = nat.name
        address = outside(nat, address)
    return shut


def _keeps(nat: NatPlan, inside: str) -> bool:
    """Whether strangers reach that address's IKE through the NAT though it has sent nothing."""
    if nat.profile.kind is Kind.ONE_TO_ONE:
        return nat.profile.filtering is Filtering.ENDPOINT_INDEPENDENT
    return any(one.port == IKE_PORT and nat.forwards_to[one.inside - 1] == inside for one in nat.profile.forwards)


class NatsOfALab:
    """All NATs of a lab that translate, seen from its tunnels."""

    def __init__(self, lab: Lab) -> None:
        self._scenario = lab.scenario
        self._nats: Sequence[Nat] = [nat for nat in lab.nats if nat.profile.kind is not Kind.NONE]

    @contextlib.contextmanager
    def forgetting_after(self, seconds: int) -> Iterator[None]:
        """For as long as the block lasts each forgets a mapping that idle; one takes that with its next packet."""
        try:
            for nat in self._nats:
                nat.forget_after(seconds)
            yield
        finally:
            for nat in self._nats:
                nat.forget_after(None)

    def mappings(self) -> dict[str, dict[str, Mapping]]:
        """Of each tunnel, what each NAT on its way holds now; one that holds nothing is missing."""
        held = {nat.name: udp_mappings(nat) for nat in self._nats}
        return {tunnel.name: on_the_way(self._scenario, tunnel, held) for tunnel in self._scenario.tunnels()}

    def refused(self) -> dict[str, int]:
        """How many UDP packets from outside each has dropped that were for no mapping."""
        return {nat.name: rules.refused(nat, nat.profile) for nat in self._nats}
