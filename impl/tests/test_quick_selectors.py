"""Protocols and ports in Quick Mode's identities: several SA pairs side by side, and nothing beyond policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ike_world import CLIENT, INITIATOR, RESPONDER
from quick_world import QuickWorld, agree, child_of, transport

from espthrunat.ike.ike_sa import Refused
from espthrunat.ike.nat_traversal import NatStatus
from espthrunat.ike.policy import Connection
from espthrunat.ike.quick_mode import PolicyRefusal
from espthrunat.messages import Selector
from espthrunat.wire.payloads import Identification, IdType, Nonce, NotifyType

TCP, UDP = 6, 17
HERE, THERE = "192.168.1.0/24", "10.99.0.0/16"


def both(name: str, protocol: int, local_port: int, remote_port: int) -> tuple[Connection, Connection]:
    """One traffic of two networks, as the client and as the server have it."""
    client = replace(INITIATOR, name=name, selector=Selector(HERE, THERE, protocol, local_port, remote_port))
    server = replace(RESPONDER, name=name, selector=Selector(THERE, HERE, protocol, remote_port, local_port))
    return client, server


@pytest.mark.draft("QM-5")
@pytest.mark.draft("QM-7")
def test_protocol_and_ports_travel_beside_the_networks() -> None:
    client, server = both("web", TCP, 0, 443)
    world = QuickWorld((client,), (server,))
    here, there = world.run(client)
    subnet = IdType.IPV4_ADDR_SUBNET
    assert world.wire[0].all(Identification) == [
        Identification(subnet, bytes([192, 168, 1, 0, 255, 255, 255, 0]), TCP, 0),
        Identification(subnet, bytes([10, 99, 0, 0, 255, 255, 0, 0]), TCP, 443),
    ]
    assert child_of(here).selector == Selector(HERE, THERE, TCP, 0, 443)
    assert child_of(there).selector == Selector(THERE, HERE, TCP, 443, 0)


@pytest.mark.draft("QM-7")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("nat", [NatStatus.DETECTED, NatStatus.NONE])
def test_pairs_of_finer_granularity_stand_side_by_side(nat: NatStatus, reverse: bool) -> None:
    traffic = [("any", 0, 0, 0), ("web", TCP, 0, 443), ("web2", TCP, 0, 8443), ("dns", UDP, 0, 53), ("icmp", 1, 0, 0)]
    ends = [both(*each) for each in traffic]
    servers = [server for _, server in ends]
    world = QuickWorld(tuple(c for c, _ in ends), tuple(reversed(servers) if reverse else servers), nat=nat)
    spis = set()
    for number, (client, server) in enumerate(ends):
        pair = world.run(client, message_id=10 + number)
        assert agree(*pair)
        assert child_of(pair[1]).connection == server.name
        assert child_of(pair[1]).selector == server.selector
        spis |= {child_of(end).inbound_spi for end in pair}
    assert len(spis) == 2 * len(traffic)


@pytest.mark.draft("QM-7")
@pytest.mark.parametrize("reverse", [False, True])
def test_transport_mode_pairs_that_differ_in_ports_alone_stand_side_by_side(reverse: bool) -> None:
    """Also those that differ in the client's port, which a NAT makes uncertain: an exact policy is preferred."""
    ports = [(TCP, 0, 80), (TCP, 0, 443), (UDP, 1701, 1701), (UDP, 4000, 1701)]
    clients = tuple(replace(transport(INITIATOR, *p), name=str(p)) for p in ports)
    servers = [replace(transport(RESPONDER, p[0], p[2], p[1]), name=str(p)) for p in ports]
    world = QuickWorld(clients, tuple(reversed(servers) if reverse else servers))
    for number, client in enumerate(clients):
        _, there = world.run(client, message_id=10 + number)
        assert child_of(there).connection == client.name


