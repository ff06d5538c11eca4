"""Links: veth pairs between the namespaces of two nodes, and their ends, the interfaces."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import mininet.link

if TYPE_CHECKING:
    from .node import Node

CARRIER_DEADLINE = 5.0  # seconds
# If both ends of a veth had the same index, the kernel would defer the carrier event by up to a second. The far end
# gets the lowest free index of its namespace; these never reach down there.
_indexes = itertools.count(100)


class LinkError(Exception):
    """A link did not become what it must be; the message says what was last seen."""


class Interface(mininet.link.Intf):
    """One end of a link, as Mininet's Intf; what Mininet does with ifconfig is done with netlink."""

    node: Node
    name: str
    ip: str | None
    prefixLen: int | None  # noqa: N815 - Mininet's name

    def __init__(self, name: str, node: Node, link: Link, index: int, mac: str, port: int, address: str | None) -> None:
        """`address` is IPv4 with its prefix length, "192.168.1.11/24", or None; `port` is Mininet's number for it."""
        self.index = index
        super().__init__(name, node=node, port=port, link=link, mac=mac)
        node.call(lambda: self._configure(address))

    def config(self, **params: Any) -> dict[str, Any]:
        """Mininet's hook to run ifconfig: `_configure` has its work."""
        return {}

    def _configure(self, address: str | None) -> None:
        if address is not None:
            self._set_address(address)
        self.node.attach(self)
        self.node.netlink.link("set", index=self.index, state="up")

    def _set_address(self, address: str) -> None:
        own, _, length = address.partition("/")
        self.node.netlink.addr("add", index=self.index, address=own, prefixlen=int(length))
        self.ip, self.prefixLen = own, int(length)

    def carrier(self) -> bool:
        """Whether the interface can send and be heard: up, and its peer too.

        The carrier itself is there a moment before the kernel's worker lets packets out.
        """
        return bool(self._attributes()["IFLA_OPERSTATE"] == "UP")

    def _attributes(self) -> dict[str, Any]:
        (message,) = self.node.call(lambda: list(self.node.netlink.link("get", index=self.index)))
        return dict(message["attrs"])

    # Mininet's Intf, for its command line

    def updateIP(self) -> str | None:  # noqa: N802 - Mininet's name
        """The first IPv4 address that the interface has now, or None."""
        found = self.node.addresses(self.name)
        self.ip = found[0].partition("/")[0] if found else None
        return self.ip

    def setIP(self, ipstr: str, prefixLen: int | None = None) -> None:  # noqa: N802, N803 - Mininet's names
        """Replace the interface's IPv4 addresses by one, "192.168.1.11/24" or with the length given apart."""
        address = ipstr if "/" in ipstr else f"{ipstr}/{prefixLen}"

        def replace() -> None:
            self.node.netlink.flush_addr(index=self.index, family=2)
            self._set_address(address)

        self.node.call(replace)

    def setMAC(self, macstr: str) -> None:  # noqa: N802 - Mininet's name
        """Set the link-layer address."""
        self.mac = macstr
        self.node.call(lambda: self.node.netlink.link("set", index=self.index, address=macstr))

    def isUp(self, setUp: bool = False) -> bool:  # noqa: N802 - Mininet's name
        """Whether the interface has carrier; with `setUp`, brought up first."""
        if setUp:
            self.ifconfig("up")
        return self.carrier()

    def ifconfig(self, *args: str) -> str:
        """Mininet's `link a b up|down`. Anything else is refused with ValueError."""
        if args not in (("up",), ("down",)):
            raise ValueError(f"{self.name}: only up and down, not {args}")
        self.node.call(lambda: self.node.netlink.link("set", index=self.index, state=args[0]))
        if args == ("up",):
            self.node.restore_routes()
        return ""

    def status(self) -> str:
        """Mininet's word for it: OK or MISSING."""
        return "OK" if self.name in self.node.interfaces() else "MISSING"

    def delete(self) -> None:
        """Remove the interface, and with it the other end of its link."""
        if self.name in self.node.interfaces():
            self.node.call(lambda: self.node.netlink.link("del", index=self.index))
        self.node.delIntf(self)
        self.link = None


class Link(mininet.link.Link):
    """A veth pair from node to node, both ends up and with carrier when it is made.

    Raises `LinkError` when the carrier does not come within `CARRIER_DEADLINE`.
    """

    intf1: Interface
    intf2: Interface

    def __init__(
        self,
        node1: Node,
        node2: Node,
        *,
        port1: int | None = None,
        port2: int | None = None,
        addr1: str,
        addr2: str,
        address1: str | None = None,
        address2: str | None = None,
        **_mininet: Any,
    ) -> None:
        """`addr` is the MAC address of an end (Mininet's name), `address` its IPv4 address with prefix length."""
        port1 = node1.newPort() if port1 is None else port1
        port2 = node2.newPort() if port2 is None else port2
        name1, name2 = interface_name(node1.name, port1), interface_name(node2.name, port2)
        index = next(_indexes)
        peer = {"ifname": name2, "net_ns_fd": node2.namespace_fd, "address": addr2}
        node1.call(lambda: node1.netlink.link("add", kind="veth", ifname=name1, index=index, address=addr1, peer=peer))
        far = node2.call(lambda: node2.netlink.link_lookup(ifname=name2)[0])
        if far == index:
            raise LinkError(f"{name1} and {name2} have the same index {index}: their carrier would come late")
        self.intf1 = Interface(name1, node1, self, index, addr1, port1, address1)
        self.intf2 = Interface(name2, node2, self, far, addr2, port2, address2)
        self.await_carrier()

    def await_carrier(self, deadline: float = CARRIER_DEADLINE) -> None:
        """Wait until both ends have carrier, at most `deadline` seconds. Raises `LinkError`."""
        end = time.monotonic() + deadline
        while missing := [interface.name for interface in (self.intf1, self.intf2) if not interface.carrier()]:
            if time.monotonic() > end:
                raise LinkError(f"no carrier on {' and '.join(missing)} after {deadline} s")
            time.sleep(0.001)

    def delete(self) -> None:
        """Remove the link."""
        self.intf1.delete()
        self.intf2.delete()

    def stop(self) -> None:
        """Mininet's hook at the end of a network: the namespaces take their links with them."""


def interface_name(node: str, port: int) -> str:
    """The name of a node's interface, Mininet's way: "client1-eth0"."""
    return f"{node}-eth{port}"
