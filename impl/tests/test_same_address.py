"""Clients that use the same inner address: whose packet is whose must never be a guess (the draft, 7)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ike_fleet import Fleet

from espthrunat.ike import events
from espthrunat.ike.policy import Connection
from espthrunat.messages import Selector

INNER = "192.168.1.11/32"


def alike(connection: Connection) -> Connection:
    theirs = connection.remote is not None
    selector = Selector(INNER, "10.99.0.1/32") if theirs else Selector("10.99.0.1/32", INNER)
    return replace(connection, selector=selector)


@pytest.mark.draft("SEC-1")
def test_the_second_client_with_an_inner_address_waits_until_the_first_has_gone() -> None:
    fleet = Fleet(2, change=alike, serve=alike)
    first, second = fleet.clients
    first.endpoint.initiate("server0", 0.0)
    fleet.flush(first)
    fleet.run(1.0)
    second.endpoint.initiate("server1", fleet.now)
    fleet.flush(second)
    fleet.run(1.0)
    assert [child.connection for child in fleet.server.endpoint.children()] == ["client0"]
    assert not second.endpoint.children()
    reasons = [e.reason for e in fleet.server.said(events.ExchangeFailed)]
    assert reasons == ["Quick Mode refused: 192.168.1.11/32 is client0.example's at present, not client1.example's"]
    assert "INVALID-ID-INFORMATION" in second.said(events.ExchangeFailed)[0].reason

    first.endpoint.terminate("server0", fleet.now)
    fleet.flush(first)
    fleet.run(1.0)
    second.endpoint.initiate("server1", fleet.now)
    fleet.flush(second)
    fleet.run(1.0)
    assert [child.connection for child in fleet.server.endpoint.children()] == ["client1"]


@pytest.mark.draft("SEC-1")
def test_both_may_come_when_their_traffic_differs_by_port() -> None:
    def by_port(connection: Connection) -> Connection:
        selector = alike(connection).selector
        port = 5000 + int(connection.name[-1])
        theirs = connection.remote is not None
        ports = {"local_port": port} if theirs else {"remote_port": port}
        return replace(connection, selector=Selector(selector.local, selector.remote, 17, **ports))

    assert Fleet(2, change=by_port, serve=by_port).connect().up == 2


def test_a_client_may_always_replace_its_own() -> None:
    fleet = Fleet(change=alike, serve=alike).connect()
    fleet.clients[0].restart()
    fleet.clients[0].endpoint.initiate("server0", fleet.now)
    fleet.flush(fleet.clients[0])
    fleet.run(1.0)
    assert fleet.up == 1
