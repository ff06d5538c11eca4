"""A thousand clients behind one NAT in foul weather: all connect, rekey and leave, and nothing of them is left."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace

import pytest
from ike_fleet import Fleet, foul

from espthrunat.ike.child_sa import ChildSa
from espthrunat.ike.ike_sa import IkeSa
from espthrunat.ike.launcher import Want
from espthrunat.ike.main_mode import MainModeInitiator
from espthrunat.ike.main_mode_responder import MainModeResponder
from espthrunat.ike.policy import Connection, Retransmission
from espthrunat.ike.quick_mode import QuickMode
from espthrunat.ike.retransmission import Retransmitter
from espthrunat.ike.sa_table import Pair

CLIENTS = 1000
STATE = (IkeSa, ChildSa, Pair, Want, MainModeInitiator, MainModeResponder, QuickMode, Retransmitter)


def alive() -> Counter[str]:
    """Everything that an exchange or an SA is made of, wherever somebody still holds it."""
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in STATE)


def patient(connection: Connection) -> Connection:
    return replace(
        connection,
        start=connection.remote is not None,
        retransmission=Retransmission(first=0.5, factor=2.0, tries=8),
        retry=5.0,
        dpd_interval=60.0,
        rekey_overlap=5.0,
    )


def all_up(fleet: Fleet) -> None:
    """Wait for the moment at which nobody is without SAs; in such weather some begin anew now and then."""
    end = fleet.now + 300.0
    while fleet.run(1.0).up < CLIENTS:
        assert fleet.now < end, f"{CLIENTS - fleet.up} are not up after 300 s"


@pytest.mark.draft("SA-2", "SA-3", "NATD-7")
def test_a_thousand_clients_connect_rekey_and_leave() -> None:
    before = alive()
    fleet = Fleet(CLIENTS, weather=foul, change=patient, serve=patient)
    fleet.connect(0.0)
    all_up(fleet)
    ports = {child.path.remote_port for child in fleet.server.endpoint.usable_children()}
    assert len(ports) == CLIENTS, "one phase 1 a client, told apart by its port alone"
    assert len({child.path.remote for child in fleet.server.endpoint.usable_children()}) == 1

    old = [{child.inbound_spi for child in client.endpoint.children()} for client in fleet.clients]
    for number, client in enumerate(fleet.clients):
        if number % 2:
            client.endpoint.rekey(f"server{number}", fleet.now, phase1=number % 4 == 1)
            fleet.flush(client)
        else:
            fleet.server.endpoint.rekey(f"client{number}", fleet.now)
    fleet.flush(fleet.server)
    fleet.run(60.0)
    all_up(fleet)
    still = [
        n
        for n, client in enumerate(fleet.clients)
        if {c.inbound_spi for c in client.endpoint.usable_children()} & old[n]
    ]
    assert not still, "these were not rekeyed"

    for number, client in enumerate(fleet.clients):
        client.endpoint.terminate(f"server{number}", fleet.now)
        fleet.flush(client)
    fleet.run(1000.0)  # a lost Delete is made up for by the question whether the client is alive
    for host in (*fleet.clients, fleet.server):
        assert host.endpoint.timer() is None
        assert not host.endpoint.ike_sas()
        assert not host.endpoint.children()
        assert not host.plane.inbound
        assert not host.plane.outbound
        assert not host.plane.keepalives
        host.events.clear()
    fleet.sent.clear()
    assert alive() == before
