"""Scenarios: networks as they are written in topologies/, their addresses and their tunnels; and where to find them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import ipaddress
import pathlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import mininet.topo

from .link import interface_name
from .nat import presets
from .nat.profile import Kind, NatProfile
from .node import Host, Nat, Router, Segment

PUBLIC = ipaddress.IPv4Network("203.0.113.0/24")  # RFC 5737: one /28 for each that is attached to the Internet
PROTECTED = ipaddress.IPv4Network("10.99.0.0/24")  # hosts on the Internet: one address each for tunnel traffic
FIRST_HOST = 11  # the last octet of the first host on a LAN
LONGEST_NAME = 10  # octets of a node's name, since "-eth99" and Linux's 15 for an interface's


class ScenarioError(Exception):
    """A scenario cannot be built as it is written, or found; the message says why."""


@dataclass(frozen=True)
class Tunnel:
    """An SA pair that a scenario wants: who starts it, who answers."""

    initiator: str
    responder: str
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"{self.initiator}-{self.responder}")


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
    """An end system: its IKE address, its default gateway, what its tunnels are for ("10.99.0.1/32"), where it is."""

    name: str
    address: str
    gateway: str
    protected: str
    on: str


@dataclass(frozen=True)
class NatPlan:
    """A NAT: its outside address, and the names of its interfaces outside and inside."""

    name: str
    public_address: str
    gateway: str
    wan: InternetPlan | LanPlan
    wan_interface: str
    lan_interface: str
    lan: LanPlan
    profile: NatProfile


class Scenario(mininet.topo.Topo):
    """A network and the tunnels through it. A subclass says which: `build` from the blocks below, and `tunnels`."""

    letter: ClassVar[str] = ""
    """Its name on the command line; the draft's own (3.1) where it has one."""
    title: ClassVar[str] = ""
    """One line for people."""

    def __init__(self, **parameters: Any) -> None:
        """`parameters` are those of the subclass's `build`. Raises `ScenarioError`."""
        self.hosts_planned: dict[str, HostPlan] = {}
        self.nats_planned: dict[str, NatPlan] = {}
        self._lans: dict[str, LanPlan] = {}
        self._internet: InternetPlan | None = None
        self._public = PUBLIC.subnets(new_prefix=28)
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
        try:
            network = ipaddress.IPv4Network(lan)
        except ValueError as error:
            raise ScenarioError(f"{name}: LAN {lan}: {error}") from None
        outside, inside = interface_name(name, 0), interface_name(name, 1)
        segment = lan_name or f"home{len(self._lans) + 1 if self._lans else ''}"
        plan = LanPlan(segment, network, str(network[1]), name)
        self._add(name, Nat, wan=outside, lan=inside, profile=profile)
        self._add(segment, Segment, switch=True)
        public, gateway = self._attach(name, wan)
        self.nodeInfo(name)["public_address"] = public
        self.addLink(name, segment, address1=f"{plan.gateway}/{network.prefixlen}")
        self._lans[segment] = plan
        self._next_on_lan[segment] = FIRST_HOST
        result = self.nats_planned[name] = NatPlan(name, public, gateway, wan, outside, inside, plan, profile)
        if profile.kind is Kind.NONE:
            self._route_back(str(network), public, wan)
        return result

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
        plan = self.hosts_planned[name] = HostPlan(name, address, gateway, protected, on.name)
        return plan

    # what has been planned

    def plan(self, name: str) -> HostPlan | NatPlan:
        """The plan of a host or NAT. Raises KeyError that says which there are."""
        plans: dict[str, HostPlan | NatPlan] = {**self.hosts_planned, **self.nats_planned}
        if name not in plans:
            raise KeyError(f"no plan for {name!r}; there are {', '.join(plans)}")
        return plans[name]

    @property
    def clients(self) -> list[str]:
        """The names of the hosts that are called client..., in the order in which they were made."""
        return [name for name in self.hosts_planned if name.startswith("client")]

    @property
    def servers(self) -> list[str]:
        """The names of the hosts that are called server..., in the order in which they were made."""
        return [name for name in self.hosts_planned if name.startswith("server")]

    @property
    def nats(self) -> list[str]:
        """The names of the NATs, outer ones first."""
        return list(self.nats_planned)

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
                raise ScenarioError(f"{name}: {PUBLIC} has no network left for it") from None
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
            self.addLink(name, on.name, address1=f"{address}/{on.network.prefixlen}")
        self.nodeInfo(name)["routes"].append(("default", gateway))
        return address, gateway

    def _route_back(self, network: str, via: str, wan: InternetPlan | LanPlan) -> None:
        """Make a network behind a plain router known to those before it, up to the next NAT."""
        if isinstance(wan, InternetPlan):
            self.nodeInfo(wan.name)["routes"].append((network, via))
            return
        upstream = self.nats_planned[wan.router]
        self.nodeInfo(upstream.name)["routes"].append((network, via))
        if upstream.profile.kind is Kind.NONE:
            self._route_back(network, upstream.public_address, upstream.wan)


def load_scenarios() -> list[type[Scenario]]:
    """All scenarios of the topologies directory, in the order of their letters. Raises `ScenarioError`."""
    directory = topologies_directory()
    found: dict[str, type[Scenario]] = {}
    for file in sorted(directory.rglob("*.py")):
        if any(part.startswith(("_", ".")) for part in file.relative_to(directory).parts):
            continue
        for scenario in scenarios_of(file):
            if scenario.letter in found:
                other = inspect.getfile(found[scenario.letter])
                raise ScenarioError(f"{file} and {other} both have the letter {scenario.letter}")
            found[scenario.letter] = scenario
    return [found[letter] for letter in sorted(found)]


def find(letter: str) -> type[Scenario]:
    """The scenario of that letter, upper or lower case. Raises `ScenarioError` that says which there are."""
    scenarios = load_scenarios()
    for scenario in scenarios:
        if scenario.letter.lower() == letter.lower():
            return scenario
    raise ScenarioError(f"no scenario {letter!r}; there are {', '.join(one.letter for one in scenarios)}")


def scenarios_of(file: pathlib.Path) -> list[type[Scenario]]:
    """The scenarios that a topology file defines, those with a letter. Raises `ScenarioError`."""
    module = _load(file)
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Scenario)
        and value.letter
        and value.__module__ == module.__name__
    ]


def topologies_directory() -> pathlib.Path:
    """Where the topology files are: beside harness/ in the repository, beside the package in an installed wheel."""
    package = pathlib.Path(__file__).resolve().parent
    candidates = (package.parents[1] / "topologies", package.parent / "natbed_topologies")
    for directory in candidates:
        if directory.is_dir():
            return directory
    raise ScenarioError(f"no topologies in {' or '.join(map(str, candidates))}")


def _load(file: pathlib.Path) -> ModuleType:
    name = f"natbed_topologies.{file.resolve().parent.name}.{file.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(file.resolve()):
        return loaded
    specification = importlib.util.spec_from_file_location(name, file.resolve())
    if specification is None or specification.loader is None:
        raise ScenarioError(f"{file} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ScenarioError(f"{file}: {type(error).__name__}: {error}") from error
    return module


def main(scenario: type[Scenario], argv: list[str] | None = None) -> int:
    """What `python topologies/a.py` does: what `natbed run A` does. Returns the exit code."""
    runner = importlib.import_module("natbed.runner")  # it imports much that a topology file does not need
    return int(runner.run_scenario(scenario, sys.argv[1:] if argv is None else argv))
