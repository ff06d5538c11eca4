"""Faults of the benchmark of timeouts: which tunnel has which, and that what they are for is seen to have happened."""

from __future__ import annotations

import pytest

from natbed.bench.timeouts.record import AUTHENTICATED, STRICT
from natbed.bench.timeouts.upsets import FAULTS, NatsToUpset, upset
from natbed.conntrack import Mapping
from natbed.faults.base import FaultError
from natbed.faults.links import LinkFlap
from natbed.faults.nats import MappingExpiry, NatReboot, WanRenumber

BEFORE = ("203.0.113.2", 500)


def mapping(public: tuple[str, int]) -> Mapping:
    return Mapping(
        inside=("192.168.1.11", 500),
        public=public,
        remote=("203.0.113.18", 500),
        replied=True,
        assured=True,
        seconds=120,
        identifier=1,
    )


def test_each_fault_has_a_nat_of_its_own_for_each_policy() -> None:
    scenario = NatsToUpset(faults=FAULTS)
    assert sorted(scenario.cells.values()) == sorted(
        (one, policy) for one in FAULTS for policy in (STRICT, AUTHENTICATED)
    )
    servers = {scenario.cells[one.initiator][1]: one.responder for one in scenario.tunnels()}
    assert servers == {STRICT: "server1", AUTHENTICATED: "server2"}
    assert [scenario.fault_of(f"client{number}") for number in range(6, 11)] == [
        NatReboot("nat6", off=1.0),
        WanRenumber("nat7"),
        MappingExpiry("nat8"),
        NatReboot("nat9"),
        LinkFlap("client10", scenario.nats_planned["nat10"].lan.name, 1.0),
    ]


@pytest.mark.parametrize(
    ("fault", "after"),
    [
        ("NAT reboot", ("203.0.113.2", 39)),
        ("port change", ("203.0.113.2", 39)),
        ("WAN renumbering", ("203.0.113.14", 500)),
        ("mapping expiry", BEFORE),
        ("link flap", BEFORE),
    ],
)
def test_what_a_fault_is_for_is_seen_at_the_mapping(fault: str, after: tuple[str, int]) -> None:
    upset(fault).check_move("nat1", mapping(BEFORE), mapping(after))


@pytest.mark.parametrize(
    ("fault", "after", "message"),
    [
        ("port change", BEFORE, "nat1: port change: the mapping's port was 500 and still is"),
        ("WAN renumbering", BEFORE, "the mapping's address was 203.0.113.2 and is 203.0.113.2"),
        ("mapping expiry", ("203.0.113.14", 500), "the mapping's address was 203.0.113.2 and is 203.0.113.14"),
        ("link flap", None, "the client sends, and has no mapping after link flap"),
    ],
)
def test_a_fault_that_did_something_else_proves_nothing(
    fault: str, after: tuple[str, int] | None, message: str
) -> None:
    with pytest.raises(FaultError, match=message):
        upset(fault).check_move("nat1", mapping(BEFORE), None if after is None else mapping(after))
