"""IPsec-aware misbehaviour as nftables text: what a NAT does to port 500, or to bare ESP, beyond translation.

Where all clients keep port 500, conntrack must know flows apart that look the same from outside. Each inside address
has a conntrack zone of its own (the last 16 bits of the address), so that MASQUERADE gives all of them port 500; and
what comes back is put into the zone of the client that the quirk takes it to be for.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Protocol

from .profile import Kind, NatProfile, Quirk

TABLE = "ip natbed_quirk"
SPLIT_PORTS = (50_000, 50_999)  # that ESP gets where IKE has a mapping of its own
DAMAGE = bytes.fromhex("1234edcb5678a987")
"""What a zero marker becomes. Its one's complement sum is that of zeros, so that the UDP checksum stays right."""

_IKE = 500
_BEFORE_CONNTRACK = "type filter hook prerouting priority -300; policy accept;"
_FORWARDED = "type filter hook forward priority -1; policy accept;"
_BEFORE_MASQUERADE = "type nat hook postrouting priority 99; policy accept;"
_OWN_ZONE = "ct zone set @nh,112,16"  # the last half of the source address
_SPLIT_ZONE = 1


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


def _last_owns(out: str, _into: str, wan: str, lan: str, lasts: str) -> list[str]:
    learn = f"{out} udp sport {_IKE}"
    return _owned(
        wan,
        lan,
        lasts,
        f"{learn} delete @owner {{ udp sport : ct zone }}",
        f"{learn} add @owner {{ udp sport : ct zone }}",
    )


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


def _spis(out: str, into: str, wan: str, lan: str, lasts: str) -> list[str]:
    spi = "ip saddr . esp spi"
    return [
        _map("last", "ip daddr : ct zone", lasts),
        _map("spis", f"{spi} : ct zone", lasts),
        _chain(
            "tell",
            _BEFORE_CONNTRACK,
            f'iifname "{lan}" ip protocol esp {_OWN_ZONE}',
            # a zone that is set stays: the guess is for SPIs that are not known yet
            f'iifname "{wan}" ct zone set {spi} map @spis',
            f'iifname "{wan}" ip protocol esp ct zone set ip saddr map @last',
        ),
        _chain(
            "learn",
            _FORWARDED,
            f"{into} update @spis {{ {spi} : ct zone }}",
            f"{out} ip protocol esp delete @last {{ ip daddr : ct zone }}",
            f"{out} ip protocol esp add @last {{ ip daddr : ct zone }}",
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
