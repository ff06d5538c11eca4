"""SAs are replaced before they end, by either side, at any time, and no packet notices (the draft, 5, IKE Rekey)."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from ike_fleet import Fleet, Stream, fair, foul
from ike_world import DELAY, PUBLIC, SERVER

from espthrunat.esp.suites import SUITES
from espthrunat.ike import events
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.policy import Connection
from espthrunat.messages import Direction, Path


def spis(fleet: Fleet) -> set[int]:
    return {child.inbound_spi for child in fleet.clients[0].endpoint.usable_children()}


def phase1(fleet: Fleet) -> set[bytes]:
    return {sa.initiator_cookie for sa in fleet.clients[0].endpoint.ike_sas()}


def short(connection: Connection) -> Connection:
    return replace(connection, esp_lifetime=100, ike_lifetime=300)


@pytest.mark.draft("REKEY-3", "SA-5")
def test_pairs_are_replaced_by_time_for_a_day_without_a_lost_packet() -> None:
    fleet = Fleet(change=short, serve=short).connect()
    stream = Stream(fleet, interval=0.5).start(3600)
    fleet.run(3600)
    assert not stream.lost
    established = fleet.clients[0].said(events.IkeSaEstablished)
    assert len(established) >= 3600 / 300
    assert len(fleet.clients[0].endpoint.children()) <= 2
    assert len(fleet.server.endpoint.ike_sas()) <= 2


@pytest.mark.draft("REKEY-3")
@pytest.mark.parametrize("side", ["initiator", "responder", "both"])
@pytest.mark.parametrize("what", ["quick", "phase 1", "all"])
def test_a_rekey_on_command_loses_nothing(side: str, what: str) -> None:
    fleet = Fleet().connect()
    before, cookies = spis(fleet), phase1(fleet)
    stream = Stream(fleet).start(30.0)
    fleet.run(1.0)
    for host, name in ((fleet.clients[0], "server0"), (fleet.server, "client0")):
        if side in ("both", "initiator" if host is fleet.clients[0] else "responder"):
            host.endpoint.rekey(name, fleet.now, phase1=what != "quick", quick=what != "phase 1")
            fleet.flush(host)
    fleet.run(30.0)
    assert not stream.lost
    assert stream.sent > 20_000
    assert fleet.up == 1
    if what != "phase 1":
        assert not spis(fleet) & before
    if what == "quick" and side != "both":  # who made the new pair deletes the old one, and nobody else
        rekeyed, other = (fleet.clients[0], fleet.server) if side == "initiator" else (fleet.server, fleet.clients[0])
        assert [e.reason for e in rekeyed.events if isinstance(e, events.SaDeleted)] == ["replaced"]
        assert [e.reason for e in other.events if isinstance(e, events.SaDeleted)] == ["deleted by the peer"]
    if what != "quick":
        assert not phase1(fleet) & cookies
    assert all(child.inbound_spi not in before for child in fleet.clients[0].endpoint.children()) or what == "phase 1"


@pytest.mark.draft("REKEY-3")
@pytest.mark.parametrize("seed", range(12))
def test_rekeys_of_both_sides_collide_without_harm_in_foul_weather(seed: int) -> None:
    """ESP arrives; IKE is lost, doubled and reordered. Whatever the order, all packets are accepted."""
    fleet = Fleet(seed=seed).connect()
    fleet.weather = foul
    stream = Stream(fleet, interval=0.01).start(120.0)
    chance = random.Random(seed)
    for _ in range(4):
        fleet.run(1.0 + chance.random())
        for host, name in ((fleet.clients[0], "server0"), (fleet.server, "client0")):
            host.endpoint.rekey(name, fleet.now, phase1=chance.random() < 0.5)
            fleet.flush(host)
            fleet.run(chance.random() * 2 * DELAY)
    fleet.run(20.0)
    fleet.weather = fair
    fleet.clients[0].endpoint.rekey("server0", fleet.now)  # the next one clears up what the collisions have left
    fleet.flush(fleet.clients[0])
    fleet.run(60.0)
    assert not stream.lost
    assert fleet.up == 1
    for host in (fleet.clients[0], fleet.server):
        assert len(host.endpoint.usable_children()) == 1


def test_a_replaced_pair_is_no_longer_sent_with_and_still_accepted_for_the_overlap() -> None:
    fleet = Fleet().connect()
    old = {host: list(host.plane.inbound) for host in (fleet.clients[0], fleet.server)}
    fleet.clients[0].endpoint.rekey("server0", fleet.now)
    fleet.flush(fleet.clients[0])
    fleet.run(9.0)
    for host, before in old.items():
        assert [len(sas) for sas in host.plane.outbound.values()] == [1]
        assert len(host.said(events.SaRetired)) == 1
        assert before[0] in host.plane.inbound
    fleet.run(2.0)
    for host, before in old.items():
        assert before[0] not in host.plane.inbound


@pytest.mark.parametrize("who", ["initiator", "responder"])
def test_who_began_renews_and_the_other_only_if_it_does_not(who: str) -> None:
    def still(connection: Connection) -> Connection:
        return replace(short(connection), rekey=who == "initiator")

    fleet = Fleet(change=still, serve=short).connect(1000.0)
    made_here = [child.initiator for child in fleet.clients[0].endpoint.usable_children()]
    assert made_here == [who == "initiator"]
    established = fleet.clients[0].said(events.IkeSaEstablished)
    assert [e.initiator for e in established[1:]] == [who == "initiator"] * (len(established) - 1)
    assert 3 <= len(established) <= 5


def test_a_phase_1_that_nothing_needs_is_not_renewed() -> None:
    def deaf(connection: Connection) -> Connection:
        return replace(short(connection), esp_suites=(SUITES["aes256gcm16"],))

    fleet = Fleet(change=short, serve=deaf).connect(1.0)
    assert len(fleet.clients[0].endpoint.ike_sas()) == 1
    fleet.run(400.0)
    assert not fleet.clients[0].endpoint.ike_sas()
    assert not fleet.server.endpoint.ike_sas()


def test_a_phase_1_is_renewed_with_the_same_peer_only() -> None:
    """Behind the mapped port there is another client now, with a name and a key that the connection would take."""
    fleet = Fleet(serve=lambda c: replace(c, remote_identity=IdentityPattern("any"))).connect()
    client = fleet.clients[0]
    client.connections = [replace(client.connections[0], local_identity=Identity.from_text("mallory.example"))]
    client.restart()
    fleet.server.endpoint.rekey("client0", fleet.now, phase1=True, quick=False)
    fleet.flush(fleet.server)
    fleet.run(5.0)
    assert {sa.identity.text for sa in fleet.server.endpoint.ike_sas() if sa.identity} == {"client0.example"}
    assert any("mallory.example" in str(e) for e in fleet.server.said(events.AuthenticationFailed))


def test_duplicates_of_a_collision_do_not_live_on() -> None:
    """Both sides replace a pair at the same moment; when the two new ones end, one is replaced and one is not."""
    fleet = Fleet(change=short, serve=short).connect()
    for host, name in ((fleet.clients[0], "server0"), (fleet.server, "client0")):
        host.endpoint.rekey(name, fleet.now)
        fleet.flush(host)
    stream = Stream(fleet, interval=0.1).start(400.0)
    fleet.run(30.0)
    assert len(fleet.clients[0].endpoint.usable_children()) == 2
    fleet.run(370.0)
    assert not stream.lost
    assert len(fleet.clients[0].endpoint.usable_children()) == 1
    assert len(fleet.server.endpoint.usable_children()) == 1


@pytest.mark.parametrize("phase1", [False, True], ids=["quick", "phase 1"])
def test_one_new_pair_replaces_all_that_both_ends_have_made_at_once_and_says_so(phase1: bool) -> None:
    """Who waits for as many as there were would wait for ever."""
    fleet = Fleet(2).connect()
    for host, name in ((fleet.clients[0], "server0"), (fleet.server, "client0")):
        host.endpoint.rekey(name, fleet.now)
        fleet.flush(host)
    fleet.run(5.0)
    client = fleet.clients[0]
    before = spis(fleet)
    assert len(before) == 2
    assert client.endpoint.rekey("server0", fleet.now, phase1=phase1) == 1
    fleet.flush(client)
    fleet.run(1.0)
    assert len(spis(fleet)) == 1
    assert not spis(fleet) & before


@pytest.mark.draft("REKEY-3")
@pytest.mark.parametrize("late", ["initiator", "responder"])
def test_a_rekey_that_is_heard_late_leaves_no_pair_that_came_before_its_own(late: str) -> None:
    """Its first message is lost, and before it is repeated the other side makes a pair that this one did not know."""
    fleet = Fleet().connect()
    ends = [(fleet.clients[0], "server0"), (fleet.server, "client0")]
    (first, to_second), (second, to_first) = ends if late == "initiator" else reversed(ends)
    fleet.weather = lambda _: []
    first.endpoint.rekey(to_second, fleet.now)
    fleet.flush(first)
    fleet.run(DELAY)
    fleet.weather = fair
    stream = Stream(fleet, interval=0.1).start(20.0)
    second.endpoint.rekey(to_first, fleet.now)
    fleet.flush(second)
    fleet.run(4 * DELAY)
    (meanwhile,) = [child.inbound_spi for child in first.endpoint.usable_children()]
    fleet.run(5.0)
    assert len(fleet.clients[0].endpoint.usable_children()) == len(fleet.server.endpoint.usable_children()) == 1
    fleet.run(15.0)
    assert not stream.lost
    (child,) = first.endpoint.children()
    assert child.inbound_spi != meanwhile
    assert [other.outbound_spi for other in second.endpoint.children()] == [child.inbound_spi]


@pytest.mark.draft("SA-5", "REKEY-3")
@pytest.mark.parametrize("direction", list(Direction))
def test_a_pair_whose_octets_or_sequence_numbers_run_out_is_replaced(direction: Direction) -> None:
    fleet = Fleet().connect()
    client = fleet.clients[0]
    (pair,) = client.endpoint.usable_children()
    spi = pair.inbound_spi if direction == Direction.INBOUND else pair.outbound_spi
    stream = Stream(fleet).start(20.0)
    client.endpoint.sa_expires(spi, direction, False, fleet.now)
    fleet.flush(client)
    fleet.run(20.0)
    assert not stream.lost
    assert pair.inbound_spi not in spis(fleet)
    assert len(spis(fleet)) == 1


@pytest.mark.draft("SA-5")
def test_a_pair_that_is_used_up_is_gone_at_both_ends_and_another_comes() -> None:
    fleet = Fleet().connect()
    client = fleet.clients[0]
    (pair,) = client.endpoint.usable_children()
    client.endpoint.sa_expires(pair.outbound_spi, Direction.OUTBOUND, True, fleet.now)
    fleet.flush(client)
    assert not client.endpoint.children()
    fleet.run(1.0)
    assert fleet.up == 1
    assert pair.inbound_spi not in spis(fleet)
    assert len(fleet.server.endpoint.children()) == 1


@pytest.mark.draft("REKEY-1", "NATD-7")
@pytest.mark.parametrize("what", ["quick", "phase 1"])
def test_the_responder_rekeys_from_500_to_the_mapped_port(what: str) -> None:
    fleet = Fleet().connect()
    sent = len(fleet.sent)
    fleet.server.endpoint.rekey("client0", fleet.now, phase1=what == "phase 1", quick=what == "quick")
    fleet.flush(fleet.server)
    fleet.run(5.0)
    first = fleet.sent[sent]
    assert first[1] == Path(SERVER, 500, PUBLIC, 1024)
    assert {path for _, path, _ in fleet.sent[sent:] if path.local == SERVER} == {Path(SERVER, 500, PUBLIC, 1024)}
    assert fleet.up == 1


@pytest.mark.draft("REKEY-2")
def test_the_initiator_begins_the_whole_process_over() -> None:
    """A new Main Mode from its first message on: new cookies, NAT discovery again."""
    fleet = Fleet().connect()
    client = fleet.clients[0]
    known = len(client.said(events.NatDetected))
    cookies = phase1(fleet)
    client.endpoint.rekey("server0", fleet.now, phase1=True, quick=False)
    fleet.flush(client)
    fleet.run(1.0)
    assert len(phase1(fleet) - cookies) == 1
    assert len(client.said(events.NatDetected)) == known + 1
    fleet.run(20.0)
    assert not phase1(fleet) & cookies


@pytest.mark.draft("REKEY-4", "KA-3")
@pytest.mark.parametrize("left", ["pairs", "nothing"])
def test_the_responder_rekeys_when_main_mode_is_gone_and_keepalives_hold_the_mapping(left: str) -> None:
    def no_rekey(connection: Connection) -> Connection:
        return replace(connection, rekey=False, ike_lifetime=60, esp_lifetime=3600 if left == "pairs" else 70)

    fleet = Fleet(change=no_rekey, serve=no_rekey).connect().run(100.0)
    client, server = fleet.clients[0], fleet.server
    assert not server.endpoint.ike_sas()
    assert bool(server.endpoint.children()) == (left == "pairs")
    assert list(client.plane.keepalives) == [Path(client.address, 500, SERVER, 500)]
    sent = len(fleet.sent)
    server.endpoint.rekey("client0", fleet.now)
    fleet.flush(server)
    fleet.run(5.0)
    assert fleet.sent[sent][1] == Path(SERVER, 500, PUBLIC, 1024)
    assert fleet.up == 1
    assert len(server.endpoint.ike_sas()) == 1


@pytest.mark.draft("REKEY-4")
def test_traffic_of_the_responder_brings_the_pair_back_while_keepalives_hold_the_mapping() -> None:
    def no_rekey(connection: Connection) -> Connection:
        return replace(connection, rekey=False, ike_lifetime=60, esp_lifetime=70)

    fleet = Fleet(change=no_rekey, serve=no_rekey).connect().run(100.0)
    assert fleet.up == 0
    fleet.server.endpoint.acquire("client0", fleet.now)
    fleet.flush(fleet.server)
    fleet.run(5.0)
    assert fleet.up == 1


def test_nobody_is_asked_for_whom_there_is_no_mapping() -> None:
    def no_rekey(connection: Connection) -> Connection:
        return replace(connection, rekey=False, ike_lifetime=60, esp_lifetime=70, keepalive_tail=50.0)

    fleet = Fleet(change=no_rekey, serve=no_rekey).connect().run(130.0)
    assert not fleet.clients[0].plane.keepalives
    with pytest.raises(ValueError, match="client0 is not up"):
        fleet.server.endpoint.rekey("client0", fleet.now)
    with pytest.raises(ValueError, match="server0 is not up"):
        fleet.clients[0].endpoint.rekey("server0", fleet.now)
    assert fleet.server.endpoint.timer() is None


def test_a_rekey_that_gets_no_answer_is_tried_again_and_the_old_pair_serves_meanwhile() -> None:
    def lasting(connection: Connection) -> Connection:
        return replace(connection, esp_lifetime=1000, dpd_interval=0.0)

    fleet = Fleet(change=lasting, serve=lambda c: replace(lasting(c), rekey=False)).connect()
    old = spis(fleet)
    stream = Stream(fleet, interval=0.1).start(1500.0)
    fleet.run(840.0)
    fleet.weather = lambda _: []  # IKE gets lost, ESP does not
    fleet.run(100.0)
    assert spis(fleet) == old
    fleet.weather = lambda _: [DELAY]
    fleet.run(560.0)
    assert not stream.lost


@pytest.mark.parametrize("how", ["message 3 is lost, ESP comes", "message 3 is lost for good"])
def test_a_lost_confirmation(how: str) -> None:
    """The responder learns from the first ESP packet that the initiator has the keys."""
    fleet = Fleet().connect()
    client, server = fleet.clients[0], fleet.server
    old = spis(fleet)
    client.endpoint.rekey("server0", fleet.now)
    fleet.flush(client)
    fleet.run(1.5 * DELAY)  # message 1 has arrived; 2 is under way
    fleet.weather = lambda _: []
    fleet.run(DELAY)
    (new,) = spis(fleet) - old
    outbound = next(c.outbound_spi for c in client.endpoint.children() if c.inbound_spi == new)
    if how.endswith("ESP comes"):
        server.endpoint.sa_used(outbound, fleet.now)
        fleet.flush(server)
        assert server.plane.sends_with("client0") == (new, Path(SERVER, 500, PUBLIC, 1024))
        fleet.weather = lambda _: [DELAY]
        fleet.run(60.0)
        assert spis(fleet) == {new}
    else:
        fleet.run(9.0)  # within the overlap the old pair still carries what the responder sends
        assert fleet.passes(0, False)
        fleet.weather = lambda _: [DELAY]
        fleet.run(60.0)
        assert not client.endpoint.children(), "a pair that only one end has"
        assert not server.endpoint.children()
        client.endpoint.acquire("server0", fleet.now)
        fleet.flush(client)
        fleet.run(1.0)
    assert fleet.up == 1


@pytest.mark.draft("REKEY-3")
@pytest.mark.parametrize("fate", ["lost", "doubled", "late"])
@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("phase1", [False, True])
def test_each_message_of_a_rekey_lost_doubled_or_overtaken(phase1: bool, number: int, fate: str) -> None:
    fleet = Fleet().connect()
    before = spis(fleet)
    stream = Stream(fleet, interval=0.005).start(30.0)
    count = iter(range(1_000_000))

    def weather(_: random.Random) -> list[float]:
        if next(count) != number:
            return [DELAY]
        return {"lost": [], "doubled": [DELAY, 3 * DELAY], "late": [5 * DELAY]}[fate]

    fleet.weather = weather
    fleet.clients[0].endpoint.rekey("server0", fleet.now, phase1=phase1)
    fleet.flush(fleet.clients[0])
    fleet.run(30.0)
    assert not stream.lost
    assert fleet.up == 1
    assert not spis(fleet) & before
