"""Links: veth pairs that work from the first packet on."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from natbed.link import Link, LinkError
from natbed.node import Node

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def link() -> Iterator[Link]:
    alice, bob = Node("alice"), Node("bob")
    yield Link(
        alice, bob, addr1="02:00:00:00:00:01", addr2="02:00:00:00:00:02", address1="10.0.0.1/24", address2="10.0.0.2/24"
    )
    alice.terminate()
    bob.terminate()


def test_the_first_packet_arrives(link: Link) -> None:
    printed = link.intf1.node.run(["ping", "-c", "1", "-W", "2", "10.0.0.2"]).stdout
    found = re.search(r" time=([\d.]+) ms", printed)
    assert found is not None, printed
    assert float(found[1]) < 500, "with a deferred carrier ARP is answered at its second try, after a second"


def test_its_ends_are_named_numbered_and_addressed(link: Link) -> None:
    alice, bob = link.intf1.node, link.intf2.node
    assert alice.interfaces() == ["lo", "alice-eth0"]
    assert bob.interfaces() == ["lo", "bob-eth0"]
    assert link.intf1.index != link.intf2.index
    assert alice.addresses("alice-eth0") == ["10.0.0.1/24"]
    assert bob.intf("bob-eth0").IP() == "10.0.0.2"
    assert "02:00:00:00:00:02" in bob.run(["ip", "link"]).stdout
    assert bob.route_to("10.0.0.1") == "10.0.0.0/24"
    assert bob.route_to("192.0.2.1") is None


def test_no_carrier_is_reported_with_the_ends_that_lack_it(link: Link) -> None:
    link.intf2.ifconfig("down")
    with pytest.raises(LinkError, match=r"no carrier on alice-eth0 and bob-eth0 after 0.05 s"):
        link.await_carrier(0.05)
    link.intf2.ifconfig("up")
    link.await_carrier()


def test_an_address_can_be_changed(link: Link) -> None:
    link.intf1.setIP("10.0.0.3", 24)
    assert link.intf1.node.addresses("alice-eth0") == ["10.0.0.3/24"]
    assert link.intf1.updateIP() == "10.0.0.3"


def test_a_deleted_link_is_gone_on_both_sides(link: Link) -> None:
    alice, bob = link.intf1.node, link.intf2.node
    assert link.status() == "(OK OK)"
    link.delete()
    assert alice.interfaces() == bob.interfaces() == ["lo"]
