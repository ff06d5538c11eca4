"""Connectivity of hosts' own addresses: clients that a NAT makes one are still told apart, or the check says so.

No IPsec here: a plain NAT gives the server what transport mode must give it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from natbed.checks import CheckResult, Verdict
from natbed.checks.transport import HostPair, check_transport
from natbed.lab import Lab
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")

NAT, SERVER = "203.0.113.2", "203.0.113.18"


@pytest.fixture
def lab(isolated: None) -> Iterator[Lab]:
    with Lab(find("A")()) as lab:
        yield lab


def judge(lab: Lab, *, seen: str = NAT, deadline: float = 5.0, server: str = SERVER) -> CheckResult:
    clients = [lab.host(name) for name in ("client1", "client2")]
    pairs = [HostPair(client, lab["server"], client.address, server, seen) for client in clients]
    return check_transport(pairs, deadline=deadline, pings=2, protected=False)


def test_clients_with_one_source_port_all_pass_and_again(lab: Lab) -> None:
    for _ in range(2):  # a second time, the ports must be free again
        result = judge(lab)
        assert (result.verdict, result.reason[:15]) == (Verdict.PASSED, "14 flows passed"), result.reason
        seen = result.details["seen"][SERVER]
        assert [host for host, _ in seen["tcp"] + seen["udp"]] == [NAT] * 4
        assert (NAT, 1701) in [tuple(peer) for peer in seen["udp"]]
        assert len({tuple(peer) for peer in seen["udp"]}) == 2
    kinds = [flow["kind"] for flow in result.details["flows"] if flow["path"].startswith("client2 ")]
    assert kinds == ["ping", "ping", "tcp", "udp", "udp sizes", "ping sizes", "ping sizes"]
    assert all(flow["octets"] > 0 for flow in result.details["flows"] if flow["kind"] in ("tcp", "udp"))


def test_a_client_that_shows_as_another_address_fails(lab: Lab) -> None:
    result = judge(lab, seen="192.0.2.1")
    assert result.verdict is Verdict.FAILED
    assert f"the server saw {NAT}:" in result.reason


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("-p udp -s 192.168.1.12 --dport 1701", "12 of 12 datagrams were lost"),
        ("-p tcp -s 192.168.1.12 --dport 7", "no connection"),
        ("-p icmp -s 192.168.1.12", "0 of 2 pings were answered"),
        ("-p icmp -s 192.168.1.12 -m length --length 1400:65535", "0 of 2 pings were answered"),
        ("-p udp -s 192.168.1.12 -m length --length 1400:65535", "of 1472 octets did not come"),
    ],
)
def test_one_client_that_is_cut_off_fails(lab: Lab, rule: str, problem: str) -> None:
    lab["nat"].run(["iptables", "-I", "FORWARD", *rule.split(), "-j", "DROP"])
    result = judge(lab, deadline=1.0)
    assert result.verdict is Verdict.FAILED
    assert problem in result.reason
    assert all(flow["path"].startswith("client2 ") for flow in result.details["flows"] if not flow["passed"])


def test_what_cannot_be_tried_is_a_broken_lab(lab: Lab) -> None:
    result = judge(lab, server="10.9.9.9")
    assert (result.verdict, "10.9.9.9" in result.reason) == (Verdict.LAB_BROKEN, True)
    assert check_transport([]).verdict is Verdict.LAB_BROKEN
