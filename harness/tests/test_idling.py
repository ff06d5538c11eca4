"""Which NAT shuts a responder out once it has forgotten the initiator behind it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from natbed.idling import forgets
from natbed.nat import presets
from natbed.nat.profile import Filtering, NatProfile
from natbed.plans import Tunnel
from natbed.scenario import Scenario
from natbed.topology_files import find


class BehindBoth(Scenario):
    """A client behind one NAT, which is behind another."""

    def build(self, inner: NatProfile, outer: NatProfile) -> None:
        internet = self.internet()
        beyond = self.nat_router("nat2", wan=internet, lan="100.64.2.0/24", lan_name="isp", profile=outer)
        home = self.nat_router("nat1", wan=beyond.lan, lan="192.168.1.0/24", lan_name="home", profile=inner)
        self.host("client1", on=home.lan)
        self.host("server", on=internet)

    def tunnels(self) -> list[Tunnel]:
        return [Tunnel("client1", "server")]


MANY, ONE, NONE = presets.MASQUERADE, presets.ONE_TO_ONE, presets.ROUTED


@pytest.mark.parametrize(
    ("letter", "parameters", "expected"),
    [
        ("A", {}, ["nat", "nat"]),
        ("A", {"nat": ONE}, ["", ""]),
        ("A", {"nat": NONE}, ["", ""]),
        ("A", {"nat": presets.FULL_CONE}, ["nat", "nat"]),
        ("A", {"nat": presets.CARRIER_GRADE}, ["nat", "nat"]),
        ("A", {"nat": presets.PORT_FORWARD}, ["", "nat"]),
        ("A", {"nat": msgspec.structs.replace(ONE, filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT)}, ["nat", "nat"]),
        ("B", {"clients": 1}, ["nat1"]),
        ("C", {"clients": 1}, ["nat2"]),
        ("C", {"clients": 1, "nats": 3}, ["nat3"]),
        ("D", {}, ["", ""]),
        ("E", {"clients": 3}, ["nat1", "nat2", "nat3"]),
        ("F", {}, ["nat", "nat"]),
        ("F1", {}, ["nat"]),
    ],
)
def test_the_outermost_many_to_one_nat_before_the_initiator_shuts_out(
    letter: str, parameters: dict[str, Any], expected: list[str]
) -> None:
    scenario = find(letter)(**parameters)
    assert [forgets(scenario, tunnel) for tunnel in scenario.tunnels()] == expected


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [(MANY, MANY, "nat2"), (MANY, ONE, "nat1"), (ONE, MANY, "nat2"), (ONE, ONE, ""), (NONE, MANY, "nat2")],
)
def test_others_beside_it_change_nothing(inner: NatProfile, outer: NatProfile, expected: str) -> None:
    scenario = BehindBoth(inner=inner, outer=outer)
    assert forgets(scenario, scenario.tunnels()[0]) == expected
