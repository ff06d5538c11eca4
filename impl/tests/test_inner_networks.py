"""Clients with the same inner address at once, where the gateway translates (the draft, 1 and 7)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ike_fleet import Fleet, Host
from ike_world import RESPONDER

from espthrunat.ike import events
from espthrunat.ike.address_pool import AddressPool
from espthrunat.ike.context import Context, SystemEntropy
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.inner_networks import InnerNetworks
from espthrunat.ike.policy import Connection
from espthrunat.ike.timers import Timers
from espthrunat.messages import AddPolicy, DeletePolicy, Direction, Selector
from espthrunat.plane_policies import PlanePolicies
from espthrunat.plane_sas import add_sa
from espthrunat.status import status

INNER, OFFICE = "192.168.1.11/32", "10.99.0.1/32"
POOL = "10.200.0.0/29"


def alike(connection: Connection) -> Connection:
    return replace(connection, selector=Selector(INNER, OFFICE))


def translating(connection: Connection) -> Connection:
    return replace(connection, selector=Selector(OFFICE, INNER), translate=True, keepalive_tail=100.0, dpd_interval=0.0)


def world(clients: int = 2, pool: str = POOL) -> Fleet:
    return Fleet(clients, change=alike, serve=translating, pool=pool)


def mapped(fleet: Fleet) -> dict[str, set[str]]:
    """What each peer appears as, by all its pairs."""
    found: dict[str, set[str]] = {}
    for pair in fleet.server.endpoint.pairs():
        assert pair.sa.identity is not None
        found.setdefault(pair.sa.identity.text, set()).add(pair.child.mapped)
    return found


def begin(fleet: Fleet, number: int) -> None:
    fleet.clients[number].endpoint.initiate(f"server{number}", fleet.now)
    fleet.flush(fleet.clients[number])
    fleet.run(2.0)


def end(fleet: Fleet, number: int) -> None:
    fleet.clients[number].endpoint.terminate(f"server{number}", fleet.now)
    fleet.flush(fleet.clients[number])
    fleet.run(2.0)


FIRST = {"client0.example": {"10.200.0.1/32"}}
BOTH = {**FIRST, "client1.example": {"10.200.0.2/32"}}


@pytest.mark.draft("SEC-1", "SEC-2")
def test_both_are_up_and_each_is_somebody_else_here() -> None:
    fleet = world().connect()
    assert fleet.up == 2
    assert mapped(fleet) == BOTH
    children = fleet.server.endpoint.children()
    assert {child.selector for child in children} == {Selector(OFFICE, INNER)}
    assert {child.policy for child in children} == {"client0@10.200.0.1/32", "client1@10.200.0.2/32"}
    assert not any(child.mapped for client in fleet.clients for child in client.endpoint.children())


@pytest.mark.draft("SEC-1")
def test_one_connection_serves_all_clients_of_a_domain() -> None:
    fleet = world(3)
    everybody = replace(translating(fleet.server.connections[0]), remote_identity=IdentityPattern("*.example"))
    fleet.server.connections = [replace(everybody, name="clients")]
    fleet.server.restart()
    fleet.connect()
    assert mapped(fleet) == {**BOTH, "client2.example": {"10.200.0.3/32"}}
    assert {child.policy for child in fleet.server.endpoint.usable_children()} == {
        f"clients@10.200.0.{host}/32" for host in (1, 2, 3)
    }


@pytest.mark.draft("SEC-1")
@pytest.mark.parametrize("phase1", [False, True], ids=["Quick Mode", "and phase 1"])
@pytest.mark.parametrize("by_server", [False, True], ids=["by the client", "by the gateway"])
def test_rekeys_keep_the_network(by_server: bool, phase1: bool) -> None:
    fleet = world().connect()
    for _ in range(3):
        spis = {child.inbound_spi for child in fleet.server.endpoint.usable_children()}
        for number, client in enumerate(fleet.clients):
            host, name = (fleet.server, f"client{number}") if by_server else (client, f"server{number}")
            host.endpoint.rekey(name, fleet.now, phase1=phase1)
            fleet.flush(host)
        fleet.run(30.0)
        assert spis.isdisjoint(child.inbound_spi for child in fleet.server.endpoint.usable_children())
        assert mapped(fleet) == BOTH
        assert fleet.up == 2


@pytest.mark.draft("SEC-1")
def test_lifetimes_that_end_keep_the_network() -> None:
    fleet = world().connect()
    fleet.run(10 * 3600.0)  # two phase 1 and ten ESP lifetimes
    assert fleet.up == 2
    assert mapped(fleet) == BOTH


@pytest.mark.draft("SEC-1")
def test_who_returns_soon_gets_the_network_back_and_nobody_else_has_it_meanwhile() -> None:
    fleet = world()
    begin(fleet, 0)
    end(fleet, 0)
    assert not mapped(fleet)
    fleet.run(90.0)
    begin(fleet, 1)
    begin(fleet, 0)
    assert mapped(fleet) == BOTH


def test_a_client_that_crashed_gets_its_network_back() -> None:
    fleet = world().connect()
    fleet.clients[0].restart()
    begin(fleet, 0)
    assert mapped(fleet) == BOTH
    assert fleet.up == 2


FULL = (
    "Quick Mode refused: the pool has no network left that client1.example could appear as",
    "the peer refused Quick Mode: INVALID-ID-INFORMATION",
)


def refused(fleet: Fleet, host: Host) -> list[str]:
    return [event.reason for event in host.said(events.ExchangeFailed)]


@pytest.mark.draft("SEC-1")
def test_a_full_pool_refuses_until_the_first_has_been_gone_for_the_tail() -> None:
    fleet = world(pool="10.200.0.9/32")
    begin(fleet, 0)
    begin(fleet, 1)
    assert mapped(fleet) == {"client0.example": {"10.200.0.9/32"}}
    assert refused(fleet, fleet.server) == [FULL[0]]
    assert refused(fleet, fleet.clients[1]) == [FULL[1]]
    end(fleet, 0)
    fleet.run(90.0)
    begin(fleet, 1)
    assert not mapped(fleet)
    fleet.run(20.0)
    begin(fleet, 1)
    assert mapped(fleet) == {"client1.example": {"10.200.0.9/32"}}


def test_without_a_pool_nobody_is_let_in_who_would_have_to_be_translated() -> None:
    fleet = world(pool="").connect()
    assert not fleet.server.endpoint.children()


def test_a_quick_mode_that_comes_to_nothing_holds_no_network_for_ever() -> None:
    """The first client never hears the answer, and never confirms."""
    fleet = world(pool="10.200.0.9/32")
    first = fleet.clients[0]
    first.endpoint.initiate("server0", fleet.now)
    fleet.flush(first)
    while not fleet.server.endpoint.pairs():
        fleet.run(0.001)
    first.alive = False
    fleet.run(200.0)
    assert not fleet.server.endpoint.pairs()
    begin(fleet, 1)
    assert mapped(fleet) == {"client1.example": {"10.200.0.9/32"}}


@pytest.mark.draft("SEC-2")
def test_a_client_cannot_ask_for_another_inner_address_than_its_own() -> None:
    fleet = world()
    thief = fleet.clients[1]
    thief.connections = [replace(thief.connections[0], selector=Selector("10.99.0.1/32", OFFICE))]
    thief.restart()
    fleet.connect()
    assert mapped(fleet) == FIRST
    assert "no connection of this peer protects" in refused(fleet, fleet.server)[0]


class Lender:
    """Networks of a pool that has one, and the clock that they are lent by."""

    def __init__(self, tail: float) -> None:
        self.timers = Timers()
        context = Context(SystemEntropy(), lambda data, path: None, lambda event: None, self.timers, lambda spi: False)
        self.networks = InnerNetworks(context, AddressPool("10.200.0.9/32"))
        self.connection = replace(translating(RESPONDER), keepalive_tail=tail)

    def assign(self, name: str, now: float) -> str | None:
        self.timers.run(now)
        return self.networks.assign(Identity.from_text(name), self.connection, now)


@pytest.mark.parametrize(("tail", "kept"), [(100.0, 100.0), (0.0, 60.0)])
def test_a_network_for_an_exchange_that_never_ends_is_kept_for_a_while_only(tail: float, kept: float) -> None:
    lender = Lender(tail)
    assert lender.assign("a.example", 0.0) == "10.200.0.9/32"
    assert lender.assign("b.example", kept - 1.0) is None
    assert lender.assign("b.example", kept + 1.0) == "10.200.0.9/32"


@pytest.mark.draft("SEC-1")
def test_a_rekey_that_fails_does_not_end_what_is_in_use() -> None:
    lender = Lender(100.0)
    (pair,) = world(1, "10.200.0.9/32").connect().server.endpoint.pairs()
    assert lender.assign("client0.example", 0.0) == "10.200.0.9/32"
    lender.networks.in_use(pair)
    assert lender.assign("client0.example", 10.0) == "10.200.0.9/32"  # the exchange comes to nothing
    assert lender.assign("b.example", 1000.0) is None
    lender.networks.unused(pair, 100.0, 1000.0)
    assert lender.assign("b.example", 1099.0) is None
    assert lender.assign("b.example", 1101.0) == "10.200.0.9/32"


def test_whole_networks_are_translated_too_and_one_peers_connections_agree() -> None:
    fleet = Fleet(1, change=alike, serve=translating, pool="10.200.0.0/16")
    client, server = fleet.clients[0].connections[0], fleet.server.connections[0]
    home = "192.168.1.0/24"
    fleet.clients[0].connections = [
        replace(client, name=f"server{n}", selector=Selector(home, f"10.99.0.{n}/32")) for n in range(2)
    ]
    fleet.server.connections = [
        replace(server, name=f"client{n}", selector=Selector(f"10.99.0.{n}/32", home)) for n in range(2)
    ]
    fleet.clients[0].restart()
    fleet.server.restart()
    begin(fleet, 0)
    fleet.clients[0].endpoint.initiate("server1", fleet.now)
    fleet.flush(fleet.clients[0])
    fleet.run(2.0)
    assert {child.policy for child in fleet.server.endpoint.children()} == {
        "client0@10.200.0.0/24",
        "client1@10.200.0.0/24",
    }


def test_a_gateway_that_begins_assigns_too() -> None:
    fleet = Fleet(1, change=alike, pool=POOL)
    client = fleet.clients[0]
    client.connections = [replace(client.connections[0], translate=True)]  # now this end is the one that translates
    client.pool = POOL
    client.restart()
    fleet.server.connections = [replace(fleet.server.connections[0], selector=Selector(OFFICE, INNER))]
    fleet.server.restart()
    fleet.connect()
    assert fleet.up == 1
    assert {child.mapped for child in client.endpoint.children()} == {"10.200.0.1/32"}


def test_a_gateway_that_begins_asks_nobody_while_the_pool_is_empty() -> None:
    fleet = Fleet(1, change=lambda connection: replace(alike(connection), translate=True))
    fleet.server.connections = [replace(fleet.server.connections[0], selector=Selector(OFFICE, INNER))]
    fleet.server.restart()
    fleet.connect()
    assert refused(fleet, fleet.clients[0]) == [
        "Quick Mode refused: the pool has no network left that server.example could appear as"
    ]
    assert not fleet.server.endpoint.children()


@pytest.mark.draft("SEC-1")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_who_is_translated_is_in_nobodys_way(order: tuple[int, int]) -> None:
    """The other one has that address for itself, as its connection has it."""
    fleet = world()
    fleet.server.connections[1] = replace(fleet.server.connections[1], translate=False)
    fleet.server.restart()
    for number in order:
        begin(fleet, number)
    assert mapped(fleet) == {"client0.example": {"10.200.0.1/32"}, "client1.example": {""}}
    assert fleet.up == 2


def test_traffic_for_an_address_of_the_pool_that_nobody_has_wakes_nobody() -> None:
    fleet = world().connect()
    before = len(fleet.sent)
    for name in ("client0", "client0@10.200.0.5/32"):
        fleet.server.endpoint.acquire(name, fleet.now)
        fleet.flush(fleet.server)
    fleet.run(1.0)
    assert len(fleet.sent) == before


def test_status_shows_what_a_peer_appears_as() -> None:
    fleet = world().connect()
    shown = status(fleet.server.endpoint, {}, {}, {}, fleet.now)["sas"]
    assert [(sa["remote_network"], sa["mapped_network"]) for sa in shown] == [
        (INNER, "10.200.0.1/32"),
        (INNER, "10.200.0.2/32"),
    ]


def test_status_tells_a_replaced_phase_1_from_the_current_one() -> None:
    fleet = Fleet(1).connect()
    for host, name in ((fleet.clients[0], "server0"), (fleet.server, "client0")):
        assert replaced(host, fleet.now) == [False]
        host.endpoint.rekey(name, fleet.now, phase1=True, quick=False)
        fleet.flush(host)
        fleet.run(5.0)
        for end_of_it in (fleet.clients[0], fleet.server):
            assert replaced(end_of_it, fleet.now) == [True, False]
        fleet.run(10.0)


def replaced(host: Host, now: float) -> list[bool]:
    return [sa["replaced"] for sa in status(host.endpoint, {}, {}, {}, now)["ike_sas"]]


# what the data plane is told


def test_the_plane_has_a_policy_for_the_pool_and_one_for_each_network_in_use() -> None:
    fleet = world().connect()
    connections = [replace(connection, source="10.99.0.1") for connection in fleet.server.connections]
    policies = PlanePolicies(connections, POOL)
    whole = AddPolicy("client0", Selector(OFFICE, POOL), "10.99.0.1", fallback=True)
    assert policies.all_again() == [whole], "one is enough for connections that are alike"
    first, second = fleet.server.endpoint.children()
    for child, network in ((first, "10.200.0.1/32"), (second, "10.200.0.2/32")):
        assert policies.before(child) == AddPolicy(
            child.policy, Selector(OFFICE, network), steer=False, on_demand=False
        )
    successor = replace(first, inbound_spi=first.inbound_spi + 1)
    assert policies.before(successor) is None
    assert policies.after(first) is None, "its successor needs it"
    assert policies.after(successor) == DeletePolicy("client0@10.200.0.1/32")
    assert policies.all_again() == [whole]


def test_both_halves_of_a_pair_say_what_the_peer_appears_as() -> None:
    fleet = world(1).connect()
    (child,) = fleet.server.endpoint.children()
    for direction in Direction:
        told = add_sa(child, direction, fleet.server.connections[0])
        assert (told.selector, told.mapped) == (Selector(OFFICE, INNER), "10.200.0.1/32")
        assert told.policy == "client0@10.200.0.1/32"
