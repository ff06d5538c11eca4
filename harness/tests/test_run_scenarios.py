"""Whole runs of the scenarios (3.1), beyond those of the smoke matrix: who is seen where; and what breaks them.

What a cell of the smoke matrix is, but for its rekeys, is not rekeyed again here.
"""

from __future__ import annotations

import pathlib
from typing import Any

import msgspec
import pytest
from run_world import check, commands, passed, run

from natbed.checks import Verdict
from natbed.nat import presets
from natbed.nat.passthrough_presets import PASSTHROUGH
from natbed.nat.profile import Pooling
from natbed.results.record import RunRecord
from natbed.runner import Run, RunOptions
from natbed.scenario import Scenario, Tunnel
from natbed.settings import MODES, Protection
from natbed.topology_files import find, load_scenarios

pytestmark = pytest.mark.usefixtures("isolated")


def asked(tmp_path: pathlib.Path, mode: str = "tunnel", clients: int = 2, rekey: str = "both") -> RunOptions:
    return RunOptions(clients, presets.MASQUERADE, Protection(mode=mode), 0, tmp_path, rekey, idle=False)


def judged(record: RunRecord, tunnels: int, *, rekeyed: bool) -> None:
    """It passed, and everything was looked at: each tunnel rekeyed four times, each public segment audited."""
    passed(record)
    rekey = ["rekey"] if rekeyed else []
    assert [one.name for one in record.checks] == ["NAT", "NAT discovery", "connectivity", *rekey, "wire"]
    for name in rekey:
        assert [len(done) for done in check(record, name).details["rekeys"].values()] == [4] * tunnels
    segments = check(record, "wire").details["segments"]
    assert all(segment["verdict"] == "passed" for segment in segments.values())


def seen(record: RunRecord) -> dict[str, str]:
    """The address by which each responder knows its initiator, by tunnel."""
    tunnels = check(record, "NAT discovery").details["tunnels"]
    return {one["responder"]["name"]: one["responder"]["remote"][0] for one in tunnels}


def segments(record: RunRecord) -> set[str]:
    return set(check(record, "wire").details["segments"])


@pytest.mark.draft("B")
def test_b_a_server_behind_a_nat_of_its_own(tmp_path: pathlib.Path) -> None:
    record, _ = run(asked(tmp_path, rekey="none"), find("B"))
    judged(record, tunnels=2, rekeyed=False)
    assert seen(record) == {"client1-server": "203.0.113.2", "client2-server": "203.0.113.2"}
    assert all(c.nat_seen_by_initiator and c.nat_seen_by_responder for c in record.clients)
    dialed = {tuple(one["initiator"]["remote"]) for one in check(record, "NAT discovery").details["tunnels"]}
    assert dialed == {("203.0.113.19", 500)}, "the address that NAT2 gives it, not its own"
    assert segments(record) == {"nat1", "nat2"}


def in_a_row(count: int) -> type[Scenario]:
    class InARow(find("C")):  # type: ignore[misc]
        def build(self, clients: int = 2) -> None:
            super().build(clients, nats=count)

    return InARow


@pytest.mark.draft("C")
@pytest.mark.parametrize("mode", MODES)
def test_c_three_nats_in_a_row(tmp_path: pathlib.Path, mode: str) -> None:
    nats = 3
    record, _ = run(asked(tmp_path, mode), in_a_row(nats))
    judged(record, tunnels=2, rekeyed=True)
    assert seen(record) == {"client1-server": "203.0.113.2", "client2-server": "203.0.113.2"}
    assert segments(record) == {"server", *(f"nat{n + 1}" for n in range(nats))}
    made_of_it = check(record, "NAT").details["seen"]
    assert len(made_of_it) == 2 * nats, "each NAT was measured alone, and all together"
    assert "100.64.2.11" in made_of_it["client1 at nat2"], made_of_it


@pytest.mark.draft("D")
def test_d_two_servers_behind_a_nat(tmp_path: pathlib.Path) -> None:
    record, _ = run(asked(tmp_path, "transport", clients=1, rekey="none"), find("D"))
    judged(record, tunnels=2, rekeyed=False)
    assert [client.name for client in record.clients] == ["client1-server1", "client1-server2"]
    tunnels = check(record, "NAT discovery").details["tunnels"]
    assert [one["initiator"]["remote"][0] for one in tunnels] == ["203.0.113.3", "203.0.113.4"]
    assert segments(record) == {"nat", "client1"}


