"""Faults of NATs: they reboot, get another outside address, forget mappings, get other rules."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from natbed.conntrack import Mapping, udp_mappings
from natbed.nat.profile import Kind, Ports
from natbed.node_kinds import Nat

from .base import FaultError, FaultRecord, Moment, Scene

_NOBODY = "127.0.0.2"  # a packet for it that comes from outside is dropped without an answer, as a martian
_TAKEN_SECONDS = 600  # for which a port stays another's


@dataclass(frozen=True, slots=True)
class NatReboot:
    """The NAT loses power: for `off` seconds nothing passes, and it has forgotten every mapping.

    After a reboot ports belong to who sends first. With `other_ports` a NAT that keeps ports where it can finds that
    others have come before: each of its old mappings gets another port. One that gives out ports at random does so
    anyway, and a 1:1 NAT never.
    """

    nat: str
    off: float = 0.0
    other_ports: bool = True

    def strike(self, scene: Scene) -> FaultRecord:
        """Reboot it. Raises `FaultError` where a mapping is still there afterwards."""
        nat = _translating(scene, self.nat)
        moment = Moment()
        with _off(nat):
            before = [one for one in udp_mappings(nat) if one.inside[0] != _NOBODY]
            learned = _forget_all(nat)
            if left := _left(nat, before):
                raise FaultError(f"{nat.name} was rebooted and still has the mapping {_shown(left[0])}")
            taken = [one for one in before if self.other_ports and _keeps_port(nat, one)]
            for one in taken:
                _take(nat, one)
            time.sleep(self.off)
        return moment.record(
            self,
            f"the NAT {nat.name} rebooted",
            nat=nat.name,
            ended_mappings=msgspec.to_builtins(before),
            ports_taken=[one.public[1] for one in taken],
            learned_forgotten=learned,
        )


@dataclass(frozen=True, slots=True)
class WanRenumber:
    """The NAT gets another outside address, as from its provider at night; without `address` the last one there."""

    nat: str
    address: str = ""

    def strike(self, scene: Scene) -> FaultRecord:
        """Renumber it. Raises `FaultError` where the address cannot be, or mappings of the old one are left."""
        nat = _translating(scene, self.nat)
        if nat.profile.kind is Kind.ONE_TO_ONE:
            raise FaultError(f"{nat.name}: the addresses of a 1:1 NAT are its hosts' own")
        old = ipaddress.IPv4Interface(_own(nat, nat.public_address))
        new = _another(nat, old, self.address)
        gateway = _gateway(nat)
        moment = Moment()
        with _off(nat):
            before = udp_mappings(nat)
            nat.call(lambda: _exchange(nat, old, new))
            nat.restore_routes()  # the kernel takes them away with the address
            nat.public_address = nat.address = str(new.ip)
            _forget_all(nat)
        nat.translate()  # rules that remember mappings have the address in them; they verify that no others are there
        with _off(nat):  # what came through just now was translated by the old ones
            _forget_all(nat)
        found = nat.addresses(nat.wan)
        if found != [str(new)] or _gateway(nat) != gateway:
            raise FaultError(f"{nat.name} has {', '.join(found)} and the gateway {_gateway(nat)} instead of {new}")
        if left := [one for one in udp_mappings(nat) if one.public[0] == str(old.ip)]:
            raise FaultError(f"{nat.name} is renumbered and still has the mapping {_shown(left[0])}")
        return moment.record(
            self,
            f"the NAT {nat.name} got the address {new.ip}",
            nat=nat.name,
            old=str(old),
            new=str(new),
            ended_mappings=msgspec.to_builtins(before),
        )


@dataclass(frozen=True, slots=True)
class MappingExpiry:
    """The NAT forgets the UDP mappings of one inside host, or all: what too short a timeout does."""

    nat: str
    inside: str = ""  # the address of an inside host
    port: int = 0  # of its mappings that of this inside port

    def strike(self, scene: Scene) -> FaultRecord:
        """Let them expire. Raises `FaultError` where there is none, or one is still there."""
        nat = _translating(scene, self.nat)
        moment = Moment()
        with _off(nat):
            before = [one for one in udp_mappings(nat) if self._concerns(one)]
            whose = f" of {self.inside}{f':{self.port}' * bool(self.port)}" if self.inside else ""
            if not before:
                raise FaultError(f"{nat.name} has no UDP mapping{whose} that could expire")
            for one in before:
                _delete(nat, one)
            learned = _forget_learned(nat)
            if left := _left(nat, before):
                raise FaultError(f"{nat.name}: a mapping did not expire: {_shown(left[0])}")
        return moment.record(
            self,
            f"the NAT {nat.name} forgot {'the mappings' + whose if whose else 'all mappings'}",
            nat=nat.name,
            ended_mappings=msgspec.to_builtins(before),
            learned_forgotten=learned,
        )

    def _concerns(self, mapping: Mapping) -> bool:
        return self.inside in ("", mapping.inside[0]) and self.port in (0, mapping.inside[1])


@dataclass(frozen=True, slots=True)
class RuleChange:
    """One iptables rule more in front of a chain of the NAT. It holds for new mappings; with `forget` for all."""

    nat: str
    table: str
    chain: str
    rule: tuple[str, ...]
    forget: bool = True

    def strike(self, scene: Scene) -> FaultRecord:
        """Change it. Raises `FaultError` where the rule is not there afterwards, or a mapping still is."""
        nat = scene.lab.nat(self.nat)
        moment = Moment()
        with _off(nat):
            before = udp_mappings(nat)
            nat.run(["iptables", "-t", self.table, "-I", self.chain, *self.rule])
            if nat.run(["iptables", "-t", self.table, "-C", self.chain, *self.rule], check=False).returncode:
                raise FaultError(f"{nat.name} has not taken the rule {' '.join(self.rule)}")
            if self.forget:
                _forget_all(nat)
                if left := _left(nat, before):
                    raise FaultError(f"{nat.name} has another rule and still the mapping {_shown(left[0])}")
        return moment.record(
            self, f"the NAT {nat.name} got another rule", nat=nat.name, rule=[self.table, self.chain, *self.rule]
        )

    def undo(self, scene: Scene) -> None:
        """Take the rule away again; mappings stay as they are."""
        scene.lab.nat(self.nat).run(["iptables", "-t", self.table, "-D", self.chain, *self.rule])


def _translating(scene: Scene, name: str) -> Nat:
    nats = {nat.name: nat for nat in scene.lab.nats if nat.profile.kind is not Kind.NONE}
    if name not in nats:
        raise FaultError(f"no NAT {name!r} that translates; there are {', '.join(nats) or 'none'}")
    return nats[name]


@contextlib.contextmanager
def _off(nat: Nat) -> Iterator[None]:
    """Nothing comes in as long as the block lasts: else the next packet would undo what is being done."""
    rule = ["PREROUTING", "!", "-i", "lo", "-j", "DROP"]
    nat.run(["iptables", "-t", "raw", "-I", *rule])
    try:
        yield
    finally:
        nat.run(["iptables", "-t", "raw", "-D", *rule])


def _forget_all(nat: Nat) -> list[str]:
    """Flush conntrack and what nftables has learned; the names of what that was."""
    learned = _forget_learned(nat)
    nat.run(["conntrack", "-F"])
    return learned


def _forget_learned(nat: Nat) -> list[str]:
    """Empty the sets and maps that rules have written into; their names. Raises `FaultError` where one stays full."""
    names = []
    for kind, one in _learned(nat):
        where = [one["family"], one["table"], one["name"]]
        nat.run(["nft", "flush", kind, *where])
        names.append(" ".join(where))
    for kind, one in _learned(nat):
        if one.get("elem"):
            raise FaultError(f"{nat.name}: the {kind} {one['name']} was flushed and is not empty")
    return names


def _learned(nat: Nat) -> list[tuple[str, dict[str, str]]]:
    listed = json.loads(nat.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
    return [
        (kind, entry[kind])
        for entry in listed
        for kind in ("set", "map")
        if kind in entry and {"dynamic", "timeout"} & set(entry[kind].get("flags", ()))
    ]


def _left(nat: Nat, before: Sequence[Mapping]) -> list[Mapping]:
    ended = {one.identifier for one in before}
    return [one for one in udp_mappings(nat) if one.identifier in ended]


def _delete(nat: Nat, mapping: Mapping) -> None:
    """Delete one flow, from whichever end it began."""
    source, destination = (mapping.inside, mapping.remote)
    if mapping.forwarded:
        source, destination = mapping.remote, mapping.public
    words = ["-s", source[0], "--sport", str(source[1]), "-d", destination[0], "--dport", str(destination[1])]
    nat.run(["conntrack", "-D", "-p", "udp", *words])


def _keeps_port(nat: Nat, mapping: Mapping) -> bool:
    """Whether the mapping would get its old port again."""
    profile = nat.profile
    many_to_one = profile.kind is Kind.MASQUERADE and profile.ports is Ports.PRESERVED and profile.quirk is None
    return many_to_one and not mapping.forwarded and mapping.public[0] == nat.public_address


def _take(nat: Nat, mapping: Mapping) -> None:
    """Give the mapping's port to somebody else, who has been faster."""
    (address, taken), (remote, port) = mapping.public, mapping.remote
    words = ["-s", _NOBODY, "--sport", str(taken), "-d", remote, "--dport", str(port)]
    nat.run(["conntrack", "-I", "-p", "udp", *words, "--src-nat", f"{address}:{taken}", "-t", str(_TAKEN_SECONDS)])


