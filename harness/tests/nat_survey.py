"""A surveyor behind a lab's NAT, with a reflector on the Internet."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab_world import CLIENTS, World

from natbed.nat.fingerprint import Surveyor, opener
from natbed.nat.reflector import Reflector
from natbed.node import Node

PATIENCE = 0.2  # seconds


def inside(node: Node, address: str) -> Callable[[int], socket.socket]:
    return lambda port: node.call(lambda: opener(address)(port))


def outside_addresses(world: World) -> tuple[str, str]:
    """Two of the Internet's own, neither of them the NAT's gateway."""
    found = [address.partition("/")[0] for address in world.lab["internet"].addresses() if "127." not in address]
    return found[-1], found[-2]


@contextmanager
def reflecting(world: World) -> Iterator[Reflector]:
    addresses = outside_addresses(world)
    with world.lab["internet"].call(lambda: Reflector(addresses)) as reflector:
        yield reflector


@contextmanager
def surveyed(world: World) -> Iterator[tuple[Surveyor, Reflector]]:
    nodes = [inside(world.lab[f"client{n + 1}"], CLIENTS[n]) for n in range(2)]
    with reflecting(world) as reflector:
        server = (reflector.addresses[0], reflector.ports[0])
        yield Surveyor(nodes[0], server, PATIENCE, second=nodes[1]), reflector


def iptables(world: World, rule: str) -> None:
    world.nat.run(["iptables", *rule.split()])
