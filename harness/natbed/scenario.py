"""Scenarios: networks as they are written in topologies/, their addresses and their tunnels."""

from __future__ import annotations

import importlib
import inspect
import ipaddress
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import mininet.topo

from .link import interface_name
from .nat import limits, presets
from .nat.profile import Kind, NatProfile
from .node_kinds import Gateway, Host, Nat, Router, Segment, Station
from .plans import Conversation, GatewayPlan, HostPlan, InternetPlan, LanPlan, NatPlan, Tunnel

__all__ = [
    "Conversation",
    "GatewayPlan",
    "HostPlan",
    "InternetPlan",
    "LanPlan",
    "NatPlan",
    "Scenario",
    "ScenarioError",
    "Tunnel",
    "main",
]

# RFC 5737: one /28 for each that is attached to the Internet, of the first as long as there is one
PUBLIC = tuple(map(ipaddress.IPv4Network, ("203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24")))
PUBLIC_PREFIX = 28
PROTECTED = ipaddress.IPv4Network("10.99.0.0/24")  # hosts on the Internet: one address each for tunnel traffic
FIRST_HOST = 11  # the last octet of the first host on a LAN
LONGEST_NAME = 10  # octets of a node's name, since "-eth99" and Linux's 15 for an interface's


class ScenarioError(Exception):
    """A scenario cannot be built as it is written, or found; the message says why."""


