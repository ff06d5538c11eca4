"""What a scenario plans: its nodes with their addresses, its tunnels, and who talks to whom through them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from .nat.profile import NatProfile, Pooling
from .nat.remembering import paired


@dataclass(frozen=True)
class Tunnel:
    """An SA pair that a scenario wants: who starts it, who answers, and what it joins in tunnel mode.

    `initiator_network` and `responder_network` are what its selectors say; "" for all that the end protects. `joins`
    are the pairs of nodes, client first, that talk through it; if there are none the two ends do themselves.
    """

    initiator: str
    responder: str
    name: str = ""
    initiator_network: str = ""
    responder_network: str = ""
    joins: tuple[tuple[str, str], ...] = ()
    translate: bool = False
    """In tunnel mode the responder gives the initiator's network an address of its own choice: others have the same."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"{self.initiator}-{self.responder}")


@dataclass(frozen=True)
class Conversation:
    """Two nodes that talk through a tunnel: each one's own address, and the one by which the other knows it.

    With `both_ways` the server may begin as well.
    """

    tunnel: str
    client: str
    server: str
    client_address: str
    server_address: str
    client_seen: str
    server_seen: str
    both_ways: bool


@dataclass(frozen=True)
class InternetPlan:
    """The Internet: a router, each attached node on a network of its own."""

    name: str


@dataclass(frozen=True)
class LanPlan:
    """A LAN: `name` is its segment, `gateway` the router's address, `router` its name."""

    name: str
    network: ipaddress.IPv4Network
    gateway: str
    router: str


@dataclass(frozen=True)
class HostPlan:
    """An end system: its IKE address, its default gateway, what its tunnels are for ("10.99.0.1/32"), where it is.

    `public` is the address by which the Internet knows it: its own, its NAT's, or the one that a 1:1 NAT gives it.
    """

    name: str
    address: str
    gateway: str
    protected: str
    on: str
    public: str = ""


@dataclass(frozen=True)
class GatewayPlan(HostPlan):
    """A host that forwards for a LAN behind it, `lan`, which is `protected` in its tunnels.

    `remote` is a network in its tunnels and the one as which it appears on this LAN, where that is another.
    """

    lan: LanPlan = field(kw_only=True)
    lan_interface: str = field(kw_only=True)
    remote: tuple[str, str] | None = field(kw_only=True, default=None)

    def in_tunnel(self, address: str) -> str:
        """The address that a host of the LAN has in the tunnel: host bits are kept."""
        return _mapped(address, str(self.lan.network), self.protected)

    def on_lan(self, address: str) -> str:
        """The address that what has `address` in the tunnel has on the LAN."""
        return _mapped(address, *self.remote) if self.remote else address


def _mapped(address: str, network: str, to: str) -> str:
    offset = int(ipaddress.IPv4Address(address)) - int(ipaddress.IPv4Network(network).network_address)
    return str(ipaddress.IPv4Network(to)[offset])


@dataclass(frozen=True)
class NatPlan:
    """A NAT: its outside address, and the names of its interfaces outside and inside.

    `static` are the pairs of a 1:1 NAT: the outside address with its prefix length, and the inside address. `pool` are
    the outside addresses of another besides its first, with their prefix length; `forwards_to` the hosts that ports may
    be forwarded to, in order.
    """

    name: str
    public_address: str
    gateway: str
    wan: InternetPlan | LanPlan
    wan_interface: str
    lan_interface: str
    lan: LanPlan
    profile: NatProfile
    static: list[tuple[str, str]] = field(default_factory=list, compare=False)
    pool: tuple[str, ...] = ()
    forwards_to: tuple[str, ...] = ()

    def pooled(self, inside: str) -> str:
        """The outside address of an inside one where many share; the first where nobody can say beforehand."""
        outside = (self.public_address, *(address.partition("/")[0] for address in self.pool))
        return paired(inside, outside) if self.profile.pooling is Pooling.PAIRED else self.public_address
