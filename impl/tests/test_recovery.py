"""Peers that die, restart, or stand behind a NAT that forgot them (RFC 3706; RFC 2407, 4.6.3.3; the draft, 5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ike_fleet import Fleet, Stream, foul
from ike_world import DELAY, INITIATOR, RESPONDER, SERVER, World

from espthrunat.ike import events
from espthrunat.ike.policy import Connection, Rebinding
from espthrunat.ike.quick_mode import QuickMode
from espthrunat.ike.sa_keeper import SaKeeper
from espthrunat.ike.sa_table import Phase1
from espthrunat.messages import Path
from espthrunat.wire.isakmp import ExchangeType
from espthrunat.wire.payloads import Notification, NotifyType
from espthrunat.wire.proposal import Protocol as ProtocolId

DPD = 5.0


def watchful(connection: Connection) -> Connection:
    return replace(connection, dpd_interval=DPD)


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.6, 0.99])
def test_when_the_nat_gives_another_port_the_initiator_begins_again(phase: float) -> None:
    """From the NAT's reboot to traffic flowing again: less than two intervals and a second, whenever it reboots."""
    fleet = Fleet(change=watchful, serve=watchful).connect(20.0 + phase * DPD)
    fleet.reboot_nat()
    rebooted = fleet.now
    assert fleet.up == 0
    while fleet.up == 0:
        fleet.run(0.05)
        assert fleet.now - rebooted < 2 * DPD + 1
    fleet.run(60.0)
    assert fleet.up == 1
    assert len(fleet.server.endpoint.children()) == 1, "the stale pair is still there"
    assert len(fleet.server.endpoint.ike_sas()) == 1


@pytest.mark.parametrize("dies", ["client", "server"])
def test_after_a_crash_of_one_side_the_other_recovers_by_itself(dies: str) -> None:
    fleet = Fleet(change=lambda c: replace(watchful(c), start=True), serve=watchful).connect()
    dead = fleet.clients[0] if dies == "client" else fleet.server
    dead.restart()
    if dies == "client":
        dead.endpoint.initiate("server0", fleet.now)
        fleet.flush(dead)
    fleet.run(2 * DPD + 1)
    assert fleet.up == 1
    fleet.run(60.0)
    for host in (fleet.clients[0], fleet.server):
        assert len(host.endpoint.children()) == 1
        assert len(host.endpoint.ike_sas()) == 1


def test_a_client_that_never_comes_back_is_forgotten() -> None:
    fleet = Fleet(serve=lambda c: replace(watchful(c), keepalive_tail=60.0)).connect()
    fleet.clients[0].alive = False
    fleet.run(2 * DPD + 1)
    assert not fleet.server.endpoint.children()
    assert not fleet.server.endpoint.ike_sas()
    fleet.run(60.0)
    assert fleet.server.endpoint.timer() is None


def test_initial_contact_ends_what_the_peer_has_forgotten_and_nothing_else() -> None:
    fleet = Fleet(2).connect()
    other = fleet.server.endpoint.usable_children()[1]
    fleet.clients[0].restart()
    fleet.clients[0].endpoint.initiate("server0", fleet.now)
    fleet.flush(fleet.clients[0])
    fleet.run(1.0)
    assert fleet.up == 2
    assert len(fleet.server.endpoint.children()) == 2
    assert other in fleet.server.endpoint.usable_children()
    reasons = [e.reason for e in fleet.server.events if isinstance(e, events.SaDeleted)]
    assert reasons == ["the peer began anew"]


def test_initial_contact_in_phase_1_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """As others send it, in message 5; what reads it there has tests of its own."""

    def done(keeper: SaKeeper, exchange: Phase1, now: float) -> None:
        exchange.sa.initial_contact = not exchange.sa.initiator
        as_ever(keeper, exchange, now)

    def without(keeper: SaKeeper, exchange: QuickMode, now: float) -> None:
        exchange.initial_contact = False
        answered(keeper, exchange, now)

    as_ever, answered = SaKeeper.phase1_done, SaKeeper.quick_answered
    monkeypatch.setattr(SaKeeper, "quick_answered", without)
    fleet = Fleet().connect()
    monkeypatch.setattr(SaKeeper, "phase1_done", done)
    fleet.clients[0].restart()
    fleet.clients[0].endpoint.initiate("server0", fleet.now)
    fleet.flush(fleet.clients[0])
    fleet.run(1.0)
    assert fleet.up == 1
    assert len(fleet.server.endpoint.children()) == 1
    assert [e.reason for e in fleet.server.said(events.SaDeleted)] == ["the peer began anew"]


