"""A profile as iptables rules: the text, and how it gets into a NAT and is found there.

Of UDP, what iptables cannot say, `remembering` does in nftables' terms. TCP and all else is translated as MASQUERADE
does it, whatever the profile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from . import limits, nft, quirks, remembering
from .profile import Filtering, Kind, Late, NatProfile, Ports, Refresh
from .remembering import NOWHERE, Where
from .target import NatError, RulesTarget

__all__ = ["NatError", "RulesTarget"]

_REFUSED = re.compile(r"^\[(\d+):\d+\] -A INPUT .*-p udp .*--ctstate NEW -j (?:DROP|REJECT.*)$", re.MULTILINE)


def render(profile: NatProfile, wan: str, lan: str, static: Sequence[tuple[str, str]] = ()) -> str:
    """The input of iptables-restore that makes a router with these two interfaces the NAT of the profile.

    `static` are the pairs of a 1:1 NAT, outside address and inside address. A plain router gets no `nat` table at all,
    and so no connection tracking. Raises ValueError for a profile that no rules make.
    """
    limits.check(profile)
    if profile.kind is Kind.NONE:
        return _table("filter", ("INPUT", "FORWARD", "OUTPUT"))
    if profile.kind is Kind.ONE_TO_ONE:
        return _one_to_one(profile, wan, lan, static)
    translation = ""
    if not limits.remembers(profile) and profile.ports is not Ports.OVERLOADED:
        translation = _table("nat", ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), *_masquerade(profile, wan))
    let_in = "! --ctstate RELATED,ESTABLISHED,DNAT" if limits.remembers(profile) else "--ctstate NEW"
    return translation + _table(
        "filter",
        ("INPUT", "FORWARD", "OUTPUT"),
        _late(profile, wan),
        f"-A FORWARD -i {wan} -o {lan} -m conntrack {let_in} -j DROP",
    )


def _masquerade(profile: NatProfile, wan: str) -> list[str]:
    usual = f"-A POSTROUTING -o {wan} -j MASQUERADE"
    if limits.as_linux(profile):
        return [usual]
    first, last = profile.port_range
    return [f"-A POSTROUTING -o {wan} -p udp -j MASQUERADE --to-ports {first}-{last} --random-fully", usual]


def _late(profile: NatProfile, wan: str) -> str:
    """A packet to a mapping that has expired is for the NAT itself.

    Answered by that, it would leave a conntrack entry that takes the client's port away. Devices drop it.
    """
    verdict = "REJECT --reject-with icmp-port-unreachable" if profile.late is Late.REJECTED else "DROP"
    return f"-A INPUT -i {wan} -p udp -m conntrack --ctstate NEW -j {verdict}"


def _one_to_one(profile: NatProfile, wan: str, lan: str, static: Sequence[tuple[str, str]]) -> str:
    reachable = profile.filtering is Filtering.ENDPOINT_INDEPENDENT
    return _table(
        "nat",
        ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        *(f"-A PREROUTING -d {outside}/32 -i {wan} -j NETMAP --to {inside}/32" for outside, inside in static),
        *(f"-A POSTROUTING -s {inside}/32 -o {wan} -j NETMAP --to {outside}/32" for outside, inside in static),
    ) + _table(
        "filter",
        ("INPUT", "FORWARD", "OUTPUT"),
        _late(profile, wan),
        # Inside addresses are reached by their outside ones alone.
        f"-A FORWARD -i {wan} -o {lan} -m conntrack ! --ctstate RELATED,ESTABLISHED{',DNAT' * reachable} -j DROP",
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


def apply(
    node: RulesTarget,
    profile: NatProfile,
    wan: str,
    lan: str,
    static: Sequence[tuple[str, str]] = (),
    where: Where = NOWHERE,
) -> None:
    """Make `node` the NAT of the profile, and see that it is.

    Raises `NatError`, the node's own errors, or ValueError for a profile that no rules make.
    """
    install(node, render(profile, wan, lan, static))
    if text := remembering.render(profile, wan, lan, where):
        nft.install(node, text)
    node.sysctl(settings(profile))  # after the rules: where conntrack is a module, they load it
    quirks.apply(node, profile, wan, lan)


def time_out(node: RulesTarget, profile: NatProfile, where: Where, seconds: int | None = None) -> None:
    """From now on forget UDP mappings after so many seconds, or those of the profile that the node has.

    A mapping takes that with its next packet. Raises the node's own errors.
    """
    if seconds is not None:
        profile = msgspec.structs.replace(profile, udp_timeout=seconds, udp_timeout_stream=seconds)
    if text := remembering.render_timeouts(profile, where):
        node.run(["nft", "-f", "-"], input=text)
    node.sysctl(timeouts(profile.udp_timeout, profile.udp_timeout_stream))


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


def refused(node: RulesTarget, profile: NatProfile) -> int:
    """How many UDP packets from outside the NAT of the profile has dropped because they were for no mapping."""
    found = _REFUSED.findall(node.run(["iptables-save", "-c", "-t", "filter"]).stdout)
    return sum(map(int, found)) + (nft.refused(node) if profile.refresh is not Refresh.BOTH else 0)


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
