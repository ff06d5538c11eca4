"""Lab: a scenario's network, up inside a with-block and down after it, whatever happens."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from types import TracebackType
from typing import Self, TypeVar

from . import interrupts
from .link import Link
from .mininet_modules import log, net, util
from .node import Node
from .node_kinds import Gateway, Host, Nat, Router, Segment
from .process import CommandFailed, end_processes
from .scenario import Scenario

N = TypeVar("N", bound=Node)

PING_DEADLINE = 1  # seconds that pingall gives an echo

# Mininet's preparations raise limits of the whole machine; no lab needs them.
net.Mininet.inited = True
util.numCores.ncores = os.cpu_count() or 1  # else found out with a subprocess


class LabError(Exception):
    """The lab is not the network that the scenario describes; the message says what was found instead."""


class Network(net.Mininet):
    """Mininet's network over natbed's nodes and links, which its command line works on."""

    def ping(self, hosts: list[Node] | None = None, timeout: str | None = None) -> float:
        """Mininet's `pingall`: each node to each, at the address it reaches it by. Returns the loss in percent."""
        nodes: list[Node] = hosts or self.hosts
        sent = received = 0
        for node in nodes:
            log.output(f"{node.name} -> ")
            for other in nodes:
                if node is other:
                    continue
                answered = _answers(node, address_seen_from(node, other), timeout or str(PING_DEADLINE))
                sent += 1
                received += answered
                log.output(f"{other.name if answered else 'X'} ")
            log.output("\n")
        loss = 100.0 * (sent - received) / sent if sent else 0.0
        log.output(f"*** Results: {loss:.0f}% dropped ({received}/{sent} received)\n")
        return loss


def _answers(node: Node, address: str, timeout: str) -> bool:
    try:
        node.run(["ping", "-n", "-c", "1", "-W", timeout, address])
    except CommandFailed:
        return False
    return True


def address_seen_from(node: Node, other: Node) -> str:
    """What `other`'s name stands for in a command that runs on `node`.

    Its protected address where `node` has a route of its own to it, that is, while a tunnel is up or on the same LAN;
    else the address it has on the network, which for a node behind a NAT may not be reached.
    """
    if isinstance(other, Host):
        protected = other.protected.partition("/")[0]
        if node.route_to(protected) not in (None, "0.0.0.0/0"):
            return protected
    if other.address is not None:
        return other.address
    addresses = [address.partition("/")[0] for address in other.addresses()]
    addresses = [address for address in addresses if not ipaddress.IPv4Address(address).is_loopback]
    if not addresses:
        raise LabError(f"{other.name} has no address")
    return addresses[0]


class Lab:
    """A scenario's network. Everything in it lives in namespaces of its own: two labs never meet.

        with Lab(ClientsBehindOneNat()) as lab:
            lab["client1"].run(["ping", "-c", "1", lab["server"].address])

    Entering raises `LabError`, or the error of the part that could not be made, with nothing left behind.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.network: Network | None = None
        self.build_seconds = 0.0
        self.teardown_seconds = 0.0

    def __enter__(self) -> Self:
        self.build()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Node:
        """The node of that name; KeyError says which there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no node {name!r}; there are {', '.join(node.name for node in self.nodes)}")

    @property
    def nodes(self) -> list[Node]:
        """All nodes, segments last."""
        return [] if self.network is None else [*self.network.hosts, *self.network.switches]

    @property
    def hosts(self) -> list[Host]:
        """The end systems."""
        return [node for node in self.nodes if isinstance(node, Host)]

    @property
    def routers(self) -> list[Router]:
        """The routers, NATs among them."""
        return [node for node in self.nodes if isinstance(node, Router)]

    @property
    def nats(self) -> list[Nat]:
        """The NATs, in the scenario's order; one with the profile "routed" is among them too."""
        return [node for name in self.scenario.nat_names if isinstance(node := self[name], Nat)]

    @property
    def segments(self) -> list[Segment]:
        """The LANs."""
        return [node for node in self.nodes if isinstance(node, Segment)]

    def host(self, name: str) -> Host:
        """The end system of that name. Raises KeyError where there is none."""
        return _of_kind(self[name], Host)

    def nat(self, name: str) -> Nat:
        """The NAT of that name. Raises KeyError where there is none."""
        return _of_kind(self[name], Nat)

    def build(self) -> None:
        """Make the network. What has been made is taken down again when anything fails, or is interrupted."""
        if self.network is not None:
            raise LabError("this lab is up already")
        begin = time.perf_counter()
        try:
            self.network = Network(topo=None, build=False, controller=None, link=Link, intf=None)
            self.network.buildFromTopo(self.scenario)
            self.network.configHosts()
            for segment in self.segments:
                segment.start(())
            self.network.built = True
            self._verify()
        except BaseException:
            self.close()
            raise
        self.build_seconds = time.perf_counter() - begin

    def _verify(self) -> None:
        """The addresses that the scenario gave are on the nodes. Links, routes and rules have proved themselves."""
        for host in self.hosts:
            found = [address.partition("/")[0] for address in host.addresses()]
            wanted_here = [host.address, *([] if isinstance(host, Gateway) else [host.protected.partition("/")[0]])]
            for wanted in wanted_here:
                if wanted not in found:
                    raise LabError(f"{host.name} lacks {wanted}; it has {', '.join(found)}")

    def close(self) -> None:
        """Take everything down, processes first, then namespaces. Repeatable; an interrupt waits until it is done."""
        network, self.network = self.network, None
        if network is None:
            return
        begin = time.perf_counter()
        nodes: list[Node] = [*network.hosts, *network.switches]
        with interrupts.deferred(), contextlib.ExitStack() as stack:
            # Whatever one of these raises, the others still run.
            for node in nodes:
                stack.callback(node.release)
            stack.callback(end_processes, [process for node in nodes for process in node.processes()])
            for node in nodes:
                stack.callback(node.hang_up)
        self.teardown_seconds = time.perf_counter() - begin


def _of_kind(node: Node, kind: type[N]) -> N:
    if not isinstance(node, kind):
        raise KeyError(f"{node.name} is a {type(node).__name__}, not a {kind.__name__}")
    return node
