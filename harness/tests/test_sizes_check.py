"""Sizes are judged by what a path does with them: no IPsec here, a link of a smaller MTU stands for a tunnel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from natbed.checks import sizes
from natbed.checks.flows import End, Flow
from natbed.checks.sizes import check_sizes
from natbed.lab import Lab
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")

MTU = 1400
CLIENT_SIDE, SERVER_SIDE = "192.168.1.1", "203.0.113.17"  # the routers next to each


@pytest.fixture
def lab(isolated: None) -> Iterator[Lab]:
    with Lab(find("A")(clients=1)) as lab:
        yield lab


@pytest.fixture
def narrow(lab: Lab) -> Lab:
    for router in ("nat", "internet"):
        lab[router].run(["ip", "link", "set", f"{router}-eth0", "mtu", str(MTU)])
    return lab


def judge(lab: Lab, *, protected: bool = True, deadline: float = 10.0) -> list[Flow]:
    client, server = lab.host("client1"), lab.host("server")
    ends = End(client, client.address), End(server, server.address)
    return check_sizes(*ends, deadline, protected=protected, back=True)


def problem(flows: list[Flow]) -> str:
    return next((f"{flow.kind}: {flow.problem}" for flow in flows if not flow.passed), "")


def test_the_mtu_is_learned_from_the_router_before_the_narrow_link(narrow: Lab) -> None:
    flows = judge(narrow)
    assert problem(flows) == ""
    assert (flows[0].mtu, flows[0].learned_from) == (MTU, CLIENT_SIDE)
    assert [(flow.kind, flow.octets) for flow in flows[1:]] == [("ping sizes", MTU - 28), ("ping sizes", MTU - 27)]
    assert all(flow.rtt for flow in flows[1:])


def test_a_wide_path_is_good_for_what_nothing_protects_only(lab: Lab) -> None:
    flows = judge(lab, protected=False)
    assert problem(flows) == ""
    assert (flows[0].mtu, flows[0].learned_from) == (1500, "nobody")
    assert problem(judge(lab)).startswith("udp sizes: a packet of 1500 octets with DF arrived")


@pytest.mark.parametrize(
    ("router", "rule", "reason"),
    [
        pytest.param(
            "nat",
            "OUTPUT -p icmp --icmp-type fragmentation-needed",
            "a datagram of 1472 octets with DF neither arrived nor was refused",
            id="no ICMP",
        ),
        pytest.param(
            "internet",
            "OUTPUT -p icmp --icmp-type fragmentation-needed",
            "a datagram of 1472 octets with DF neither arrived nor was refused",
            id="no ICMP to the server",
        ),
        pytest.param(
            "nat",
            f"FORWARD -p udp -m length --length {MTU}",
            f"a datagram of {MTU - 28} octets with DF neither arrived nor was refused",
            id="what just fits is lost",
        ),
        pytest.param(
            "nat",
            f"FORWARD -p udp -m length --length {MTU + 1}",
            f"a datagram of {MTU - 27} octets did not arrive",
            id="what must be cut is lost",
        ),
        pytest.param(
            "nat",
            "FORWARD -p udp -m length --length 4000:65535",
            "a datagram of 4000 octets did not arrive",
            id="three fragments are lost",
        ),
        pytest.param(
            "nat",
            f"FORWARD -p icmp -m length --length {MTU}",
            "0 of 2 pings were answered",
            id="pings that just fit are lost",
        ),
        pytest.param(
            "nat",
            f"FORWARD -p icmp -m length --length {MTU + 1}",
            "0 of 2 pings were answered",
            id="pings that must be cut are lost",
        ),
    ],
)
def test_each_size_that_meets_another_fate_is_named(narrow: Lab, router: str, rule: str, reason: str) -> None:
    narrow[router].run(["iptables", "-I", *rule.split(), "-j", "DROP"])
    assert reason in problem(judge(narrow, deadline=1.0))


def test_an_mtu_that_is_named_and_does_not_fit_is_a_failure(narrow: Lab) -> None:
    """Behind the narrow link is a narrower one, whose router is asked only by what passed the first."""
    narrow["internet"].run(["ip", "link", "set", "internet-eth1", "mtu", "1300"])
    narrow["server"].run(["ip", "link", "set", "server-eth0", "mtu", "1300"])
    assert "refuses a packet of 1400 octets, the MTU that 192.168.1.1 had named" in problem(judge(narrow))


def test_a_packet_without_df_is_no_proof(narrow: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_PROBE", sizes._DONT)
    assert problem(judge(narrow)).startswith("udp sizes: a packet of 1500 octets with DF arrived")
    flows = judge(narrow, protected=False)
    assert problem(flows) == "udp sizes: a packet of 1501 octets with DF arrived, though the MTU is 1500"
