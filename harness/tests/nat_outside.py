"""Programs inside and outside of a real NAT, and what they see of it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

from lab_world import SERVER, STRANGER, Home

from natbed.conntrack import udp_mappings
from natbed.lab import Lab
from natbed.nat import rules
from natbed.nat.profile import Filtering, Mapping, NatProfile, Ports
from natbed.node_kinds import Nat

SECONDS = 5.0  # that a packet, or a condition, may take
FIRST, SECOND = 4_999, 5_000  # ports of those who see
INSIDE = 40_000
_DRAWS = 3

_DRAWN = ("ip", "witness", "drawn")
# sees the port of what leaves, translated, before the NAT drops it because the port is taken
_WITNESS = """table ip witness {{
    set drawn {{
        type inet_service
        size 65536
        flags dynamic
    }}
    chain leaving {{
        type filter hook postrouting priority 105; policy accept;
        oifname "{wan}" ct state new meta l4proto udp add @drawn {{ udp sport }}
    }}
}}
"""

Endpoint = tuple[str, int]


class Street:
    """Scenario A's network with a stranger, and sockets on it that are closed with it."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self._stack = stack
        self._owners: dict[int, tuple[object, ...]] = {}  # mappings, by the ports that were seen
        self._draws = self.nat.profile.ports is Ports.RANDOM
        if self._draws:
            self.nat.run(["nft", "-f", "-"], input=_WITNESS.format(wan=self.nat.wan))

    @property
    def nat(self) -> Nat:
        return self.lab.nat("nat")

    def at(self, name: str, port: int, to: Endpoint | None = None) -> socket.socket:
        """A UDP socket on the host of that name, connected where `to` is given."""
        host = self.lab.host(name)
        made = self._stack.enter_context(host.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        made.settimeout(SECONDS)
        made.bind((host.address, port))
        if to:
            made.connect(to)
        return made

    def seen(self, inside: socket.socket, outside: socket.socket) -> Endpoint:
        """What an outside socket sees as the source of an inside one's packet.

        A NAT that draws ports may draw another mapping's, and drops: then, and only then, another packet is sent.
        """
        mapping = self._whose(inside.getsockname(), outside.getsockname())
        for left in reversed(range(_DRAWS)):
            if self._draws:
                self.nat.run(["nft", "flush", "set", *_DRAWN])
            inside.sendto(b"seen", outside.getsockname())
            try:
                data, source = outside.recvfrom(64)
            except TimeoutError:
                if not left or not self._draws or self._owners.get(self._drawn, mapping) == mapping:
                    raise
                continue
            assert data == b"seen"
            self._owners[source[1]] = mapping
            return source[0], source[1]
        raise AssertionError("the last one returns or raises")

    @property
    def _drawn(self) -> int:
        """The port that the NAT has just drawn, whatever became of its packet."""
        listed = json.loads(self.nat.run(["nft", "-j", "list", "set", *_DRAWN]).stdout)["nftables"]
        (port,) = next(one["set"] for one in listed if "set" in one).get("elem", [0])
        return int(port)

    def _whose(self, inside: Endpoint, outside: Endpoint) -> tuple[object, ...]:
        """All packets with the same answer have one mapping."""
        remote = {Mapping.ENDPOINT_INDEPENDENT: (), Mapping.ADDRESS_DEPENDENT: outside[:1]}
        return (inside, *remote.get(self.nat.profile.mapping, outside))

    def mapping(self, inside: socket.socket, *outside: socket.socket) -> Mapping:
        """What the mapping depends on: of two sockets at one address and one at another."""
        one, same_address, other = (self.seen(inside, each) for each in outside)
        if one != same_address:
            return Mapping.ADDRESS_AND_PORT_DEPENDENT
        return Mapping.ENDPOINT_INDEPENDENT if one == other else Mapping.ADDRESS_DEPENDENT

    def filtering(self, inside: socket.socket, *outside: socket.socket) -> Filtering:
        """Who may answer an inside socket that sends to the first of two sockets at one address and one at another."""
        one, same_address, other = outside
        at = self.seen(inside, one)
        before = self.refused
        same_address.sendto(b"port", at)
        other.sendto(b"address", at)
        one.sendto(b"end", at)
        came = []
        while (data := inside.recv(64)) != b"end":
            came.append(data)
        self.wait(lambda: self.refused == before + 2 - len(came), f"{came} came, {self.refused - before} refused")
        return {
            (b"port", b"address"): Filtering.ENDPOINT_INDEPENDENT,
            (b"port",): Filtering.ADDRESS_DEPENDENT,
            (): Filtering.ADDRESS_AND_PORT_DEPENDENT,
        }[tuple(came)]

    @property
    def refused(self) -> int:
        return rules.refused(self.nat, self.nat.profile)

    def wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Until the condition holds."""
        until = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < until, otherwise
            time.sleep(0.005)

    def wait_forgotten(self, inside: Endpoint) -> None:
        """Until conntrack has no flow of an inside endpoint."""
        self.wait(lambda: all(one.inside != inside for one in udp_mappings(self.nat)), "the NAT does not forget")


@contextlib.contextmanager
def street(profile: NatProfile) -> Iterator[Street]:
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(Home(clients=2, nat=profile)))
        yield Street(lab, stack)


__all__ = ["FIRST", "INSIDE", "SECOND", "SERVER", "STRANGER", "Street", "street"]
