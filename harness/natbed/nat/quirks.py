"""IPsec-aware misbehaviour as nftables text: what a NAT does to port 500, or to bare ESP, beyond translation.

Where all clients keep port 500, conntrack must know flows apart that look the same from outside. Each inside address
has a conntrack zone of its own (the last 16 bits of the address), so that MASQUERADE gives all of them port 500; and
what comes back is put into the zone of the client that the quirk takes it to be for.

Where the last sender is to get all, zones and a map of who that is will not do. nftables cannot write another value
into an element of a map; and of those that are deleted by packets, each stays in its hash chain until the collector
comes, once a second. With 16 of them the kernel makes the table anew, and refuses what is added meanwhile (linux,
lib/rhashtable.c, RHT_ELASTICITY): the map is empty then. What packets can overwrite is a flow's mark. So all clients
have one flow with a remote end, as if they were one host, and its mark is the address of the one that sent last.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Protocol

from .profile import Kind, NatProfile, Quirk

TABLE = "ip natbed_quirk"
# That ESP gets where IKE has a mapping of its own. What comes back to them is taken for that, so they are none that
# Linux (net.ipv4.ip_local_port_range) gives to a socket inside, which the NAT would keep.
SPLIT_PORTS = (61_000, 61_999)
DAMAGE = bytes.fromhex("1234edcb5678a987")
"""What a zero marker becomes. Its one's complement sum is that of zeros, so that the UDP checksum stays right."""

_IKE = 500
_BEFORE_CONNTRACK = "type filter hook prerouting priority -300; policy accept;"
_AFTER_CONNTRACK = "type filter hook prerouting priority -190; policy accept;"
_AFTER_TRANSLATION = "type filter hook prerouting priority -90; policy accept;"
_FORWARDED = "type filter hook forward priority -1; policy accept;"
_BEFORE_MASQUERADE = "type nat hook postrouting priority 99; policy accept;"
_OWN_ZONE = "ct zone set @nh,112,16"  # the last half of the source address
_SPLIT_ZONE = 1
_SOURCE = "@nh,96,32"  # the source address, as a number
_ALL_CLIENTS = "192.0.0.8"  # RFC 7600, 4.8: an address that no host has


