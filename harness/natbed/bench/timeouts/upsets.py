"""What is done to tunnels whose recovery is measured: each fault, in a network of a NAT for each fault and policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from natbed.conntrack import Mapping, udp_mappings
from natbed.faults.base import Fault, FaultError
from natbed.faults.links import LinkFlap
from natbed.faults.nats import MappingExpiry, NatReboot, WanRenumber
from natbed.node_kinds import Nat
from natbed.scenario import Scenario, Tunnel

from .record import POLICIES

OFF = 1.0  # seconds, real: that a NAT is off, or a link down
IKE_PORT = 500


@dataclass(frozen=True, slots=True)
class Upset:
    """A fault by its name here: how it is made for a client and its NAT, and what of the mapping it changes."""

    name: str
    make: Callable[[str, str, str], Fault]  # of the client, its NAT, and the segment between them
    moves_address: bool = False
    moves_port: bool = False

    def check_move(self, nat: str, before: Mapping, after: Mapping | None) -> None:
        """The fault has proved itself; that it did to this tunnel what it is for is seen here. Raises FaultError."""
        if after is None:
            raise FaultError(f"{nat}: the client sends, and has no mapping after {self.name}")
        (old_address, old_port), (new_address, new_port) = before.public, after.public
        if (old_address != new_address) != self.moves_address:
            raise FaultError(f"{nat}: {self.name}: the mapping's address was {old_address} and is {new_address}")
        if self.moves_port and old_port == new_port:
            raise FaultError(f"{nat}: {self.name}: the mapping's port was {old_port} and still is")


UPSETS = (
    Upset("NAT reboot", lambda _client, nat, _lan: NatReboot(nat, off=OFF), moves_port=True),
    Upset("WAN renumbering", lambda _client, nat, _lan: WanRenumber(nat), moves_address=True),
    Upset("mapping expiry", lambda _client, nat, _lan: MappingExpiry(nat)),
    Upset("port change", lambda _client, nat, _lan: NatReboot(nat), moves_port=True),
    Upset("link flap", lambda client, _nat, lan: LinkFlap(client, lan, OFF)),
)
"""A reboot is a NAT that is off for a while and then gives out other ports; a port change is that at once."""

FAULTS = tuple(one.name for one in UPSETS)


class NatsToUpset(Scenario):
    """A client behind a NAT of its own for each fault and policy, and a server for each policy."""

    title = "NATs to upset"

    def build(self, faults: Sequence[str] = ()) -> None:
        """`faults` are names of what there is to be for each policy."""
        internet = self.internet()
        self.cells: dict[str, tuple[str, str]] = {}
        """By client: the fault and the policy."""
        for policy in POLICIES:
            for fault in faults:
                number = len(self.cells) + 1
                home = self.nat_router(f"nat{number}", wan=internet, lan=f"192.168.{number}.0/24")
                self.host(f"client{number}", on=home.lan)
                self.cells[f"client{number}"] = fault, policy
        for policy in POLICIES:
            self.host(server_of(policy), on=internet)

    def tunnels(self) -> list[Tunnel]:
        """Each client to its policy's server."""
        return [Tunnel(client, server_of(policy)) for client, (_, policy) in self.cells.items()]

    def fault_of(self, client: str) -> Fault:
        """What is done to a client."""
        nat = self.routers_before(client)[0]
        name, _ = self.cells[client]
        return upset(name).make(client, nat.name, nat.lan.name)


def server_of(policy: str) -> str:
    """A host has one policy for all its peers."""
    return f"server{POLICIES.index(policy) + 1}"


def upset(name: str) -> Upset:
    """By its name."""
    return next(one for one in UPSETS if one.name == name)


def tunnel_mapping(nat: Nat, client: str) -> Mapping | None:
    """The mapping that carries a client's tunnel; `client` is its address."""
    found = [one for one in udp_mappings(nat) if one.inside == (client, IKE_PORT) and one.remote[1] == IKE_PORT]
    return found[0] if found else None