@pytest.mark.draft("A")
@pytest.mark.parametrize("mode", MODES)
def test_a_with_pure_address_translation(tmp_path: pathlib.Path, mode: str) -> None:
    options = RunOptions(2, presets.ONE_TO_ONE, Protection(mode=mode), 0, tmp_path, "none")
    record, _ = run(options, find("A"))
    passed(record)
    assert seen(record) == {"client1-server": "203.0.113.3", "client2-server": "203.0.113.4"}
    assert [client.mapped_port for client in record.clients] == [500, 500]
    begun = {flow["path"].split()[0] for flow in check(record, "connectivity").details["flows"]}
    assert begun == {"client1", "client2", "server"}, "each client has an address for the server to begin with"


@pytest.mark.draft("E")
@pytest.mark.parametrize("mode", MODES)
def test_e_the_same_address_behind_different_nats(tmp_path: pathlib.Path, mode: str) -> None:
    record, _ = run(asked(tmp_path, mode, rekey="none"), find("E"))
    judged(record, tunnels=2, rekeyed=False)
    views = check(record, "NAT discovery").details["tunnels"]
    assert [one["inside"] for one in views] == ["192.168.1.11", "192.168.1.11"]
    assert seen(record) == {"client1-server": "203.0.113.2", "client2-server": "203.0.113.18"}
    assert segments(record) == {"nat1", "nat2", "server"}
    given = {one["responder"]["mapped_network"] for one in views}
    assert len(given) == (2 if mode == "tunnel" else 1), "each client has an address of its own at the server"
    flows = check(record, "connectivity").details["flows"]
    from_server = [flow for flow in flows if flow["path"].startswith("server")]
    assert len(from_server) == (12 if mode == "tunnel" else 0), "in tunnel mode the server may begin"


PLACEMENTS = pytest.mark.parametrize(("placement", "rekey"), [("ingress", "none"), ("egress", "both")])


def mapped(letter: str, placement: str) -> type[Scenario]:
    class Mapped(find(letter)):  # type: ignore[misc]
        def build(self, clients: int = 2) -> None:
            super().build(clients, placement)

    return Mapped


@pytest.mark.draft("F", "G2G-NAT", "WIRE-6")
@PLACEMENTS
def test_f_lans_of_the_same_pool_reach_each_other(tmp_path: pathlib.Path, placement: str, rekey: str) -> None:
    record, _ = run(asked(tmp_path, clients=1, rekey=rekey), mapped("F", placement))
    judged(record, tunnels=2, rekeyed=rekey != "none")
    both_ways(record, flows=24)
    assert segments(record) == {"nat", "homegw", "corpgw"}


@pytest.mark.draft("F1", "G2G-NAT", "WIRE-6")
@PLACEMENTS
def test_f1_one_pair_serves_all_hosts(tmp_path: pathlib.Path, placement: str, rekey: str) -> None:
    record, _ = run(asked(tmp_path, rekey=rekey), mapped("F1", placement))
    judged(record, tunnels=1, rekeyed=rekey != "none")
    both_ways(record, flows=48)
    rekeys = 0 if rekey == "none" else 4
    assert len(check(record, "wire").details["spis"]) == 2 + 2 * rekeys, "one SA pair, and one for each rekey"


def both_ways(record: RunRecord, flows: int) -> None:
    """Hosts of both LANs began flows, the one with the same address as its peer among them."""
    found = check(record, "connectivity").details["flows"]
    assert len(found) == flows
    sizes = [flow for flow in found if flow["kind"] == "udp sizes"]
    assert {flow["mtu"] for flow in sizes} == {1430}
    # Where the gateway translates what comes out of the tunnel, its ICMP bears the address that it stands for.
    told = {flow["learned_from"] for flow in sizes}
    assert told <= {"192.168.1.1", "10.1.0.11", "10.1.0.12"}, "each gateway told the hosts behind it"
    paths = {flow["path"] for flow in found}
    assert {
        "client1 (192.168.1.11) -> server1 (192.168.1.11)",
        "server1 (192.168.1.11) -> client1 (192.168.1.11)",
    } <= paths