@pytest.mark.draft("SEC-2")
@pytest.mark.parametrize(
    "greedy",
    [
        Selector(HERE, THERE),
        Selector(HERE, THERE, TCP),
        Selector(HERE, THERE, TCP, 0, 22),
        Selector(HERE, THERE, UDP, 0, 443),
        Selector(HERE, THERE, TCP, 1000, 443),
        Selector(HERE, "0.0.0.0/0", TCP, 0, 443),
        Selector("10.99.0.7/32", THERE, TCP, 0, 443),
    ],
)
def test_nothing_but_the_policys_traffic_is_allowed_in_tunnel_mode(greedy: Selector) -> None:
    client, server = both("web", TCP, 0, 443)
    client = replace(client, selector=greedy)
    world = QuickWorld((client,), (server,))
    with pytest.raises(PolicyRefusal, match="no connection of this peer protects") as refused:
        world.run(client)
    assert refused.value.notify == NotifyType.INVALID_ID_INFORMATION
    assert greedy.local in str(refused.value), "the line says what was asked for"
    assert len(str(refused.value).splitlines()) == 1
    assert not world.server.sent
    assert not world.server.said


@pytest.mark.draft("SEC-2")
@pytest.mark.parametrize(
    "claim",
    [
        Identification(IdType.FQDN, b"client1.example"),
        Identification(IdType.FQDN, b"two\nlines"),
        Identification(IdType.IPV4_ADDR_SUBNET, bytes([192, 168, 1, 11, 255, 0, 255, 255])),
        Identification(5, bytes(16)),
    ],
)
def test_in_tunnel_mode_a_name_or_a_strange_mask_is_no_network(claim: Identification) -> None:
    world = QuickWorld()
    world.run(INITIATOR)
    payloads = [i.payload if not isinstance(i.payload, Identification) else claim for i in world.wire[0][1:]]
    with pytest.raises(PolicyRefusal, match="a host") as refused:
        world.answer(world.craft(world.client, payloads, message_id=78))
    assert len(str(refused.value).splitlines()) == 1


def test_tunnel_mode_needs_identities() -> None:
    world = QuickWorld()
    world.run(INITIATOR)
    payloads = [i.payload for i in world.wire[0][1:] if not isinstance(i.payload, Identification)]
    with pytest.raises(PolicyRefusal, match="tunnel mode needs two identities"):
        world.answer(world.craft(world.client, payloads, message_id=78))


@pytest.mark.parametrize("change", ["network", "protocol", "port", "order", "none"])
def test_identities_that_come_back_changed_are_refused(change: str) -> None:
    """Even from the true peer: traffic that it means otherwise than we do is no pair of SAs."""
    client, server = both("web", TCP, 0, 443)
    world = QuickWorld((client,), (server,))
    exchange = world.client.quick(client, 77)
    exchange.start(0.0)
    answerer = world.answer(world.client.sent[-1])
    assert answerer.child is not None
    probe = QuickWorld((client,), (server,))  # shows what message 2 holds, from the same entropy
    probe.run(client)
    there, here = probe.wire[1].all(Identification)
    changed = {
        "network": [there, replace(here, data=bytes(8))],
        "protocol": [replace(there, protocol=UDP), replace(here, protocol=UDP)],
        "port": [there, replace(here, port=22)],
        "order": [here, there],
        "none": [],
    }[change]
    others = [i.payload for i in probe.wire[1][1:] if not isinstance(i.payload, Identification)]
    nonce = world.wire[0].one(Nonce).data
    with pytest.raises(Refused, match="changed the identities"):
        world.give(exchange, world.craft(world.server, [*others, *changed], nonce=nonce))
    assert exchange.child is None
    assert not world.client.said


def test_a_tunnel_pair_may_be_renewed_from_both_ends() -> None:
    client, server = both("web", TCP, 0, 443)
    world = QuickWorld((client,), (server,))
    for number, by_client in enumerate((True, False, True)):
        ends = world.run(client if by_client else server, by_client=by_client, message_id=10 + number)
        assert agree(*ends)
        assert [child_of(end).selector for end in ends] == [client.selector, server.selector]
        assert [child_of(end).initiator for end in ends] == [by_client, not by_client]
        assert child_of(ends[0]).path.local == CLIENT
