"""Transport mode and several connections through whole endpoints: they come up, and both ends can renew them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ike_world import CLIENT, INITIATOR, PUBLIC, RESPONDER, SERVER, Nat, RepeatableEntropy, World
from quick_world import transport

from espthrunat.ike.child_sa import ChildSa
from espthrunat.ike.endpoint import Endpoint
from espthrunat.messages import Encapsulation, Mode, Selector

TCP, UDP = 6, 17
L2TP = 1701


def newest(endpoint: Endpoint) -> ChildSa:
    return endpoint.usable_children()[-1]


def join(world: World) -> bool:
    here, there = newest(world.client), newest(world.server)
    return (here.inbound_spi, here.outbound_keymat) == (there.outbound_spi, there.inbound_keymat)


@pytest.mark.draft("QM-1")
@pytest.mark.draft("QM-6")
@pytest.mark.parametrize("behind_nat", [True, False])
def test_transport_mode_comes_up_between_endpoints(behind_nat: bool) -> None:
    nat = Nat() if behind_nat else Nat(public=None)
    world = World(transport(INITIATOR, UDP, L2TP, L2TP), transport(RESPONDER, UDP, L2TP, L2TP), nat=nat).connect(30.0)
    assert world.up, world.reasons(world.server_events)
    here, there = world.client_sa(), world.server_sa()
    assert here.mode == there.mode == Mode.TRANSPORT
    assert here.encapsulation == (Encapsulation.UDP if behind_nat else Encapsulation.NONE)
    assert here.selector == Selector(f"{CLIENT}/32", f"{SERVER}/32", UDP, L2TP, L2TP)
    outside = PUBLIC if behind_nat else CLIENT
    assert there.selector == Selector(f"{SERVER}/32", f"{outside}/32", UDP, L2TP, 0 if behind_nat else L2TP)


@pytest.mark.draft("QM-8")
@pytest.mark.draft("REKEY-1")
@pytest.mark.parametrize("known_port", [0, L2TP])
@pytest.mark.parametrize("phase1", [False, True])
@pytest.mark.parametrize("by_client", [False, True])
def test_either_end_renews_a_transport_pair_through_the_nat(by_client: bool, phase1: bool, known_port: int) -> None:
    client, server = transport(INITIATOR, UDP, L2TP, L2TP), transport(RESPONDER, UDP, L2TP, known_port)
    world = World(client, server).connect(30.0)
    first = (world.client_sa(), world.server_sa())
    for _ in range(2):
        endpoint, name = (world.client, "server") if by_client else (world.server, "client1")
        endpoint.rekey(name, world.now, phase1=phase1)
        world.run(30.0)
        assert join(world), world.reasons(world.client_events) + world.reasons(world.server_events)
        for new, old, end in zip(
            (newest(world.client), newest(world.server)), first, ("client", "server"), strict=True
        ):
            assert new.inbound_spi != old.inbound_spi
            assert (new.selector, new.path, new.connection) == (old.selector, old.path, old.connection), end
            assert new.initiator == ((end == "client") == by_client)
        assert len(world.client.children()) == len(world.server.children()) == 1, "the old pair is gone"


@pytest.mark.draft("QM-7")
@pytest.mark.parametrize("by_client", [False, True])
def test_several_pairs_with_one_peer_live_and_are_renewed_side_by_side(by_client: bool) -> None:
    here, there = "192.168.1.0/24", "10.99.0.0/16"
    clients = [
        INITIATOR,
        replace(INITIATOR, name="web", selector=Selector(here, there, TCP, 0, 443)),
        replace(INITIATOR, name="dns", selector=Selector(here, there, UDP, 0, 53)),
        replace(transport(INITIATOR, UDP, L2TP, L2TP), name="l2tp"),
    ]
    servers = [
        replace(transport(RESPONDER, UDP, L2TP), name="l2tp"),
        replace(RESPONDER, name="dns", selector=Selector(there, here, UDP, 53, 0)),
        replace(RESPONDER, name="web", selector=Selector(there, here, TCP, 443, 0)),
        replace(RESPONDER, name="server"),
    ]
    world = World()
    world.client = Endpoint((CLIENT, 500), clients, RepeatableEntropy(5))
    world.server = Endpoint((SERVER, 500), servers, RepeatableEntropy(6))
    for connection in clients:
        world.client.initiate(connection.name, world.now)
        world.run(5.0)
    names = sorted(connection.name for connection in clients)
    before = {child.connection: child for child in world.server.usable_children()}
    assert sorted(before) == names
    for name in names:
        (world.client if by_client else world.server).rekey(name, world.now)
        world.run(30.0)
    for endpoint in (world.client, world.server):
        assert sorted(child.connection for child in endpoint.usable_children()) == names
        assert len(endpoint.children()) == len(names)
    for child in world.server.usable_children():
        assert child.inbound_spi != before[child.connection].inbound_spi
        assert child.selector == before[child.connection].selector
