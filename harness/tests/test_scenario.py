"""Scenarios: addresses and routes as planned, and errors that name what is wrong. No network is made."""

from __future__ import annotations

import pathlib
import re

import msgspec
import pytest

from natbed.nat import presets
from natbed.nat.profile import Forward
from natbed.scenario import Scenario, ScenarioError, Tunnel
from natbed.topology_files import find, load_scenarios, scenarios_of


class NatBehindNat(Scenario):
    """A gateway behind a NAT."""

    def build(self, inner: str = "masquerade", outer: str = "masquerade") -> None:
        internet = self.internet()
        first = self.nat_router("nat", wan=internet, profile=presets.PRESETS[outer])
        second = self.nat_router("gw", wan=first.lan, lan="172.16.0.0/24", profile=presets.PRESETS[inner])
        self.host("client", on=second.lan)
        self.host("server", on=internet, protected="10.1.0.0/16")

    def tunnels(self) -> list[Tunnel]:
        return [Tunnel("client", "server")]


def test_scenario_a_is_found_by_its_letter() -> None:
    scenario = find("a")
    assert scenario.letter == "A"
    assert "client2 ──┘" in scenario.drawing()
    assert scenario in load_scenarios()
    with pytest.raises(ScenarioError, match="no scenario 'Z'; there are A"):
        find("Z")


def test_scenario_a_grows() -> None:
    scenario = find("A")(clients=3)
    assert scenario.clients == ["client1", "client2", "client3"]
    assert scenario.tunnels() == [Tunnel(f"client{n}", "server") for n in (1, 2, 3)]
    assert scenario.tunnels()[0].name == "client1-server"


def test_each_attachment_to_the_internet_has_its_network() -> None:
    scenario = find("A")()
    nat, server = scenario.plan("nat"), scenario.plan("server")
    assert (nat.gateway, scenario.nats_planned["nat"].public_address) == ("203.0.113.1", "203.0.113.2")
    assert (server.gateway, scenario.hosts_planned["server"].address) == ("203.0.113.17", "203.0.113.18")
    with pytest.raises(KeyError, match="no plan for 'nobody'; there are client1"):
        scenario.plan("nobody")


def test_nats_can_stand_behind_nats() -> None:
    scenario = NatBehindNat()
    assert scenario.nat_names == ["nat", "gw"]
    assert scenario.nats_planned["gw"].public_address == "192.168.1.11"
    assert scenario.nats_planned["gw"].lan.name == "home2"
    assert scenario.hosts_planned["client"].address == "172.16.0.11"
    assert scenario.hosts_planned["server"].protected == "10.1.0.0/16"
    assert scenario.nodeInfo("nat")["routes"] == [("default", "203.0.113.1")]


def test_a_plain_router_is_known_up_to_the_next_nat() -> None:
    scenario = NatBehindNat(inner="routed")
    assert ("172.16.0.0/24", "192.168.1.11") in scenario.nodeInfo("nat")["routes"]
    assert scenario.nodeInfo("internet")["routes"] == []
    scenario = NatBehindNat(inner="routed", outer="routed")
    assert scenario.nodeInfo("internet")["routes"] == [
        ("192.168.1.0/24", "203.0.113.2"),
        ("172.16.0.0/24", "203.0.113.2"),
    ]


@pytest.mark.parametrize(
    ("clients", "message"),
    [(245, "192.168.1.0/24 has no address left"), (99999, "no address left")],
)
def test_too_many_hosts_are_refused(clients: int, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        find("A")(clients=clients)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("self.internet(); self.internet()", "there is one Internet"),
        ("i = self.internet(); self.host('a', on=i); self.host('a', on=i)", "two nodes called 'a'"),
        ("self.host('much-too-long', on=self.internet())", "'much-too-long' is no name for a node"),
        ("self.nat_router('n', wan=self.internet(), lan='192.168.1.1/24')", "n: LAN 192.168.1.1/24: .* has host bits"),
    ],
)
def test_mistakes_are_named(tmp_path: pathlib.Path, body: str, message: str) -> None:
    file = tmp_path / "mistake.py"
    file.write_text(
        f"from natbed.scenario import Scenario\nclass M(Scenario):\n  letter='M'\n  def build(self): {body}\n"
    )
    (scenario,) = scenarios_of(file)
    with pytest.raises(ScenarioError, match=message):
        scenario()


def test_a_broken_file_is_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    with pytest.raises(ScenarioError, match=f"{re.escape(str(file))}: ZeroDivisionError"):
        scenarios_of(file)


