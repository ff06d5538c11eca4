"""When keepalives begin and end, by what the endpoint tells the data plane (the draft, 4.3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ike_fleet import Fleet
from ike_world import SERVER, Nat

from espthrunat.ike.policy import Connection, EncapsulationPolicy
from espthrunat.messages import Path


def mapping(fleet: Fleet) -> Path:
    return Path(fleet.clients[0].address, 500, SERVER, 500)


@pytest.mark.draft("KA-1", "KA-6")
def test_only_the_initiator_sends_them_one_stream_for_all() -> None:
    fleet = Fleet(3).connect()
    for client in fleet.clients:
        assert client.plane.keepalives == {Path(client.address, 500, SERVER, 500): 20.0}
    assert not fleet.server.plane.keepalives


@pytest.mark.draft("KA-1", "REKEY-1")
def test_the_responder_sends_none_after_its_own_phase_1_either() -> None:
    """The one behind the NAT goes on: it began the relation, and its mapping is what must live."""
    fleet = Fleet().connect()
    fleet.server.endpoint.rekey("client0", fleet.now, phase1=True)
    fleet.flush(fleet.server)
    fleet.run(60.0)
    assert [sa.initiator for sa in fleet.server.endpoint.ike_sas()] == [True]
    assert not fleet.server.plane.keepalives
    assert list(fleet.clients[0].plane.keepalives) == [mapping(fleet)]


@pytest.mark.draft("KA-3")
@pytest.mark.parametrize("tail", [300.0, 7.5])
def test_they_go_on_for_the_tail_when_all_sas_are_gone(tail: float) -> None:
    def ending(connection: Connection) -> Connection:
        if tail == 300.0:  # the default
            return replace(connection, rekey=False, ike_lifetime=60, esp_lifetime=100)
        return replace(connection, rekey=False, ike_lifetime=60, esp_lifetime=100, keepalive_tail=tail)

    fleet = Fleet(change=ending, serve=ending).connect(101.0)
    client = fleet.clients[0]
    assert not client.endpoint.children()
    assert not client.endpoint.ike_sas()
    gone = 100.0
    fleet.run(gone + tail - fleet.now - 1)
    assert list(client.plane.keepalives) == [mapping(fleet)]
    fleet.run(2.0)
    assert not client.plane.keepalives


@pytest.mark.draft("KA-3")
def test_an_sa_in_the_tail_makes_them_go_on() -> None:
    def ending(connection: Connection) -> Connection:
        return replace(connection, rekey=False, ike_lifetime=60, esp_lifetime=60, keepalive_tail=100.0)

    fleet = Fleet(change=ending, serve=ending).connect(150.0)
    client = fleet.clients[0]
    client.endpoint.initiate("server0", fleet.now)
    fleet.flush(client)
    fleet.run(40.0)
    assert list(client.plane.keepalives) == [mapping(fleet)], "the first tail has ended them"
    fleet.run(200.0)
    assert not client.plane.keepalives


@pytest.mark.draft("KA-3", "REKEY-4")
def test_the_peers_rekey_in_the_tail_makes_them_go_on() -> None:
    def ending(connection: Connection) -> Connection:
        return replace(connection, rekey=False, ike_lifetime=60, esp_lifetime=60, keepalive_tail=100.0)

    fleet = Fleet(change=ending, serve=ending).connect(150.0)
    fleet.server.endpoint.rekey("client0", fleet.now)
    fleet.flush(fleet.server)
    fleet.run(140.0)
    assert list(fleet.clients[0].plane.keepalives) == [mapping(fleet)], "the first tail has ended them"
    fleet.run(100.0)
    assert not fleet.clients[0].plane.keepalives


def test_who_takes_a_connection_down_wants_silence() -> None:
    fleet = Fleet().connect()
    fleet.clients[0].endpoint.terminate("server0", fleet.now)
    fleet.flush(fleet.clients[0])
    assert not fleet.clients[0].plane.keepalives


def test_none_where_nothing_forgets_or_the_configuration_says_so() -> None:
    assert not Fleet(nat=Nat(None)).connect().clients[0].plane.keepalives
    assert not Fleet(change=lambda c: replace(c, keepalive_interval=0.0)).connect().clients[0].plane.keepalives
    always = lambda c: replace(c, encapsulation=EncapsulationPolicy.ALWAYS)  # noqa: E731
    forced = Fleet(nat=Nat(None), change=always, serve=always).connect()
    assert list(forced.clients[0].plane.keepalives) == [mapping(forced)]
