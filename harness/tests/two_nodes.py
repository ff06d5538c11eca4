"""Two nodes on one wire, each with two addresses: what tests of the checks judge."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from natbed.node import Node

CLIENT, SERVER = ("10.1.0.1", "10.1.0.2"), ("10.1.0.11", "10.1.0.12")  # of the plain path, of the tunnel

Nodes = tuple[Node, Node]


def await_up(node: Node, interface: str) -> None:
    """Wait until packets can leave by an interface, which is a moment after both ends of a veth were set up."""
    until = time.monotonic() + 10
    while True:
        (shown,) = json.loads(node.run(["ip", "-json", "link", "show", "dev", interface]).stdout)
        if shown["operstate"] == "UP":
            return
        assert time.monotonic() < until, f"last seen: {shown}"
        time.sleep(0.002)


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
        await_up(client, "wan")
        await_up(server, "wan")
        yield client, server
    finally:
        client.terminate()
        server.terminate()
