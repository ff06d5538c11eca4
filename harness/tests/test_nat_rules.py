"""NAT profiles as iptables rules, as text."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from natbed.nat import presets, rules
from natbed.nat.profile import NatProfile


class FakeNode:
    """Takes rules and shows them again; one may be lost on the way."""

    name = "nat"

    def __init__(self, loses: str = "", has: str = "") -> None:
        self.loses = loses
        self.has = has
        self.text = ""
        self.settings: dict[str, object] = {}

    def run(self, argv: Sequence[str], *, input: str | None = None) -> subprocess.CompletedProcess[str]:
        if list(argv) == ["iptables-restore"]:
            self.text = "\n".join(line for line in (input or "").splitlines() if line != self.loses)
        return subprocess.CompletedProcess(list(argv), 0, self.has + self.text, "")

    def sysctl(self, settings: Mapping[str, object]) -> None:
        self.settings.update(settings)


def test_masquerade_is_these_rules() -> None:
    assert rules.render(presets.MASQUERADE, "nat-eth0", "nat-eth1") == (
        "*nat\n"
        ":PREROUTING ACCEPT [0:0]\n"
        ":INPUT ACCEPT [0:0]\n"
        ":OUTPUT ACCEPT [0:0]\n"
        ":POSTROUTING ACCEPT [0:0]\n"
        "-A POSTROUTING -o nat-eth0 -j MASQUERADE\n"
        "COMMIT\n"
        "*filter\n"
        ":INPUT ACCEPT [0:0]\n"
        ":FORWARD ACCEPT [0:0]\n"
        ":OUTPUT ACCEPT [0:0]\n"
        "-A INPUT -i nat-eth0 -p udp -m conntrack --ctstate NEW -j DROP\n"
        "-A FORWARD -i nat-eth0 -o nat-eth1 -m conntrack --ctstate NEW -j DROP\n"
        "COMMIT\n"
    )


def test_one_to_one_maps_both_ways_and_lets_in_what_is_for_an_outside_address() -> None:
    pairs = [("203.0.113.3", "192.168.1.11"), ("203.0.113.4", "192.168.1.12")]
    assert rules.render(presets.ONE_TO_ONE, "w", "l", pairs) == (
        "*nat\n"
        ":PREROUTING ACCEPT [0:0]\n"
        ":INPUT ACCEPT [0:0]\n"
        ":OUTPUT ACCEPT [0:0]\n"
        ":POSTROUTING ACCEPT [0:0]\n"
        "-A PREROUTING -d 203.0.113.3/32 -i w -j NETMAP --to 192.168.1.11/32\n"
        "-A PREROUTING -d 203.0.113.4/32 -i w -j NETMAP --to 192.168.1.12/32\n"
        "-A POSTROUTING -s 192.168.1.11/32 -o w -j NETMAP --to 203.0.113.3/32\n"
        "-A POSTROUTING -s 192.168.1.12/32 -o w -j NETMAP --to 203.0.113.4/32\n"
        "COMMIT\n"
        "*filter\n"
        ":INPUT ACCEPT [0:0]\n"
        ":FORWARD ACCEPT [0:0]\n"
        ":OUTPUT ACCEPT [0:0]\n"
        "-A INPUT -i w -p udp -m conntrack --ctstate NEW -j DROP\n"
        "-A FORWARD -i w -o l -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
        "COMMIT\n"
    )


def test_a_symmetric_nat_is_these_rules() -> None:
    assert rules.rules_of(rules.render(presets.SYMMETRIC, "w", "l")) == [
        "filter: -A FORWARD -i w -o l -m conntrack --ctstate NEW -j DROP",
        "filter: -A INPUT -i w -p udp -m conntrack --ctstate NEW -j DROP",
        "nat: -A POSTROUTING -o w -j MASQUERADE",
        "nat: -A POSTROUTING -o w -p udp -j MASQUERADE --to-ports 1024-65535 --random-fully",
    ]


def test_what_is_late_may_be_rejected() -> None:
    assert rules.rules_of(rules.render(presets.HOME_ROUTER, "w", "l"))[1] == (
        "filter: -A INPUT -i w -p udp -m conntrack --ctstate NEW -j REJECT --reject-with icmp-port-unreachable"
    )


def test_who_remembers_mappings_has_its_translation_in_nftables() -> None:
    assert rules.rules_of(rules.render(presets.FULL_CONE, "w", "l")) == [
        "filter: -A FORWARD -i w -o l -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        "filter: -A INPUT -i w -p udp -m conntrack --ctstate NEW -j DROP",
    ]


def test_a_gateway_maps_its_lan_before_ingress_and_the_other_after_egress() -> None:
    before = rules.render_prefixes("l", "192.168.1.0/24", "10.2.0.0/24")
    assert rules.rules_of(before) == [
        "nat: -A POSTROUTING -s 192.168.1.0/24 ! -o l -j NETMAP --to 10.2.0.0/24",
        "nat: -A PREROUTING -d 10.2.0.0/24 ! -i l -j NETMAP --to 192.168.1.0/24",
    ]
    after = rules.render_prefixes("l", "192.168.1.0/24", "192.168.1.0/24", ("192.168.1.0/24", "10.1.0.0/24"))
    assert rules.rules_of(after) == [
        "nat: -A POSTROUTING -s 192.168.1.0/24 -o l -j NETMAP --to 10.1.0.0/24",
        "nat: -A PREROUTING -d 10.1.0.0/24 -i l -j NETMAP --to 192.168.1.0/24",
    ]


def test_a_router_translates_filters_and_tracks_nothing() -> None:
    text = rules.render(presets.ROUTED, "nat-eth0", "nat-eth1")
    assert rules.rules_of(text) == []
    assert "*nat" not in text
    assert rules.settings(presets.ROUTED) == {}


def test_timeouts_of_the_profile_reach_the_kernel() -> None:
    node = FakeNode()
    rules.apply(node, msgspec.structs.replace(presets.MASQUERADE, udp_timeout=3, udp_timeout_stream=5), "w", "l")
    assert node.settings["net.netfilter.nf_conntrack_udp_timeout"] == 3
    assert node.settings["net.netfilter.nf_conntrack_udp_timeout_stream"] == 5
    assert node.settings["net.netfilter.nf_conntrack_events"] == 1
    assert node.settings["net.netfilter.nf_conntrack_timestamp"] == 1
    assert node.settings["net.netfilter.nf_conntrack_acct"] == 1


def test_a_rule_that_did_not_take_is_named() -> None:
    with pytest.raises(rules.NatError, match=r"nat: rules missing: \['nat: -A POSTROUTING -o w -j MASQUERADE'\]"):
        rules.apply(FakeNode(loses="-A POSTROUTING -o w -j MASQUERADE"), presets.MASQUERADE, "w", "l")


def test_a_rule_of_before_is_named() -> None:
    node = FakeNode(has="*nat\n-A POSTROUTING -o w -j MASQUERADE\nCOMMIT\n")
    with pytest.raises(rules.NatError, match=r"not asked for: \['nat: -A POSTROUTING"):
        rules.apply(node, presets.ROUTED, "w", "l")


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=str)
def test_presets_are_found_by_their_names(preset: NatProfile) -> None:
    assert presets.PRESETS[preset.name] is preset


def test_a_timeout_is_a_second_at_least() -> None:
    with pytest.raises(ValueError, match="masquerade: a UDP timeout"):
        msgspec.structs.replace(presets.MASQUERADE, udp_timeout=0)
