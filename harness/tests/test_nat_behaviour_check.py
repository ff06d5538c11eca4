"""A NAT that is not what was declared is a broken lab, before a cell relies on it."""

from __future__ import annotations

import pathlib

import msgspec
import pytest
from lab_world import home
from nat_survey import iptables

from natbed.checks import Verdict
from natbed.nat import presets
from natbed.nat.behaviour import check_behaviour
from natbed.nat.profile import NatProfile, Quirk
from natbed.probes import subjects

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.mark.parametrize("profile", presets.PRESETS.values(), ids=presets.PRESETS)
def test_each_preset_is_what_it_says_and_that_is_soon_known(tmp_path: pathlib.Path, profile: NatProfile) -> None:
    with home(tmp_path, 2, profile) as world:
        result = check_behaviour(subjects(world.lab.scenario, world.lab))
    assert (result.name, result.verdict) == ("NAT behaviour", Verdict.PASSED), result.reason
    assert result.reason == f"nat: {profile.mapping}/{profile.filtering}/{profile.ports}"
    assert result.details["seconds"] < 0.5


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            ["-t nat -F POSTROUTING", "-t nat -A POSTROUTING -o nat-eth0 -j MASQUERADE --random-fully"],
            "mapping: declared endpoint-independent, measured address-and-port-dependent; "
            "ports: declared preserved, measured random",
        ),
        (
            ["-t nat -F POSTROUTING", "-t nat -A POSTROUTING -o nat-eth0 -p udp -j MASQUERADE --to-ports 50000-50999"],
            "ports: declared preserved, measured random",
        ),
        (
            ["-F FORWARD", "-t nat -A PREROUTING -i nat-eth0 -p udp -j DNAT --to-destination 192.168.1.11"],
            "filtering: declared address-and-port-dependent, measured endpoint-independent",
        ),
        (["-I FORWARD -p udp -j DROP"], "does not answer"),
    ],
    ids=["symmetric", "other ports", "open", "shut"],
)
def test_a_nat_that_is_not_as_declared_is_a_broken_lab(tmp_path: pathlib.Path, rules: list[str], said: str) -> None:
    with home(tmp_path, 2) as world:
        for rule in rules:
            iptables(world, rule)
        result = check_behaviour(subjects(world.lab.scenario, world.lab))
    assert result.verdict is Verdict.LAB_BROKEN
    assert said in result.reason
    assert result.reason.startswith("nat")


def test_timeouts_are_measured_where_that_is_asked_for(tmp_path: pathlib.Path) -> None:
    short = msgspec.structs.replace(presets.MASQUERADE, name="short", udp_timeout=2, udp_timeout_stream=3)
    with home(tmp_path, 1, short) as world:
        asked = subjects(world.lab.scenario, world.lab)
        assert check_behaviour(asked, timeouts=True).passed
        world.nat.sysctl({"net.netfilter.nf_conntrack_udp_timeout_stream": 2})
        result = check_behaviour(asked, timeouts=True)
    assert result.verdict is Verdict.LAB_BROKEN
    assert result.reason == "nat is not short: udp_timeout_stream: declared 3, measured 2"


def test_what_has_a_quirk_is_not_measured(tmp_path: pathlib.Path) -> None:
    odd = msgspec.structs.replace(presets.MASQUERADE, name="odd", quirk=Quirk.PIN_500)
    with home(tmp_path, 1) as world:
        (subject,) = subjects(world.lab.scenario, world.lab)
        subject = type(subject)(subject.name, odd, subject.inside, subject.outside, subject.addresses)
        result = check_behaviour([subject])
    assert (result.verdict, result.reason) == (Verdict.PASSED, "no NAT to measure")