class Scenario(mininet.topo.Topo):
    """A network and the tunnels through it. A subclass says which: `build` from the blocks below, and `tunnels`."""

    letter: ClassVar[str] = ""
    """Its name on the command line; the draft's own (3.1) where it has one."""
    title: ClassVar[str] = ""
    """One line for people."""
    modes: ClassVar[tuple[str, ...]] = ("tunnel", "transport")
    """The modes that it can run in."""
    not_supported: ClassVar[dict[str, str]] = {}
    """Why it cannot run in the other modes, for people."""
    client_counts: ClassVar[tuple[int, ...]] = (1, 2, 3)
    """How many clients it makes sense with; (1,) where that does not vary."""
    nats: ClassVar[tuple[str, ...]] = ("masquerade",)
    """The presets that `nat` of its `build` may take."""
    requirements: ClassVar[tuple[str, ...]] = ()
    """The rows of the conformance table that a passed run of it proves."""
    carries: ClassVar[tuple[str, ...]] = ()
    """What its hosts are to carry besides the checks' own traffic: "l2tp", by xl2tpd, in transport mode."""
    timeline: ClassVar[tuple[Any, ...]] = ()
    """What happens at the end of a run, under traffic that must come back: `(at(5.0, NatReboot("nat")), ...)`, with
    `at` of natbed.faults.timeline. A fault of the command line takes its place."""

    def __init__(self, **parameters: Any) -> None:
        """`parameters` are those of the subclass's `build`. Raises `ScenarioError`."""
        if unknown := set(self.carries) - {"l2tp"}:
            raise ScenarioError(f"{self.letter}: carries {', '.join(sorted(unknown))}; natbed knows l2tp")
        self.hosts_planned: dict[str, HostPlan] = {}
        self.stations_planned: dict[str, HostPlan] = {}
        self.nats_planned: dict[str, NatPlan] = {}
        self._gateways: dict[str, GatewayPlan] = {}
        self._lans: dict[str, LanPlan] = {}
        self._internet: InternetPlan | None = None
        self._public = (one for block in PUBLIC for one in block.subnets(new_prefix=PUBLIC_PREFIX))
        self._protected = PROTECTED.hosts()
        self._next_on_lan: dict[str, int] = {}
        super().__init__(**parameters)

    def build(self, *_args: Any, **_parameters: Any) -> None:
        """Lay the network out; the subclass's parameters are the axes that a user may vary."""
        raise NotImplementedError

    def tunnels(self) -> list[Tunnel]:
        """The tunnels to bring up."""
        raise NotImplementedError

    # building blocks

    def internet(self, name: str = "internet") -> InternetPlan:
        """The Internet: a router between public networks."""
        if self._internet is not None:
            raise ScenarioError("there is one Internet")
        self._add(name, Router)
        self._internet = InternetPlan(name)
        return self._internet

    def nat_router(
        self,
        name: str,
        wan: InternetPlan | LanPlan,
        lan: str = "192.168.1.0/24",
        profile: NatProfile = presets.MASQUERADE,
        lan_name: str = "",
    ) -> NatPlan:
        """A NAT with a LAN behind it, its result's `lan`. The LAN's segment is "home", "home2", ... if not named."""
        outside, inside = interface_name(name, 0), interface_name(name, 1)
        try:
            limits.check(profile)
        except ValueError as error:
            raise ScenarioError(f"{name}: {error}") from None
        static: list[tuple[str, str]] = []
        network = self._network(name, lan)
        self._add(name, Nat, wan=outside, lan=inside, profile=profile, static=static, network=str(network))
        public, gateway = self._attach(name, wan)
        pool = tuple(self._pool(name, public, wan, profile.addresses - 1))
        forwards_to = self._first_hosts(name, network, max((one.inside for one in profile.forwards), default=0))
        self.nodeInfo(name).update(public_address=public, pool=pool, forwards_to=forwards_to)
        plan = self._lan(name, network, lan_name)
        result = NatPlan(name, public, gateway, wan, outside, inside, plan, profile, static, pool, forwards_to)
        self.nats_planned[name] = result
        if profile.kind is Kind.NONE:
            self._route_back(str(network), public, wan)
        return result

    def gateway(
        self,
        name: str,
        wan: InternetPlan | LanPlan,
        lan: str = "192.168.1.0/24",
        lan_name: str = "",
        mapped: str = "",
        remote: tuple[str, str] | None = None,
    ) -> GatewayPlan:
        """A host that runs the implementation for a LAN behind it, its result's `lan`.

        With `mapped`, a network of the same size, the LAN goes through its tunnels by these addresses: the gateway
        translates before tunnel ingress. `remote` are a network in its tunnels and another as which that appears on
        this LAN: the gateway translates after tunnel egress. Host bits are kept.
        """
        network = self._network(name, lan)
        protected = self._network(name, mapped or lan)
        if protected.prefixlen != network.prefixlen:
            raise ScenarioError(f"{name}: {lan} and {mapped} have not the same size")
        inside = interface_name(name, 1)
        self._add(name, Gateway, lan=inside, network=str(network), protected=str(protected), remote=remote)
        address, gateway = self._attach(name, wan)
        self.nodeInfo(name)["address"] = address
        plan = self._lan(name, network, lan_name)
        public = self._public_address(address, wan)
        result = GatewayPlan(
            name, address, gateway, str(protected), wan.name, public, lan=plan, lan_interface=inside, remote=remote
        )
        self.hosts_planned[name] = result
        self._gateways[name] = result
        return result

    def station(self, name: str, on: LanPlan) -> HostPlan:
        """An end system on a gateway's LAN, which knows nothing of IPsec."""
        self._add(name, Station)
        address, gateway = self._attach(name, on)
        self.nodeInfo(name).update(address=address, protected=f"{address}/32")
        plan = self.stations_planned[name] = HostPlan(name, address, gateway, f"{address}/32", on.name)
        return plan

    def host(self, name: str, on: InternetPlan | LanPlan, protected: str | None = None) -> HostPlan:
        """An end system. What it protects is its own address behind a NAT, elsewhere an inner address on `lo`.

        Where nothing is translated the peer sees the host's own address: if that were protected, the path without
        IPsec would end in the tunnel.
        """
        self._add(name, Host)
        address, gateway = self._attach(name, on)
        if protected is None:
            translated = isinstance(on, LanPlan) and self.nats_planned[on.router].profile.kind is not Kind.NONE
            protected = f"{address if translated else next(self._protected)}/32"
        self.nodeInfo(name).update(address=address, protected=protected)
        public = self._public_address(address, on)
        plan = self.hosts_planned[name] = HostPlan(name, address, gateway, protected, on.name, public)
        return plan

    # what has been planned

    def plan(self, name: str) -> HostPlan | NatPlan:
        """The plan of a host or NAT. Raises KeyError that says which there are."""
        plans: dict[str, HostPlan | NatPlan] = {
            **self.hosts_planned,
            **self.stations_planned,
            **self.nats_planned,
        }
        if name not in plans:
            raise KeyError(f"no plan for {name!r}; there are {', '.join(plans)}")
        return plans[name]

    @property
    def clients(self) -> list[str]:
        """The names of the hosts that are called client..., in the order in which they were made."""
        return [name for name in (*self.hosts_planned, *self.stations_planned) if name.startswith("client")]

    @property
    def servers(self) -> list[str]:
        """The names of the hosts that are called server..., in the order in which they were made."""
        return [name for name in (*self.hosts_planned, *self.stations_planned) if name.startswith("server")]

    @property
    def internet_name(self) -> str | None:
        """The name of the Internet's router, if there is one."""
        return self._internet.name if self._internet else None

    @property
    def nat_names(self) -> list[str]:
        """The names of the NATs, outer ones first."""
        return list(self.nats_planned)

    def routers_before(self, name: str) -> list[NatPlan]:
        """The NATs between a host and the Internet, the innermost first; those that only route are among them."""
        found = []
        on: InternetPlan | LanPlan | None = self._lans.get(self.hosts_planned[name].on)
        while isinstance(on, LanPlan):
            found.append(self.nats_planned[on.router])
            on = found[-1].wan
        return found

    def nats_before(self, name: str) -> list[NatPlan]:
        """The NATs that translate between a host and the Internet, the innermost first."""
        return [nat for nat in self.routers_before(name) if nat.profile.kind is not Kind.NONE]

    def networks(self, tunnel: Tunnel) -> tuple[str, str]:
        """What a tunnel joins in tunnel mode: the network at the initiator, and the one at the responder."""
        initiator, responder = self.hosts_planned[tunnel.initiator], self.hosts_planned[tunnel.responder]
        return tunnel.initiator_network or initiator.protected, tunnel.responder_network or responder.protected

    def conversations(self, mode: str) -> list[Conversation]:
        """Who talks to whom through the tunnels, at which addresses, and who may begin.

        In transport mode a server may begin where each client has an address of its own for it: nothing or a 1:1 NAT
        before it. Behind one address for many a server could not say which client it means, and the draft (1)
        promises only what clients begin.
        """
        return [
            self._conversation(tunnel, client, server, mode)
            for tunnel in self.tunnels()
            for client, server in tunnel.joins or ((tunnel.initiator, tunnel.responder),)
        ]

    def _conversation(self, tunnel: Tunnel, client: str, server: str, mode: str) -> Conversation:
        both_ways = True
        if mode == "transport":
            both_ways = all(nat.profile.kind is Kind.ONE_TO_ONE for nat in self.nats_before(client))
            here, there = self.hosts_planned[client], self.hosts_planned[server]
            addresses = here.address, there.address, here.public, there.public
        else:
            (near, near_inside), (far, far_inside) = self._inner_address(client), self._inner_address(server)
            addresses = near, far, self._known_as(near_inside, server), self._known_as(far_inside, client)
        return Conversation(tunnel.name, client, server, *addresses, both_ways)

    def in_tunnel(self, name: str) -> str:
        """The address that a node has inside its tunnels, in tunnel mode."""
        return self._inner_address(name)[1]

    def _inner_address(self, name: str) -> tuple[str, str]:
        """The address that a node itself uses in tunnel mode, and the one that it has inside the tunnel."""
        if name in self.stations_planned:
            address = self.stations_planned[name].address
            return address, self._gateway_of(name).in_tunnel(address)
        own = self.hosts_planned[name].protected.partition("/")[0]
        return own, own

    def _known_as(self, address: str, by: str) -> str:
        """What an address inside a tunnel is to a node at the tunnel's end."""
        return self._gateway_of(by).on_lan(address) if by in self.stations_planned else address

    def _gateway_of(self, station: str) -> GatewayPlan:
        return next(one for one in self._gateways.values() if one.lan.name == self.stations_planned[station].on)

    @classmethod
    def drawing(cls) -> str:
        """What the topology file says in its docstring, with its drawing."""
        return inspect.getdoc(inspect.getmodule(cls)) or ""

    # how it is done

    def _add(self, name: str, kind: type, *, switch: bool = False, **parameters: Any) -> None:
        if name in self.g.node:
            raise ScenarioError(f"there are two nodes called {name!r}")
        if not name.isidentifier() or len(name) > LONGEST_NAME:  # an identifier, to be a word in Mininet's shell
            raise ScenarioError(f"{name!r} is no name for a node: letters and digits, {LONGEST_NAME} at most")
        add = self.addSwitch if switch else self.addHost
        add(name, cls=kind, routes=[], **parameters)

    def _attach(self, name: str, on: InternetPlan | LanPlan) -> tuple[str, str]:
        """Link a node to the Internet or to a LAN, with the next address there: (address, gateway)."""
        if isinstance(on, InternetPlan):
            try:
                network = next(self._public)
            except StopIteration:
                raise ScenarioError(f"{name}: {PUBLIC[-1]} has no network left for it") from None
            gateway, address = str(network[1]), str(network[2])
            self.addLink(
                name, on.name, address1=f"{address}/{network.prefixlen}", address2=f"{gateway}/{network.prefixlen}"
            )
        else:
            number = self._next_on_lan[on.name]
            if number >= on.network.num_addresses - 1:
                raise ScenarioError(f"{name}: {on.network} has no address left for it")
            self._next_on_lan[on.name] = number + 1
            gateway, address = on.gateway, str(on.network[number])
            self._give_public_address(on, address)
            self.addLink(name, on.name, address1=f"{address}/{on.network.prefixlen}")
        self.nodeInfo(name)["routes"].append(("default", gateway))
        return address, gateway

    def _network(self, name: str, network: str) -> ipaddress.IPv4Network:
        try:
            return ipaddress.IPv4Network(network)
        except ValueError as error:
            raise ScenarioError(f"{name}: LAN {network}: {error}") from None

    def _lan(self, router: str, network: ipaddress.IPv4Network, name: str) -> LanPlan:
        """A LAN with its segment, behind a router that has been attached to the outside."""
        segment = name or f"home{len(self._lans) + 1 if self._lans else ''}"
        plan = LanPlan(segment, network, str(network[1]), router)
        self._add(segment, Segment, switch=True)
        self.addLink(router, segment, address1=f"{plan.gateway}/{network.prefixlen}")
        self._lans[segment] = plan
        self._next_on_lan[segment] = FIRST_HOST
        return plan

    def _give_public_address(self, on: LanPlan, inside: str) -> None:
        """Where the LAN's NAT is 1:1, give it an outside address for a host."""
        nat = self.nats_planned.get(on.router)
        if nat is None or nat.profile.kind is not Kind.ONE_TO_ONE:
            return
        if isinstance(nat.wan, LanPlan):
            number = self._next_on_lan[nat.wan.name]
            self._next_on_lan[nat.wan.name] = number + 1
            network, outside = nat.wan.network, nat.wan.network[number]
            self._give_public_address(nat.wan, str(outside))
        else:
            network = ipaddress.IPv4Network(f"{nat.public_address}/{PUBLIC_PREFIX}", strict=False)
            outside = ipaddress.IPv4Address(nat.public_address) + len(nat.static) + 1
        if outside not in network or outside == network.broadcast_address:
            raise ScenarioError(f"{nat.name}: {network} has no address left for {inside}")
        nat.static.append((f"{outside}/{network.prefixlen}", inside))

    def _pool(self, name: str, first: str, wan: InternetPlan | LanPlan, count: int) -> Iterator[str]:
        """More outside addresses for a NAT that has its first."""
        for number in range(1, count + 1):
            if isinstance(wan, LanPlan):
                place = self._next_on_lan[wan.name]
                if place >= wan.network.num_addresses - 1:
                    raise ScenarioError(f"{name}: {wan.network} has no address left for it")
                self._next_on_lan[wan.name] = place + 1
                self._give_public_address(wan, str(wan.network[place]))
                yield f"{wan.network[place]}/{wan.network.prefixlen}"
            else:
                yield f"{ipaddress.IPv4Address(first) + number}/{PUBLIC_PREFIX}"

    def _first_hosts(self, name: str, network: ipaddress.IPv4Network, count: int) -> tuple[str, ...]:
        """The addresses that the first hosts of a LAN get."""
        if FIRST_HOST + count > network.num_addresses - 1:
            raise ScenarioError(f"{name}: {network} has no host {count} to forward a port to")
        return tuple(str(network[FIRST_HOST + number]) for number in range(count))

    def _public_address(self, address: str, on: InternetPlan | LanPlan) -> str:
        """The address by which the Internet knows what has `address` there."""
        if isinstance(on, InternetPlan):
            return address
        nat = self.nats_planned[on.router]
        if nat.profile.kind is Kind.ONE_TO_ONE:
            address = {inside: outside.partition("/")[0] for outside, inside in nat.static}[address]
        elif nat.profile.kind is Kind.MASQUERADE:
            address = nat.pooled(address)
        return self._public_address(address, nat.wan)

    def _route_back(self, network: str, via: str, wan: InternetPlan | LanPlan) -> None:
        """Make a network behind a plain router known to those before it, up to the next NAT."""
        if isinstance(wan, InternetPlan):
            self.nodeInfo(wan.name)["routes"].append((network, via))
            return
        upstream = self.nats_planned[wan.router]
        self.nodeInfo(upstream.name)["routes"].append((network, via))
        if upstream.profile.kind is Kind.NONE:
            self._route_back(network, upstream.public_address, upstream.wan)


def main(scenario: type[Scenario], argv: list[str] | None = None) -> int:
    """What `python topologies/a.py` does: what `natbed run A` does. Returns the exit code."""
    runner = importlib.import_module("natbed.runner")  # it imports much that a topology file does not need
    return int(runner.run_scenario(scenario, sys.argv[1:] if argv is None else argv))
