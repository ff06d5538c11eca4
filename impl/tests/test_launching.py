"""What brings a connection up or anew: a lost data plane, traffic, a peer; and what was taken down stays down."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ike_fleet import Fleet
from ike_world import SERVER

from espthrunat.ike import events
from espthrunat.ike.policy import Connection
from espthrunat.messages import Path, Selector


def test_a_lost_data_plane_gets_new_keys_at_once() -> None:
    fleet = Fleet(2).connect()
    server = fleet.server
    old = {child.inbound_spi for child in server.endpoint.children()}
    keys = {child.outbound_keymat for child in server.endpoint.children()}
    server.endpoint.plane_lost(fleet.now)
    fleet.flush(server)
    fleet.run(1.0)
    assert fleet.up == 2
    assert not old & {child.inbound_spi for child in server.endpoint.children()}
    assert not keys & {child.outbound_keymat for child in server.endpoint.children()}
    assert len(fleet.clients[0].endpoint.children()) == 1


def test_what_was_taken_down_stays_down() -> None:
    fleet = Fleet(change=lambda c: replace(c, start=True)).connect()
    client = fleet.clients[0]
    client.endpoint.terminate("server0", fleet.now)
    fleet.flush(client)
    client.endpoint.acquire("server0", fleet.now)
    fleet.run(600.0)
    assert not client.endpoint.ike_sas()
    assert not fleet.server.endpoint.children()
    client.endpoint.initiate("server0", fleet.now)
    fleet.flush(client)
    fleet.run(1.0)
    assert fleet.up == 1


def test_a_peer_cannot_begin_what_was_taken_down_here() -> None:
    def outside(connection: Connection) -> Connection:
        return replace(connection, remote="192.168.0.0")

    fleet = Fleet(serve=outside)
    fleet.nat.public = None
    fleet.clients[0].endpoint.terminate("server0", 0.0)
    fleet.server.endpoint.initiate("client0", 0.0)
    fleet.flush(fleet.server)
    fleet.run(60.0)
    assert not fleet.clients[0].said(events.IkeSaEstablished)
    assert fleet.up == 0


def test_traffic_brings_a_connection_up() -> None:
    fleet = Fleet()
    client = fleet.clients[0]
    for _ in range(3):
        client.endpoint.acquire("server0", fleet.now)
    fleet.flush(client)
    fleet.run(1.0)
    assert fleet.up == 1
    assert len(fleet.server.said(events.IkeSaEstablished)) == 1
    assert len(fleet.server.endpoint.children()) == 1


def test_who_asks_again_meanwhile_gets_no_second_exchange() -> None:
    fleet = Fleet()
    client = fleet.clients[0]
    client.endpoint.initiate("server0", fleet.now)
    fleet.flush(client)
    while not client.said(events.IkeSaEstablished):
        fleet.run(0.005)
    for _ in range(3):
        client.endpoint.acquire("server0", fleet.now)
        client.endpoint.initiate("server0", fleet.now)
        fleet.flush(client)
    fleet.run(5.0)
    assert len(fleet.server.endpoint.children()) == 1
    assert len(fleet.server.said(events.IkeSaEstablished)) == 1


def test_the_responders_traffic_leaves_quick_mode_to_who_began_phase_1() -> None:
    fleet = Fleet()
    fleet.clients[0].endpoint.initiate("server0", fleet.now)
    fleet.flush(fleet.clients[0])
    while not fleet.server.said(events.IkeSaEstablished):
        fleet.run(0.005)
    fleet.server.endpoint.acquire("client0", fleet.now)
    fleet.flush(fleet.server)
    fleet.run(5.0)
    assert len(fleet.server.endpoint.children()) == 1


def test_traffic_brings_nothing_up_where_the_configuration_says_no() -> None:
    fleet = Fleet(change=lambda c: replace(c, acquire=False))
    fleet.clients[0].endpoint.acquire("server0", fleet.now)
    assert not fleet.clients[0].collect()


def test_a_pair_that_was_never_confirmed_goes_with_its_phase_1() -> None:
    fleet = Fleet().connect()
    client, server = fleet.clients[0], fleet.server
    client.endpoint.rekey("server0", fleet.now)
    fleet.flush(client)
    fleet.run(0.015)  # message 1 has arrived, 3 has not
    assert len(server.endpoint.children()) == 2
    client.endpoint.shut_down(fleet.now)
    for data, path in client.collect():
        server.endpoint.receive_datagram(data, Path(SERVER, 500, *fleet.nat.outbound(path.local, 500)), fleet.now)
    server.collect()
    assert not server.endpoint.children()
    assert not server.plane.inbound


def two_connections() -> Fleet:
    """A client and a server with a second connection between them, which may share the phase 1 of the first."""
    fleet = Fleet()
    client, server = fleet.clients[0], fleet.server
    here, there = "10.2.0.1/32", "10.99.0.2/32"
    client.connections.append(replace(client.connections[0], name="more", selector=Selector(here, there)))
    server.connections.append(replace(server.connections[0], name="more", selector=Selector(there, here)))
    client.restart()
    server.restart()
    for name in ("server0", "more"):
        client.endpoint.initiate(name, fleet.now)
    fleet.flush(client)
    return fleet


def test_a_peer_cannot_bring_up_what_was_taken_down_here() -> None:
    """Two connections share a phase 1; the one that is down stays down though its phase 1 lives."""
    fleet = two_connections().run(5.0)
    client, server = fleet.clients[0], fleet.server
    assert len(server.said(events.IkeSaEstablished)) == 1
    assert len(server.endpoint.usable_children()) == 2
    client.endpoint.terminate("more", fleet.now)
    fleet.flush(client)
    fleet.run(1.0)
    server.endpoint.acquire("more", fleet.now)
    fleet.flush(server)
    fleet.run(30.0)
    assert [child.connection for child in client.endpoint.children()] == ["server0"]
    assert [child.connection for child in server.endpoint.children()] == ["client0"]


@pytest.mark.parametrize("moment", [0.015, 0.035, 0.055, 0.065, 0.075, 0.085])
@pytest.mark.parametrize(("down", "stays"), [("more", "server0"), ("server0", "more")])
def test_taking_one_down_leaves_what_is_under_way_for_another(down: str, stays: str, moment: float) -> None:
    """In Main Mode, in Quick Mode, whichever connection has begun the phase 1 that both share."""
    fleet = two_connections().run(moment)
    fleet.clients[0].endpoint.terminate(down, fleet.now)
    fleet.flush(fleet.clients[0])
    fleet.run(30.0)
    assert [child.connection for child in fleet.clients[0].endpoint.usable_children()] == [stays]


def test_a_pair_is_renewed_though_the_phase_1_that_should_have_done_it_was_taken_down() -> None:
    fleet = two_connections().run(5.0)
    client = fleet.clients[0]
    client.endpoint.rekey("server0", fleet.now, phase1=True)
    client.endpoint.terminate("more", fleet.now)
    fleet.flush(client)
    fleet.run(3600.0)
    assert [child.connection for child in client.endpoint.usable_children()] == ["server0"]
    assert client.endpoint.usable_children()[0].expires > fleet.now
