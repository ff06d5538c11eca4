"""NAT discovery is judged by what both ends say and by what conntrack knows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from natbed.checks import Verdict
from natbed.checks.discovery import TunnelView, check_discovery
from natbed.conntrack import Mapping
from natbed.paths import initiator_seen, responder_seen, translated
from natbed.scenario import Scenario, Tunnel
from natbed.stacks.base import TunnelStatus
from natbed.topology_files import find

NAT, SERVER = "203.0.113.2", "203.0.113.18"
SEEN = {1: (NAT, 500), 2: (NAT, 337)}


def status(port: int, **different: Any) -> TunnelStatus:
    good = TunnelStatus(
        name="t", remote=(NAT, port), nat=True, encapsulation="udp", inbound_spi="1", outbound_spi="2", suite="s"
    )
    return msgspec.structs.replace(good, **different)


def view(number: int, port: int, **different: Any) -> TunnelView:
    good = TunnelView(
        client=f"client{number}",
        inside=f"192.168.1.1{number}",
        initiator=status(500, remote=(SERVER, 500)),
        responder=status(port),
        nat=True,
        seen=SEEN.get(number),
        dialed=(SERVER, 500),
    )
    return msgspec.structs.replace(good, **different)


def mapping(number: int, public: int, remote: tuple[str, int] = (SERVER, 500), inside: int = 500) -> Mapping:
    return Mapping(
        inside=(f"192.168.1.1{number}", inside),
        public=(NAT, public),
        remote=remote,
        replied=True,
        assured=True,
        seconds=100,
        identifier=number,
    )


MAPPINGS = [mapping(1, 500), mapping(2, 337)]


def test_all_sides_agree() -> None:
    result = check_discovery([view(1, 500), view(2, 337)])
    assert (result.verdict, result.name) == (Verdict.PASSED, "NAT discovery")
    assert result.reason == "both ends report the NAT; mapped ports client1 500, client2 337"
    assert result.details["conntrack"] == {"192.168.1.11": 500, "192.168.1.12": 337}


def test_only_ike_with_the_server_counts_as_a_mapping() -> None:
    others = [
        mapping(1, 40000, (SERVER, 4999), 40000),
        mapping(1, 777, ("203.0.113.34", 500)),
        mapping(2, 53, (SERVER, 53)),
    ]
    scenario = find("A")(clients=3)
    found = [initiator_seen(scenario, tunnel, {"nat": [*others, *MAPPINGS]}) for tunnel in scenario.tunnels()]
    assert found == [(NAT, 500), (NAT, 337), None]


def test_what_one_nat_has_mapped_the_next_maps_again() -> None:
    scenario = find("C")(clients=1)
    (tunnel,) = scenario.tunnels()
    isp = scenario.nats_planned["nat1"].public_address
    inner = msgspec.structs.replace(mapping(1, 400), public=(isp, 400))
    outer = msgspec.structs.replace(mapping(1, 300), inside=(isp, 400))
    mappings = {"nat1": [inner], "nat2": [outer]}
    assert initiator_seen(scenario, tunnel, mappings) == (NAT, 300)
    assert initiator_seen(scenario, tunnel, mappings, "nat1") == (isp, 400)
    assert initiator_seen(scenario, tunnel, mappings, "client1") == ("192.168.1.11", 500)
    assert initiator_seen(scenario, tunnel, {"nat1": [inner], "nat2": []}) is None


@pytest.mark.parametrize(("letter", "dialed"), [("B", "203.0.113.19"), ("D", "203.0.113.3")])
def test_a_responder_behind_a_nat_is_dialed_at_its_public_address(letter: str, dialed: str) -> None:
    scenario: Scenario = find(letter)(clients=1)
    tunnel: Tunnel = scenario.tunnels()[0]
    assert scenario.hosts_planned[tunnel.responder].address == "172.16.1.11"
    assert responder_seen(scenario, tunnel) == (dialed, 500)
    assert translated(scenario, tunnel)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (view(2, 338), "client2: the responder answers port 338, conntrack has 337"),
        (view(2, 337, responder=status(337, nat=False)), "client2: the responder says False to a NAT, there is a NAT"),
        (view(2, 337, initiator=status(500, nat=None)), "client2: the initiator says None to a NAT, there is a NAT"),
        (view(2, 337, initiator=None), "client2: the initiator has no SA"),
        (view(2, 337, responder=None), "client2: the responder has no SA"),
        (
            view(2, 337, responder=status(337, encapsulation="none")),
            "client2: the responder carries ESP in 'none', needed is 'udp'",
        ),
        (view(3, 340), "client3: the responder answers port 340, conntrack has no mapping"),
        (
            view(2, 337, responder=status(337, remote=("203.0.113.3", 337))),
            "client2: the responder answers 203.0.113.3, conntrack has 203.0.113.2",
        ),
        (
            view(2, 337, initiator=status(500, remote=("172.16.1.11", 500))),
            f"client2: the initiator answers ('172.16.1.11', 500), dialed were ('{SERVER}', 500)",
        ),
    ],
)
def test_what_one_end_has_wrong_is_named(second: TunnelView, reason: str) -> None:
    result = check_discovery([view(1, 500), second])
    assert (result.verdict, result.reason) == (Verdict.FAILED, reason)
    assert result.details["conntrack"], "the facts are there in a failure too"


def test_two_clients_at_one_port_are_no_two_clients() -> None:
    result = check_discovery([view(1, 500), view(2, 500, seen=(NAT, 500))])
    assert result.verdict is Verdict.FAILED
    assert "two clients at one address and port" in result.reason


def bare(number: int, encapsulation: str = "none", nat: bool = False) -> TunnelView:
    address = f"192.168.1.1{number}"
    here = status(500, remote=(SERVER, 500), nat=nat, encapsulation=encapsulation)
    there = status(500, remote=(address, 500), nat=nat, encapsulation=encapsulation)
    return view(number, 500, initiator=here, responder=there, nat=False, seen=(address, 500))


@pytest.mark.parametrize("encapsulation", ["none", "udp"])
def test_without_a_nat_none_may_be_found(encapsulation: str) -> None:
    result = check_discovery([bare(1, encapsulation), bare(2, encapsulation)])
    assert (result.verdict, result.reason) == (Verdict.PASSED, "both ends report no NAT")


def test_a_nat_that_is_not_there_is_a_failure() -> None:
    result = check_discovery([bare(1, nat=True)])
    assert result.verdict is Verdict.FAILED
    assert result.reason == "client1: the initiator says True to a NAT, there is no NAT"


def test_without_a_tunnel_nothing_has_passed() -> None:
    assert check_discovery([]).verdict is Verdict.LAB_BROKEN
