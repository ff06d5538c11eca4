"""What nodes there are: hosts, gateways, stations, routers, NATs and LAN segments."""

from __future__ import annotations

import pathlib
import socket
from collections.abc import Sequence
from typing import Any

from .link import Interface
from .nat import rules
from .nat.profile import NatProfile, Quirk
from .nat.remembering import Where
from .node import Node


class Host(Node):
    """An end system that runs IKE and IPsec."""

    address: str

    def __init__(self, name: str, address: str, protected: str, **params: Any) -> None:
        """`address` is its IKE address, `protected` the network that its tunnels are for, "10.99.0.1/32"."""
        self.address = address
        self.protected = protected
        super().__init__(name, **params)

    def prepare(self) -> None:
        """Put the protected address on `lo` where no interface will have it."""
        super().prepare()
        own, _, length = self.protected.partition("/")
        if own != self.address:
            self.call(lambda: self.netlink.addr("add", index=1, address=own, prefixlen=int(length)))

    def IP(self, intf: Interface | str | None = None) -> str | None:  # noqa: N802 - Mininet's name
        """The address that others should reach it by through their tunnels: the protected one."""
        if intf is None:
            return self.protected.partition("/")[0]
        address: str | None = super().IP(intf)
        return address


class Station(Host):
    """An end system on a gateway's LAN, without an implementation of its own."""


class Router(Node):
    """Forwards IPv4, checks no reverse paths, and does nothing else."""

    def prepare(self) -> None:
        """Switch forwarding on."""
        super().prepare()
        self.sysctl({"net.ipv4.ip_forward": 1, "net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.default.rp_filter": 0})


class Nat(Router):
    """A router that translates as its profile says, once its links are up."""

    address: str

    def __init__(
        self,
        name: str,
        wan: str,
        lan: str,
        public_address: str,
        profile: NatProfile,
        static: Sequence[tuple[str, str]] = (),
        pool: Sequence[str] = (),
        forwards_to: Sequence[str] = (),
        network: str = "",
        **params: Any,
    ) -> None:
        """`wan` and `lan` are the names of its interfaces, outside and inside; `network` is the LAN.

        `static` are a 1:1 NAT's pairs: outside address with its prefix length, inside address. `pool` are the outside
        addresses of another besides its first, with their prefix length. `forwards_to` are the hosts that ports may be
        forwarded to, in order.
        """
        self.static = static
        self.pool = pool
        self.forwards_to = forwards_to
        self.network = network
        self.wan = wan
        self.lan = lan
        self.address = self.public_address = public_address
        self.profile = profile
        super().__init__(name, **params)

    def configDefault(self, **params: Any) -> None:  # noqa: N802 - Mininet's name
        """Set the routes and the translation; the outside answers ARP for each outside address."""
        super().configDefault(**params)
        self.call(self._add_addresses)
        self.translate()

    def translate(self) -> None:
        """Translate as the profile says, with the addresses that the NAT has now."""
        pairs = [(outside.partition("/")[0], inside) for outside, inside in self.static]
        rules.apply(self, self.profile, self.wan, self.lan, pairs, where=self.where)
        if self.profile.quirk is Quirk.DAMAGES_MARKER:
            self._receive_singly()

    def forget_after(self, seconds: int | None) -> None:
        """From now on forget UDP mappings after so many seconds, None: as its profile says.

        A mapping takes that with its next packet.
        """
        rules.time_out(self, self.profile, self.where, seconds)

    @property
    def where(self) -> Where:
        """The addresses around it."""
        outside = (self.public_address, *(address.partition("/")[0] for address in self.pool))
        return Where(outside, tuple(self.forwards_to), self.network)

    def _receive_singly(self) -> None:
        """See that packets come one by one: of a train that a veth carries whole, only the first would be damaged."""
        for interface in self.intfs.values():
            for end in (interface.link.intf1, interface.link.intf2):
                if end is not interface:
                    end.node.run(["ethtool", "-K", end.name, "tx-udp-segmentation", "off"])

    def _add_addresses(self) -> None:
        for outside in (*(outside for outside, _ in self.static), *self.pool):
            address, _, length = outside.partition("/")
            index = socket.if_nametoindex(self.wan)
            self.netlink.addr("add", index=index, address=address, prefixlen=int(length))


class Gateway(Host, Router):
    """A host that runs IKE and IPsec for the LAN behind it, which its tunnels may know by another prefix."""

    def __init__(self, name: str, lan: str, network: str, remote: tuple[str, str] | None = None, **params: Any) -> None:
        """`lan` is the name of its inside interface, `network` the LAN there; `protected` what its tunnels carry.

        `remote` are a network in its tunnels and another as which it appears on the LAN.
        """
        self.remote = remote
        self.lan = lan
        self.network = network
        super().__init__(name, **params)

    def prepare(self) -> None:
        """Switch forwarding on; the protected network is the LAN's, not an address of its own."""
        Router.prepare(self)

    def configDefault(self, **params: Any) -> None:  # noqa: N802 - Mininet's name
        """Set the routes and, where a tunnel and the LAN know the same hosts by different prefixes, the translation."""
        super().configDefault(**params)
        if self.protected != self.network or self.remote:
            rules.install(self, rules.render_prefixes(self.lan, self.network, self.protected, self.remote))

    def IP(self, intf: Interface | str | None = None) -> str | None:  # noqa: N802 - Mininet's name
        """Its own address: what it protects is a LAN's."""
        return self.address if intf is None else Node.IP(self, intf)


class Segment(Node):
    """A LAN: a bridge in a namespace of its own, so that no NAT has one. In Mininet's terms a switch."""

    portBase = 1  # noqa: N815 - Mininet's name

    def prepare(self) -> None:
        """Make the bridge, which shows its frames to no iptables."""
        super().prepare()
        if pathlib.Path("/proc/sys/net/bridge").exists():
            self.sysctl({"net.bridge.bridge-nf-call-iptables": 0})

        def make() -> None:
            self.netlink.link("add", kind="bridge", ifname="br0", br_stp_state=0, br_mcast_snooping=0)
            self.bridge = self.netlink.link_lookup(ifname="br0")[0]
            self.netlink.link("set", index=self.bridge, state="up")

        self.call(make)

    def attach(self, interface: Interface) -> None:
        """Plug the interface into the bridge."""
        self.netlink.link("set", index=interface.index, master=self.bridge)

    def start(self, _controllers: Sequence[object]) -> None:
        """Mininet's hook to start a switch: a bridge works from the beginning."""
        self.configDefault()

    def dpctl(self, *_args: str) -> str:
        """Mininet's question for OpenFlow rules: a bridge has none."""
        return ""
