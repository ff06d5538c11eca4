"""NATs that remember their mappings, as nftables text, and how that gets into a node."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from natbed.nat import nft, presets, remembering, rules
from natbed.nat.profile import Forward, Fragments, Hairpinning, Pooling, Ports, Refresh, ZeroChecksum
from natbed.nat.profile import Mapping as Axis
from natbed.nat.remembering import Where, paired

ONE = Where(outside=("203.0.113.2",), hosts=("192.168.1.11", "192.168.1.12"), network="192.168.1.0/24")
TWO = msgspec.structs.replace(presets.PORT_RESTRICTED_CONE, addresses=2)
ADDRESSES = ("203.0.113.2", "203.0.113.3")


def chain(text: str, name: str) -> list[str]:
    """The lines of a chain, set or map."""
    lines = text.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.split()[1:2] == [name] and line.endswith("{"))
    return [line.strip() for line in lines[begin + 1 : lines.index("\t}", begin)]]


def test_a_full_cone_is_this_table() -> None:
    text = remembering.render(msgspec.structs.replace(presets.FULL_CONE, hairpinning=Hairpinning.NONE), "w", "l", ONE)
    assert text.startswith("table ip natbed {\n}\nflush table ip natbed\ntable ip natbed {\n\tset taken0 {\n")
    assert chain(text, "inside") == [
        "type ipv4_addr . inet_service : ipv4_addr . inet_service",
        "size 65536",
        "flags dynamic,timeout",
    ]
    assert chain(text, "fresh0") == [
        "udp sport != @taken0 snat to 203.0.113.2 : udp sport",
        "meta l4proto udp snat to 203.0.113.2:1024-65535 fully-random",
        "snat to 203.0.113.2",
    ]
    assert chain(text, "translate") == ["meta l4proto udp snat ip to ip saddr . udp sport map @outside", "goto fresh0"]
    assert chain(text, "outward") == [
        "type nat hook postrouting priority 100; policy accept;",
        'oifname "w" goto translate',
    ]
    assert chain(text, "inward") == [
        "type nat hook prerouting priority -100; policy accept;",
        'iifname "w" meta l4proto udp dnat ip to ip daddr . udp dport map @inside',
    ]
    origin = "ct original ip saddr . ct original proto-src"
    assert chain(text, "clashes") == [
        "type filter hook postrouting priority 110; policy accept;",
        "ct state new ct direction original ip saddr 203.0.113.2 udp sport @taken0 "
        f"ip saddr . udp sport . {origin} != @owned drop",
        "ct state new ct direction original ip saddr 203.0.113.2 meta l4proto udp "
        f"ip saddr . udp sport . {origin} != @owned "
        "add @claimed { ip saddr . udp sport timeout 1s limit rate over 1/second burst 1 packets } drop",
    ]
    assert chain(text, "learn")[:4] == [
        "meta l4proto udp ct direction original ip saddr 203.0.113.2 update @taken0 { udp sport timeout 300s }",
        f"meta l4proto udp ct direction original update @owned {{ ip saddr . udp sport . {origin} timeout 300s }}",
        f"meta l4proto udp ct direction original update @inside {{ ip saddr . udp sport timeout 300s : {origin} }}",
        f"meta l4proto udp ct direction original update @outside {{ {origin} timeout 300s : ip saddr . udp sport }}",
    ]


def test_what_a_mapping_depends_on_is_in_its_key() -> None:
    cone = presets.PORT_RESTRICTED_CONE
    keys = {}
    for mapping in list(Axis)[1:]:
        text = remembering.render(msgspec.structs.replace(cone, mapping=mapping), "w", "l", ONE)
        keys[mapping] = chain(text, "owned")[0].removeprefix("type ipv4_addr . inet_service . "), "@outside" in text
    assert keys == {
        "endpoint-independent": ("ipv4_addr . inet_service", True),
        "address-dependent": ("ipv4_addr . inet_service . ipv4_addr", True),
        "address-and-port-dependent": ("ipv4_addr . inet_service . ipv4_addr . inet_service", False),
    }


def test_filtering_says_who_is_let_in() -> None:
    restricted = remembering.render(presets.ADDRESS_RESTRICTED_CONE, "w", "l", ONE)
    assert chain(restricted, "inward")[1:] == [
        'iifname "w" ip daddr . udp dport . ip saddr @contacted meta l4proto udp '
        "dnat ip to ip daddr . udp dport map @inside"
    ]
    assert "chain inward" not in remembering.render(presets.PORT_RESTRICTED_CONE, "w", "l", ONE)


def test_hairpinning_shows_the_outside() -> None:
    text = remembering.render(presets.FULL_CONE, "w", "l", ONE)
    assert 'oifname "l" ip saddr 192.168.1.0/24 ct status dnat goto translate' in chain(text, "outward")
    assert 'iifname "l" meta l4proto udp dnat ip to ip daddr . udp dport map @inside' in chain(text, "inward")


def test_ports_are_chosen_as_the_profile_says() -> None:
    def fresh(ports: Ports, last: int = 4999) -> list[str]:
        changed = msgspec.structs.replace(presets.PORT_RESTRICTED_CONE, ports=ports, port_range=(4000, last))
        return chain(remembering.render(changed, "w", "l", ONE), "fresh0")

    assert fresh(Ports.CONTIGUOUS, last=4002)[0] == (
        "meta l4proto udp snat to 203.0.113.2 : numgen inc mod 3 map { 0 : 4000, 1 : 4001, 2 : 4002 }"
    )
    assert fresh(Ports.RANDOM)[0] == "meta l4proto udp snat to 203.0.113.2:4000-4999 fully-random"
    overloaded = remembering.render(msgspec.structs.replace(presets.MASQUERADE, ports=Ports.OVERLOADED), "w", "l", ONE)
    assert chain(overloaded, "fresh0")[0] == "meta l4proto udp snat to 203.0.113.2 : udp sport"
    assert "update" not in overloaded


def test_several_addresses_are_paired_by_the_last_bits_or_given_out_in_turn() -> None:
    where = Where(outside=ADDRESSES, network=ONE.network)
    both = remembering.render(TWO, "w", "l", where)
    assert chain(both, "translate")[-1] == "ip saddr & 0.0.0.1 vmap { 0.0.0.0 : goto fresh0, 0.0.0.1 : goto fresh1 }"
    assert [paired(inside, ADDRESSES) for inside in ("192.168.1.11", "192.168.1.12")] == ["203.0.113.3", "203.0.113.2"]
    any_of = remembering.render(msgspec.structs.replace(TWO, pooling=Pooling.ARBITRARY), "w", "l", where)
    assert chain(any_of, "translate")[-1] == "numgen inc mod 2 vmap { 0 : goto fresh0, 1 : goto fresh1 }"
    with pytest.raises(ValueError, match="it has 2 outside addresses, not 1"):
        remembering.render(TWO, "w", "l", ONE)


def test_a_forwarded_port_is_given_to_nobody_else() -> None:
    profile = msgspec.structs.replace(presets.PORT_FORWARD, forwards=(Forward(500, inside=2),))
    text = remembering.render(profile, "w", "l", ONE)
    assert chain(text, "inward")[1] == 'iifname "w" ip daddr 203.0.113.2 udp dport 500 dnat to 192.168.1.12'
    assert chain(text, "translate")[0] == "ip saddr 192.168.1.12 udp sport 500 snat to 203.0.113.2:500"
    assert chain(text, "fresh0")[0] == "udp sport != @taken0 udp sport != 500 snat to 203.0.113.2 : udp sport"
    with pytest.raises(ValueError, match="a port is for host 2 of a LAN that has 1"):
        remembering.render(profile, "w", "l", Where(ONE.outside, ONE.hosts[:1], ONE.network))


def test_refresh_by_outbound_packets_alone_shuts_inbound_ones_out_at_its_end() -> None:
    profile = msgspec.structs.replace(presets.PORT_RESTRICTED_CONE, refresh=Refresh.OUTBOUND)
    text = remembering.render(profile, "w", "l", ONE)
    assert "chain refresh" not in text
    assert chain(text, "ended")[1:] == [
        'iifname "w" ip daddr 203.0.113.2 udp dport != @taken0 counter name "refused" drop'
    ]


def test_fragments_are_dropped_before_conntrack_puts_them_together() -> None:
    profile = msgspec.structs.replace(
        presets.MASQUERADE, fragments=Fragments.DROPPED, zero_checksum=ZeroChecksum.DROPPED
    )
    assert remembering.render(profile, "w", "l") == (
        "table ip natbed {\n}\nflush table ip natbed\ntable ip natbed {\n"
        "\tchain fragments {\n"
        "\t\ttype filter hook prerouting priority -450; policy accept;\n"
        '\t\tiifname { "w", "l" } ip frag-off & 0x3fff != 0 drop\n'
        "\t}\n"
        "\tchain checksums {\n"
        "\t\ttype filter hook forward priority 0; policy accept;\n"
        "\t\tudp checksum 0 drop\n"
        "\t}\n"
        "}\n"
    )
    assert rules.rules_of(rules.render(profile, "w", "l")) == rules.rules_of(rules.render(presets.MASQUERADE, "w", "l"))


@pytest.mark.parametrize("name", ["masquerade", "one-to-one", "routed", "home-router", "symmetric"])
def test_where_iptables_can_say_it_nftables_is_not_asked(name: str) -> None:
    assert remembering.render(presets.PRESETS[name], "w", "l") == ""


class FakeNode:
    """Takes a table, and has one chain more or fewer of it than it was given."""

    name = "nat"

    def __init__(self, listed: Sequence[tuple[str, int]]) -> None:
        self.listed = listed
        self.given = ""

    def run(self, argv: Sequence[str], *, input: str | None = None) -> subprocess.CompletedProcess[str]:
        self.given = self.given or input or ""
        found = [{"chain": {"name": name}} for name, _ in self.listed]
        found += [{"rule": {"chain": name}} for name, count in self.listed for _ in range(count)]
        return subprocess.CompletedProcess(list(argv), 0, json.dumps({"nftables": found}), "")

    def sysctl(self, settings: Mapping[str, object]) -> None:
        raise NotImplementedError


def test_a_table_that_did_not_take_is_a_broken_lab() -> None:
    profile = msgspec.structs.replace(
        presets.MASQUERADE, fragments=Fragments.DROPPED, zero_checksum=ZeroChecksum.DROPPED
    )
    text = remembering.render(profile, "w", "l")
    node = FakeNode([("fragments", 1), ("checksums", 1)])
    nft.install(node, text)
    assert node.given == text
    for listed in ([("fragments", 1)], [("fragments", 1), ("checksums", 2)], [("fragments", 0), ("checksums", 1)]):
        with pytest.raises(rules.NatError, match="nat: rules in nftables' chains"):
            nft.install(FakeNode(listed), text)