@pytest.mark.parametrize("seed", range(6))
def test_both_ends_may_begin_at_once(seed: int) -> None:
    """INITIAL-CONTACT of each side's own phase 1 must not end the other's."""

    def outside(connection: Connection) -> Connection:
        return replace(connection, remote="192.168.0.0")

    fleet = Fleet(seed=seed, serve=outside, weather=foul)
    fleet.nat.public = None
    client, server = fleet.clients[0], fleet.server
    for host, name in ((client, "server0"), (server, "client0")):
        host.endpoint.initiate(name, 0.0)
        fleet.flush(host)
    fleet.run(60.0)
    assert fleet.up == 1
    stream = Stream(fleet, interval=0.5).start(7200.0)
    fleet.weather = lambda _: [0.01]
    fleet.run(7200.0)
    assert not stream.lost
    assert len(client.endpoint.usable_children()) == 1


def test_a_peer_that_does_not_know_the_question_is_not_asked_and_not_given_up() -> None:
    def without_dpd(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        return [(DELAY, data.replace(bytes.fromhex("afcad71368a1f1c96b8696fc77570100"), bytes(16)))]

    world = World(watchful(INITIATOR), watchful(RESPONDER), fate=without_dpd).connect(10.0)
    sent = len(world.wire)
    world.run(120.0)
    assert world.up
    assert len(world.wire) == sent


@pytest.mark.parametrize("about", ["this phase 1", "another phase 1"])
def test_only_questions_about_the_phase_1_itself_are_answered(about: str) -> None:
    fleet = Fleet().connect()
    client = fleet.clients[0]
    (sa,) = client.endpoint.ike_sas()
    spi = sa.initiator_cookie + sa.responder_cookie if about == "this phase 1" else bytes(16)
    question = Notification(NotifyType.R_U_THERE, ProtocolId.ISAKMP, spi, bytes(4))
    message = sa.seal_informational(ExchangeType.INFORMATIONAL, 77, [question])
    fleet.server.endpoint.receive_datagram(message, fleet.server.endpoint.ike_sas()[0].path, fleet.now)
    assert len(fleet.server.collect()) == (1 if about == "this phase 1" else 0)


def test_only_the_connection_that_says_so_follows_its_peer() -> None:
    def first_only(connection: Connection) -> Connection:
        follows = Rebinding.AUTHENTICATED if connection.name == "client0" else Rebinding.NEVER
        return replace(connection, rebinding=follows)

    fleet = Fleet(2, change=watchful, serve=first_only).connect(5.0)
    fleet.reboot_nat()
    fleet.run(DPD / 2)
    assert [e.connection for e in fleet.server.said(events.PeerMoved)] == ["client0"]


def test_questions_are_asked_only_where_the_configuration_says_so() -> None:
    fleet = Fleet(change=lambda c: replace(c, dpd_interval=0.0), serve=lambda c: replace(c, dpd_interval=0.0)).connect()
    sent = len(fleet.sent)
    fleet.run(600.0)
    assert len(fleet.sent) == sent


def test_a_question_that_was_lost_is_repeated() -> None:
    fleet = Fleet(change=watchful).connect()
    fleet.weather = lambda chance: [] if chance.random() < 0.3 else [0.01]
    fleet.run(30.0)
    assert fleet.up == 1


@pytest.mark.draft("SA-4", "SEC-4")
def test_nothing_unauthenticated_moves_an_sa() -> None:
    """All that was said so far, repeated from elsewhere, leaves the server as it was."""
    fleet = Fleet(serve=lambda c: replace(c, rebinding=Rebinding.AUTHENTICATED)).connect(60.0)
    server = fleet.server
    before = [child.path for child in server.endpoint.children()], [sa.path for sa in server.endpoint.ike_sas()]
    for _, path, data in list(fleet.sent):
        if path.remote == SERVER:
            server.endpoint.receive_datagram(data, Path(SERVER, 500, "198.51.100.66", 500), fleet.now)
            server.endpoint.receive_datagram(data[:-1] + b"\0", Path(SERVER, 500, "198.51.100.66", 500), fleet.now)
    server.collect()
    assert [child.path for child in server.endpoint.children()] == before[0]
    assert [sa.path for sa in server.endpoint.ike_sas() if sa.established] == before[1]
    half_open = [sa for sa in server.endpoint.ike_sas() if not sa.established]
    assert len(half_open) <= 1, "a repeated first message makes at most one more half-open Main Mode"


def test_with_rebinding_the_server_follows_an_authentic_packet() -> None:
    fleet = Fleet(change=watchful, serve=lambda c: replace(c, rebinding=Rebinding.AUTHENTICATED)).connect()
    client, server = fleet.clients[0], fleet.server
    cookies = {sa.initiator_cookie for sa in server.endpoint.ike_sas()}
    fleet.reboot_nat()
    fleet.run(2 * DPD)  # the client asks whether the server is alive: an authentic message from the new port
    moved = [e for e in server.events if isinstance(e, events.PeerMoved)]
    assert len(moved) == 1
    assert {sa.initiator_cookie for sa in server.endpoint.ike_sas()} == cookies, "phase 1 was made again"
    outside = fleet.nat.outbound(client.address, 500)
    assert [child.path for child in server.endpoint.children()] == [Path(SERVER, 500, *outside)]


def test_with_rebinding_the_server_follows_what_its_plane_has_seen() -> None:
    fleet = Fleet(serve=lambda c: replace(c, rebinding=Rebinding.AUTHENTICATED)).connect()
    server = fleet.server
    (child,) = server.endpoint.children()
    new = Path(SERVER, 500, child.path.remote, 7777)
    server.endpoint.sa_rebound(child.inbound_spi, child.path, new, fleet.now)
    server.collect()
    assert [c.path for c in server.endpoint.children()] == [new]
    assert [sa.path for sa in server.endpoint.ike_sas()] == [new]
    server.endpoint.rekey("client0", fleet.now)
    assert {path for _, path in server.collect()} == {new}


def test_without_rebinding_an_authentic_message_from_elsewhere_is_refused() -> None:
    fleet = Fleet(change=watchful).connect()
    paths = [sa.path for sa in fleet.server.endpoint.ike_sas()]
    fleet.reboot_nat()
    fleet.run(DPD / 2)
    assert any("no such phase 1 SA" in str(e) for e in fleet.server.said(events.DatagramRefused))
    assert [sa.path for sa in fleet.server.endpoint.ike_sas()] == paths


def test_initial_contact_of_two_that_began_at_once_ends_nothing() -> None:
    def outside(connection: Connection) -> Connection:
        return replace(connection, remote="192.168.0.0")

    fleet = Fleet(serve=outside)
    fleet.nat.public = None
    for host, name in ((fleet.clients[0], "server0"), (fleet.server, "client0")):
        host.endpoint.initiate(name, 0.0)
        fleet.flush(host)
    fleet.run(20.0)
    for host in (fleet.clients[0], fleet.server):
        assert len(host.said(events.IkeSaEstablished)) == 2
        assert not host.said(events.IkeSaDeleted)
        assert not host.said(events.SaDeleted)


def test_keepalives_follow_a_server_that_moves() -> None:
    fleet = Fleet(change=lambda c: replace(c, rebinding=Rebinding.AUTHENTICATED)).connect()
    client = fleet.clients[0]
    (child,) = client.endpoint.children()
    new = Path(client.address, 500, "203.0.113.99", 500)
    client.endpoint.sa_rebound(child.inbound_spi, child.path, new, fleet.now)
    client.collect()
    assert client.plane.keepalives == {new: 20.0}
