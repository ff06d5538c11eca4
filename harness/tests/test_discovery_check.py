"""NAT discovery is judged by what both ends say and by what conntrack knows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from natbed.checks import Verdict
from natbed.checks.discovery import TunnelView, check_discovery, mapped_ports
from natbed.conntrack import Mapping
from natbed.stacks.base import TunnelStatus

NAT, SERVER = "203.0.113.2", "203.0.113.18"


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
    result = check_discovery([view(1, 500), view(2, 337)], MAPPINGS, SERVER, nat=True)
    assert (result.verdict, result.name) == (Verdict.PASSED, "NAT discovery")
    assert result.reason == "both ends report the NAT; mapped ports client1 500, client2 337"
    assert result.details["conntrack"] == {"192.168.1.11": 500, "192.168.1.12": 337}


def test_only_ike_with_the_server_counts_as_a_mapping() -> None:
    others = [
        mapping(1, 40000, (SERVER, 4999), 40000),
        mapping(1, 777, ("203.0.113.34", 500)),
        mapping(2, 53, (SERVER, 53)),
    ]
    assert mapped_ports([*MAPPINGS, *others], SERVER) == {"192.168.1.11": 500, "192.168.1.12": 337}


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
    ],
)
def test_what_one_end_has_wrong_is_named(second: TunnelView, reason: str) -> None:
    result = check_discovery([view(1, 500), second], MAPPINGS, SERVER, nat=True)
    assert (result.verdict, result.reason) == (Verdict.FAILED, reason)
    assert result.details["conntrack"], "the facts are there in a failure too"


def test_two_clients_at_one_port_are_no_two_clients() -> None:
    shared = [mapping(1, 500), mapping(2, 500)]
    result = check_discovery([view(1, 500), view(2, 500)], shared, SERVER, nat=True)
    assert result.verdict is Verdict.FAILED
    assert "two clients at one address and port" in result.reason


def bare(number: int, encapsulation: str = "none", nat: bool = False) -> TunnelView:
    address = f"192.168.1.1{number}"
    here = status(500, remote=(SERVER, 500), nat=nat, encapsulation=encapsulation)
    there = status(500, remote=(address, 500), nat=nat, encapsulation=encapsulation)
    return view(number, 500, initiator=here, responder=there)


@pytest.mark.parametrize("encapsulation", ["none", "udp"])
def test_without_a_nat_none_may_be_found(encapsulation: str) -> None:
    result = check_discovery([bare(1, encapsulation), bare(2, encapsulation)], [], SERVER, nat=False)
    assert (result.verdict, result.reason) == (Verdict.PASSED, "both ends report no NAT")


def test_a_nat_that_is_not_there_is_a_failure() -> None:
    result = check_discovery([bare(1, nat=True)], [], SERVER, nat=False)
    assert result.verdict is Verdict.FAILED
    assert result.reason == "client1: the initiator says True to a NAT, there is no NAT"


def test_without_a_tunnel_nothing_has_passed() -> None:
    assert check_discovery([], [], SERVER, nat=False).verdict is Verdict.LAB_BROKEN
