"""Two nodes on one wire, each with two addresses: what tests of the checks judge."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from natbed.node import Node

CLIENT, SERVER = ("10.1.0.1", "10.1.0.2"), ("10.1.0.11", "10.1.0.12")  # of the plain path, of the tunnel

Nodes = tuple[Node, Node]


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    client, server = Node("client1"), Node("server")
    namespace = f"/proc/{os.getpid()}/fd/{server.namespace_fd}"
    client.run(["ip", "link", "add", "wan", "index", "101", "type", "veth", "peer", "name", "wan", "netns", namespace])
    for node, addresses in ((client, CLIENT), (server, SERVER)):
        for address in addresses:
            node.run(["ip", "address", "add", f"{address}/24", "dev", "wan"])
        node.run(["ip", "link", "set", "wan", "up"])
    try:
        yield client, server
    finally:
        client.terminate()
        server.terminate()