def test_a_one_to_one_nat_gives_each_host_an_address_of_its_own() -> None:
    scenario = find("D")()
    assert scenario.nats_planned["nat"].static == [
        ("203.0.113.3/28", "172.16.1.11"),
        ("203.0.113.4/28", "172.16.1.12"),
    ]
    assert [scenario.hosts_planned[name].public for name in ("client1", "server1", "server2")] == [
        "203.0.113.18",
        "203.0.113.3",
        "203.0.113.4",
    ]
    with pytest.raises(ScenarioError, match=r"nat: 203\.0\.113\.0/28 has no address left for 192\.168\.1\.23"):
        find("A")(clients=13, nat=presets.ONE_TO_ONE)


def test_a_nat_with_several_addresses_gives_each_host_one_of_them() -> None:
    scenario = find("A")(clients=3, nat=presets.CARRIER_GRADE)
    assert scenario.nats_planned["nat"].pool == ("203.0.113.3/28",)
    assert [scenario.hosts_planned[f"client{n}"].public for n in (1, 2, 3)] == [
        "203.0.113.3",
        "203.0.113.2",
        "203.0.113.3",
    ]


def test_a_nat_with_several_addresses_behind_another_has_them_on_its_lan() -> None:
    scenario = NatBehindNat(inner="carrier-grade")
    inner, outer = scenario.nats_planned["gw"], scenario.nats_planned["nat"]
    assert (inner.public_address, inner.pool) == ("192.168.1.11", ("192.168.1.12/24",))
    assert outer.pool == ()
    assert scenario.hosts_planned["client"].public == "203.0.113.2"


def test_a_forward_is_to_the_address_that_its_host_will_have() -> None:
    scenario = find("A")(nat=presets.PORT_FORWARD)
    assert scenario.nats_planned["nat"].forwards_to == (scenario.hosts_planned["client1"].address,)
    beyond = msgspec.structs.replace(presets.PORT_FORWARD, forwards=(Forward(500, inside=245),))
    with pytest.raises(ScenarioError, match=r"nat: 192\.168\.1\.0/24 has no host 245 to forward a port to"):
        find("A")(nat=beyond)


def test_a_host_behind_nats_in_a_row_is_known_by_the_outermost() -> None:
    scenario = NatBehindNat()
    assert scenario.hosts_planned["client"].public == "203.0.113.2"
    assert [nat.name for nat in scenario.nats_before("client")] == ["gw", "nat"]
    assert scenario.nats_before("server") == []
    routed = NatBehindNat(inner="routed")
    assert [nat.name for nat in routed.nats_before("client")] == ["nat"]
    assert [nat.name for nat in routed.routers_before("client")] == ["gw", "nat"]


@pytest.mark.parametrize(
    ("placement", "networks"),
    [("ingress", ("10.1.0.0/24", "10.2.0.0/24")), ("egress", ("192.168.1.0/24", "10.2.0.0/24"))],
)
def test_hosts_of_equal_lans_know_each_other_by_mapped_addresses(placement: str, networks: tuple[str, str]) -> None:
    scenario = find("F1")(clients=1, placement=placement)
    (tunnel,) = scenario.tunnels()
    assert scenario.networks(tunnel) == networks, "what the tunnel carries depends on where is mapped"
    first = scenario.conversations("tunnel")[0]
    assert (first.client, first.client_address, first.client_seen) == ("client1", "192.168.1.11", "10.1.0.11")
    assert (first.server, first.server_address, first.server_seen) == ("server1", "192.168.1.11", "10.2.0.11")
    assert first.both_ways


def test_in_transport_mode_hosts_are_known_by_their_public_addresses_and_clients_begin() -> None:
    (talk,) = find("B")(clients=1).conversations("transport")
    assert (talk.client_address, talk.client_seen) == ("192.168.1.11", "203.0.113.2")
    assert (talk.server_address, talk.server_seen) == ("172.16.1.11", "203.0.113.19")
    assert not talk.both_ways


@pytest.mark.parametrize(
    ("letter", "nat", "both_ways"),
    [("A", "masquerade", False), ("A", "one-to-one", True), ("A", "routed", True), ("D", "", True), ("C", "", False)],
)
def test_in_transport_mode_a_server_begins_where_it_can_say_which_client_it_means(
    letter: str, nat: str, both_ways: bool
) -> None:
    scenario = find(letter)(clients=1, **({"nat": presets.PRESETS[nat]} if nat else {}))
    assert {talk.both_ways for talk in scenario.conversations("transport")} == {both_ways}
    assert all(talk.both_ways for talk in scenario.conversations("tunnel"))
