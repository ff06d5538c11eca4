"""Who ends tells its peer, who learns of the end of everything, whichever phase 1 it may have forgotten already."""

from __future__ import annotations

import random

import pytest
from ike_fleet import Fleet, fair


def lost(_: random.Random) -> list[float]:
    return []


@pytest.mark.draft("REKEY-3")
def test_an_end_that_crosses_the_end_of_a_replaced_phase_1_leaves_nothing() -> None:
    """The server has let the old phase 1 go, and the client does not know that yet when it says goodbye."""
    fleet = Fleet().connect()
    client, server = fleet.clients[0], fleet.server
    server.endpoint.rekey("client0", fleet.now, phase1=True, quick=False)
    fleet.flush(server)
    fleet.run(1.0)
    assert len(client.endpoint.ike_sas()) == len(server.endpoint.ike_sas()) == 2
    fleet.weather = lost
    while len(server.endpoint.ike_sas()) > 1:
        fleet.run(0.1)
        assert fleet.now < 120
    assert len(client.endpoint.ike_sas()) == 2
    assert server.endpoint.children()
    fleet.weather = fair
    client.endpoint.shut_down(fleet.now)
    fleet.flush(client)
    fleet.run(1.0)
    assert not server.endpoint.children()
    assert not server.endpoint.ike_sas()
    assert not server.plane.inbound