class QuirkTarget(Protocol):
    """What a quirk is put into: a node."""

    def run(self, argv: Sequence[str], *, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; raise when its exit code is not 0."""
        ...


def check(profile: NatProfile) -> None:
    """Raise ValueError where a profile's quirk cannot be: only a NAT with one address for many has any."""
    if profile.quirk is not None and (profile.kind is not Kind.MASQUERADE or profile.addresses != 1):
        raise ValueError(f"NAT profile {profile.name}: the quirk {profile.quirk} is of a masquerade with one address")


def apply(node: QuirkTarget, profile: NatProfile, wan: str, lan: str) -> None:
    """Give the router with these two interfaces its profile's quirk; it has learned nothing then, or forgets it.

    Raises ValueError for a profile that cannot have its quirk, or the node's own errors.
    """
    if text := render(profile, wan, lan):
        node.run(["nft", "-f", "-"], input=text)


def render(profile: NatProfile, wan: str, lan: str) -> str:
    """The input of `nft -f` for the profile's quirk, "" without one. Raises ValueError for what cannot be."""
    check(profile)
    if profile.quirk is None:
        return ""
    lasts = f"{profile.udp_timeout_stream}s"
    blocks = {
        Quirk.PIN_500: _pin,
        Quirk.ONE_CLIENT: _one_client,
        Quirk.FIRST_OWNS_500: _first_owns,
        Quirk.LAST_OWNS_500: _last_owns,
        Quirk.IKE_COOKIES: _cookies,
        Quirk.ESP_SPIS: _spis,
        Quirk.DAMAGES_MARKER: _damages,
        Quirk.SPLITS_MAPPINGS: _splits,
    }[profile.quirk](f'iifname "{lan}" oifname "{wan}"', f'iifname "{wan}" oifname "{lan}"', wan, lan, lasts)
    return "\n".join((f"add table {TABLE}", f"delete table {TABLE}", f"table {TABLE} {{", *blocks, "}", ""))


def _pin(_out: str, _in: str, wan: str, _lan: str, _lasts: str) -> list[str]:
    return [_chain("keep", _BEFORE_MASQUERADE, f'oifname "{wan}" udp sport {_IKE} masquerade to :{_IKE}')]


def _one_client(out: str, into: str, _wan: str, _lan: str, lasts: str) -> list[str]:
    return [
        # a full set takes no other element: the rule does not match, and the next one does
        _block("set", "user", "type ipv4_addr", "size 1", "flags dynamic,timeout", f"timeout {lasts}"),
        _chain(
            "admit",
            _FORWARDED,
            f"{out} udp sport {_IKE} update @user {{ ip saddr }} accept",
            f"{out} udp sport {_IKE} drop",
            f"{into} udp dport {_IKE} update @user {{ ip daddr }}",
        ),
    ]


def _first_owns(out: str, _into: str, wan: str, lan: str, lasts: str) -> list[str]:
    # update only refreshes an element that is there
    return _owned(wan, lan, lasts, f"{out} udp sport {_IKE} update @owner {{ udp sport : ct zone }}")


def _last_owns(_out: str, _into: str, wan: str, lan: str, lasts: str) -> list[str]:
    return _shared(wan, lan, lasts, f"udp sport {_IKE}")


def _owned(wan: str, lan: str, lasts: str, *learn: str) -> list[str]:
    return [
        _map("owner", "udp sport : ct zone", lasts),
        _chain(
            "tell",
            _BEFORE_CONNTRACK,
            f'iifname "{lan}" udp sport {_IKE} {_OWN_ZONE}',
            f'iifname "{wan}" udp dport {_IKE} ct zone set udp dport map @owner',
        ),
        _chain("learn", _FORWARDED, *learn),
    ]


def _cookies(out: str, _into: str, wan: str, lan: str, lasts: str) -> list[str]:
    cookie = "@th,64,64"
    return [
        _map("cookies", f"{cookie} : ct zone", lasts),
        _chain(
            "tell",
            _BEFORE_CONNTRACK,
            f'iifname "{lan}" udp sport {_IKE} {_OWN_ZONE}',
            f'iifname "{wan}" udp dport {_IKE} ct zone set {cookie} map @cookies',
        ),
        # eight zeros are a cookie like any: all ESP is for the client that sent some first
        _chain("learn", _FORWARDED, f"{out} udp sport {_IKE} update @cookies {{ {cookie} : ct zone }}"),
    ]


def _spis(_out: str, into: str, wan: str, lan: str, lasts: str) -> list[str]:
    spi = "ip saddr . esp spi"
    return [
        _map("spis", f"{spi} : ip daddr", lasts),
        _chain("learn", _FORWARDED, f"{into} update @spis {{ {spi} : ip daddr }}"),
        *_shared(wan, lan, lasts, "ip protocol esp", f"ip daddr set {spi} map @spis"),
    ]


def _shared(wan: str, lan: str, lasts: str, what: str, *known: str) -> list[str]:
    """One flow for all clients with each remote end; its answers are for who sent last, or for whom `known` says."""
    answer = f'iifname "{wan}" ip daddr {_ALL_CLIENTS}'
    return [
        # nft writes no number into an address, but what a map has for it
        _map("clients", "meta mark : ip saddr", lasts),
        _chain(
            "hide",
            _BEFORE_CONNTRACK,
            f'iifname "{lan}" {what} meta mark set {_SOURCE} update @clients {{ meta mark : ip saddr }} '
            f"ip saddr set {_ALL_CLIENTS}",
        ),
        _chain(
            "show",
            _AFTER_CONNTRACK,
            f'iifname "{lan}" ip saddr {_ALL_CLIENTS} ct mark set meta mark ip saddr set meta mark map @clients '
            "meta mark set 0",
        ),
        _chain(
            "tell",
            _AFTER_TRANSLATION,
            *(f"{answer} {rule}" for rule in known),
            f"{answer} ip daddr set ct mark map @clients",
            f"{answer} drop",
        ),
    ]


def _damages(out: str, into: str, _wan: str, _lan: str, _lasts: str) -> list[str]:
    overwritten = f"@th,64,64 0 @th,64,64 set 0x{DAMAGE.hex()}"
    return [
        _chain("damage", _FORWARDED, f"{out} udp sport {_IKE} {overwritten}", f"{into} udp dport {_IKE} {overwritten}")
    ]


def _splits(_out: str, _into: str, wan: str, lan: str, _lasts: str) -> list[str]:
    ports = "-".join(map(str, SPLIT_PORTS))
    return [
        _chain(
            "tell",
            _BEFORE_CONNTRACK,
            f'iifname "{lan}" udp sport {_IKE} @th,64,64 0 ct zone set {_SPLIT_ZONE}',
            f'iifname "{wan}" udp dport {ports} ct zone set {_SPLIT_ZONE}',
        ),
        _chain(
            "split",
            _BEFORE_MASQUERADE,
            f'oifname "{wan}" ct zone {_SPLIT_ZONE} udp sport {_IKE} masquerade to :{ports}',
        ),
    ]


# nftables' grammar


def _map(name: str, types: str, lasts: str) -> str:
    return _block("map", name, f"typeof {types}", "size 65535", "flags dynamic,timeout", f"timeout {lasts}")


def _chain(name: str, *lines: str) -> str:
    return _block("chain", name, *lines)


def _block(what: str, name: str, *lines: str) -> str:
    return "\n".join((f"\t{what} {name} {{", *(f"\t\t{line}" for line in lines), "\t}"))