# what does not fit


def test_every_scenario_says_why_it_lacks_a_mode() -> None:
    scenarios = load_scenarios()
    assert [one.letter for one in scenarios] == ["A", "B", "C", "D", "E", "F", "F1"]
    for scenario in scenarios:
        assert set(scenario.modes) | set(scenario.not_supported) == set(MODES)
        assert not set(scenario.modes) & set(scenario.not_supported)
        assert set(scenario.nats) <= {*presets.PRESETS, *PASSTHROUGH}


def test_a_mode_that_a_scenario_lacks_is_refused_with_its_reason(tmp_path: pathlib.Path) -> None:
    record, _ = run(asked(tmp_path, "transport"), find("F1"))
    assert record.verdict is Verdict.LAB_BROKEN
    assert record.reason.startswith("lab: scenario F1 has no transport mode: gateways forward the packets of others")


def test_a_nat_of_which_nobody_can_say_whose_address_is_whose_is_refused(tmp_path: pathlib.Path) -> None:
    pooled = msgspec.structs.replace(presets.CARRIER_GRADE, pooling=Pooling.ARBITRARY)
    options = RunOptions(1, pooled, Protection(), 0, tmp_path, "none")
    record, _ = run(options, find("A"))
    assert record.verdict is Verdict.LAB_BROKEN
    assert record.reason == (
        "lab: carrier-grade gives each flow any of 2 outside addresses (pooling arbitrary), "
        "so no check can say beforehand whose packets are whose"
    )


# what is broken on purpose


def broken(scenario: type[Scenario], options: RunOptions, node: str, *lines: str) -> RunRecord:
    """A run in which these commands run on a node once its network is up."""
    one = Run(scenario, options, lambda step: None)
    build = one.lab.build

    def build_and_break() -> None:
        build()
        commands(one.lab[node], *lines)

    one.lab.build = build_and_break  # type: ignore[method-assign]
    return one.execute()


@pytest.mark.parametrize(
    ("letter", "nat", "reason"),
    [
        ("B", "nat2", "nothing from client1 reached the server"),
        ("C", "nat1", "client1 shows as 192.168.1.11"),
        ("C", "nat2", "100.64.2.11"),
        ("D", "nat", "nothing from client1 reached server1"),
    ],
)
def test_a_nat_that_is_removed_is_a_broken_lab(tmp_path: pathlib.Path, letter: str, nat: str, reason: str) -> None:
    record = broken(find(letter), asked(tmp_path, rekey="none"), nat, "iptables -t nat -F")
    assert record.verdict is Verdict.LAB_BROKEN, record.reason
    assert record.reason.startswith("NAT: ")
    assert reason in record.reason
    assert not record.hosts, "no implementation was judged in it"


class WrongSelector(find("F1")):  # type: ignore[misc]
    """The home gateway's tunnel is for another part of its network than its hosts are in."""

    def tunnels(self) -> list[Tunnel]:
        (tunnel,) = super().tunnels()
        return [Tunnel("homegw", "corpgw", "wrong", "10.1.0.128/25", "10.2.0.0/24", tunnel.joins)]


def test_a_wrong_selector_at_the_gateway_fails_connectivity(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("natbed.judging.check_connectivity", quick)
    record, _ = run(asked(tmp_path, clients=1, rekey="none"), WrongSelector)
    assert record.verdict is Verdict.FAILED
    assert record.reason.startswith("connectivity: ping client1 (192.168.1.11) -> server1 (192.168.1.11): 0 of ")


def test_a_gateway_that_maps_no_more_fails_connectivity(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("natbed.judging.check_connectivity", quick)
    options = asked(tmp_path, clients=1, rekey="none")
    record = broken(find("F1"), options, "corpgw", "iptables -t nat -F")
    assert record.verdict is Verdict.FAILED
    assert check(record, "NAT").passed, "the NAT between the gateways is another one"
    assert record.reason.startswith("connectivity: ")


def quick(pairs: Any) -> Any:
    """The check as it is, with less patience."""
    from natbed.checks.connectivity import check_connectivity

    return check_connectivity(pairs, deadline=2.0, pings=3, datagrams=2)
