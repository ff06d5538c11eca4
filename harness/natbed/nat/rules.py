"""A profile as iptables rules: the text, and how it gets into a NAT and is found there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol

from .profile import Kind, NatProfile

_REFUSED = re.compile(r"^\[(\d+):\d+\] -A INPUT .*-p udp .*--ctstate NEW -j DROP$", re.MULTILINE)


class NatError(Exception):
    """The NAT does not have the rules that its profile asks for: a broken lab."""


class RulesTarget(Protocol):
    """What rules are put into: a node."""

    name: str

    def run(self, argv: Sequence[str], *, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; raise when its exit code is not 0."""
        ...

    def sysctl(self, settings: Mapping[str, object]) -> None:
        """Write and read back settings."""
        ...


def render(profile: NatProfile, wan: str, lan: str, static: Sequence[tuple[str, str]] = ()) -> str:
    """The input of iptables-restore that makes a router with these two interfaces the NAT of the profile.

    `static` are the pairs of a 1:1 NAT, outside address and inside address. A plain router gets no `nat` table at all,
    and so no connection tracking.
    """
    if profile.kind is Kind.NONE:
        return _table("filter", ("INPUT", "FORWARD", "OUTPUT"))
    if profile.kind is Kind.ONE_TO_ONE:
        return _one_to_one(wan, lan, static)
    return _table(
        "nat",
        ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        f"-A POSTROUTING -o {wan} -j MASQUERADE",
    ) + _table(
        "filter",
        ("INPUT", "FORWARD", "OUTPUT"),
        # A packet to a mapping that has expired is for the NAT itself: answered, it would leave a conntrack entry
        # that takes the client's port away. Devices drop it.
        f"-A INPUT -i {wan} -p udp -m conntrack --ctstate NEW -j DROP",
        f"-A FORWARD -i {wan} -o {lan} -m conntrack --ctstate NEW -j DROP",
    )


def _one_to_one(wan: str, lan: str, static: Sequence[tuple[str, str]]) -> str:
    return _table(
        "nat",
        ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        *(f"-A PREROUTING -d {outside}/32 -i {wan} -j NETMAP --to {inside}/32" for outside, inside in static),
        *(f"-A POSTROUTING -s {inside}/32 -o {wan} -j NETMAP --to {outside}/32" for outside, inside in static),
    ) + _table(
        "filter",
        ("INPUT", "FORWARD", "OUTPUT"),
        f"-A INPUT -i {wan} -p udp -m conntrack --ctstate NEW -j DROP",
        # Inside addresses are reached by their outside ones alone.
        f"-A FORWARD -i {wan} -o {lan} -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
    )


def render_prefixes(lan: str, network: str, mapped: str, remote: tuple[str, str] | None = None) -> str:
    """The input of iptables-restore for a gateway between a LAN, at interface `lan`, and tunnels (the draft, 1).

    The LAN is `network`, and `mapped` in the tunnels: a source is mapped before tunnel ingress, and a destination back.
    `remote` are a network in the tunnels and another as which that appears on the LAN: a source is mapped after tunnel
    egress, and a destination back.
    """
    rules = []
    if mapped != network:
        rules.append(f"-A PREROUTING -d {mapped} ! -i {lan} -j NETMAP --to {network}")
        rules.append(f"-A POSTROUTING -s {network} ! -o {lan} -j NETMAP --to {mapped}")
    if remote is not None:
        inside, appears = remote
        rules.append(f"-A PREROUTING -d {appears} -i {lan} -j NETMAP --to {inside}")
        rules.append(f"-A POSTROUTING -s {inside} -o {lan} -j NETMAP --to {appears}")
    return _table("nat", ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), *rules)


def _table(name: str, chains: Sequence[str], *rules: str) -> str:
    return "\n".join((f"*{name}", *(f":{chain} ACCEPT [0:0]" for chain in chains), *rules, "COMMIT", ""))


def timeouts(udp: int, udp_stream: int) -> dict[str, int]:
    """The sysctl settings that end idle UDP mappings after so many seconds; one takes them with its next packet."""
    return {
        "net.netfilter.nf_conntrack_udp_timeout": udp,
        "net.netfilter.nf_conntrack_udp_timeout_stream": udp_stream,
    }


def settings(profile: NatProfile) -> dict[str, int]:
    """The sysctl settings of a NAT: its timeouts in seconds, that conntrack tells of births and deaths, and counts."""
    if profile.kind is Kind.NONE:
        return {}
    return {
        **timeouts(profile.udp_timeout, profile.udp_timeout_stream),
        "net.netfilter.nf_conntrack_acct": 1,
        "net.netfilter.nf_conntrack_events": 1,
        "net.netfilter.nf_conntrack_timestamp": 1,
    }


def apply(node: RulesTarget, profile: NatProfile, wan: str, lan: str, static: Sequence[tuple[str, str]] = ()) -> None:
    """Make `node` the NAT of the profile, and see that it is. Raises `NatError`, or the node's own errors."""
    install(node, render(profile, wan, lan, static))
    node.sysctl(settings(profile))  # after the rules: where conntrack is a module, they load it


def install(node: RulesTarget, text: str) -> None:
    """Put the rules of `text` into the node, and see that it has them. Raises `NatError`, or the node's own errors."""
    node.run(["iptables-restore"], input=text)
    verify(node, text)


def verify(node: RulesTarget, text: str) -> None:
    """See that exactly the rules of `text` are in the node, no more and no fewer. Raises `NatError`."""
    asked = rules_of(text)
    found = rules_of(node.run(["iptables-save"]).stdout)
    if asked != found:
        missing = [rule for rule in asked if rule not in found]
        foreign = [rule for rule in found if rule not in asked]
        raise NatError(f"{node.name}: rules missing: {missing or 'none'}; not asked for: {foreign or 'none'}")


def refused(node: RulesTarget) -> int:
    """How many UDP packets from outside the NAT has dropped because they were for no mapping."""
    return sum(int(found) for found in _REFUSED.findall(node.run(["iptables-save", "-c", "-t", "filter"]).stdout))


def rules_of(text: str) -> list[str]:
    """The rules in iptables-save's format, each behind its table, in an order that does not depend on the tables'."""
    rules: list[str] = []
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A"):
            rules.append(f"{table}: {line.strip()}")
    return sorted(rules)  # MASQUERADE and the two DROP rules commute