def _shown(mapping: Mapping) -> str:
    ends = [f"{address}:{port}" for address, port in (mapping.inside, mapping.public, mapping.remote)]
    return f"{ends[0]} as {ends[1]} to {ends[2]}"


def _own(nat: Nat, address: str) -> str:
    """An address of the outside with its prefix length. Raises `FaultError` where it is not there."""
    for one in nat.addresses(nat.wan):
        if one.partition("/")[0] == address:
            return one
    raise FaultError(f"{nat.name} has no address {address}")


def _another(nat: Nat, old: ipaddress.IPv4Interface, asked: str) -> ipaddress.IPv4Interface:
    network = old.network
    last = network[-2] if old.ip != network[-2] else network[-3]
    address = ipaddress.IPv4Address(asked) if asked else last
    if address not in network or address in (old.ip, network[0], network[-1]) or str(address) == _gateway(nat):
        raise FaultError(f"{nat.name}: {address} is no other address of {network}")
    return ipaddress.IPv4Interface(f"{address}/{network.prefixlen}")


def _exchange(nat: Nat, old: ipaddress.IPv4Interface, new: ipaddress.IPv4Interface) -> None:
    index = socket.if_nametoindex(nat.wan)
    length = new.network.prefixlen
    nat.netlink.addr("del", index=index, address=str(old.ip), prefixlen=length)
    nat.netlink.addr("add", index=index, address=str(new.ip), prefixlen=length)


def _gateway(nat: Nat) -> str:
    """The gateway of the default route, or nothing."""
    words = nat.run(["ip", "route", "show", "default"]).stdout.split()
    return words[words.index("via") + 1] if "via" in words else ""
