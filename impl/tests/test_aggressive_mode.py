"""Aggressive Mode between two endpoints, with pre-shared keys and with certificates."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import pytest
from certificate_world import rsa_initiator, rsa_responder
from ike_world import INITIATOR, RESPONDER, Nat, World, intact
from test_hostile import mutations

from espthrunat.ike import aggressive_mode, events
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.nat_traversal import EspThruNat
from espthrunat.ike.policy import Authentication, Connection, Exchange, IkeSuite, Secret
from espthrunat.messages import Path
from espthrunat.wire.isakmp import Chain, encode_payloads, parse_header, parse_payloads
from espthrunat.wire.payloads import (
    Certificate,
    Hash,
    Identification,
    KeyExchange,
    NatDiscovery,
    Nonce,
    Payload,
    PayloadType,
    SecurityAssociation,
    Signature,
    VendorId,
)

METHOD = EspThruNat()
CLIENT_SEES = Path("192.168.1.11", 500, "203.0.113.18", 500)
SERVER_SEES = Path("203.0.113.18", 500, "203.0.113.2", 1024)
MESSAGES = 6  # Aggressive Mode has three, Quick Mode three
METHODS = list(Authentication)


def aggressive(connection: Connection) -> Connection:
    return replace(connection, exchange=Exchange.AGGRESSIVE)


def ends(method: Authentication) -> tuple[Connection, Connection]:
    rsa = method == Authentication.RSA
    pair = (rsa_initiator(), rsa_responder()) if rsa else (INITIATOR, RESPONDER)
    return aggressive(pair[0]), aggressive(pair[1])


def message(world: World, number: int) -> Chain:
    data, _ = world.wire[number - 1]
    return parse_payloads(parse_header(data).next_payload, data[28:])


def kinds(chain: Chain) -> list[PayloadType]:
    return [item.payload.type for item in chain]


@pytest.mark.parametrize("method", METHODS)
def test_a_connection_through_a_nat_comes_up_in_six_messages(method: Authentication) -> None:
    world = World(*ends(method)).connect(5.0)
    assert world.up
    assert len(world.wire) == MESSAGES
    for log in (world.client_events, world.server_events):
        assert [e.nat for e in log if isinstance(e, events.NatDetected)] == [True]
    for sa in (*world.client.ike_sas(), *world.server.ike_sas()):
        assert sa.established
        assert sa.peer_knows_dpd


@pytest.mark.parametrize("method", METHODS)
def test_without_a_nat_both_ends_say_so(method: Authentication) -> None:
    world = World(*ends(method), nat=Nat(public=None)).connect()
    assert world.up
    for log in (world.client_events, world.server_events):
        assert [e.nat for e in log if isinstance(e, events.NatDetected)] == [False]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "suite", ["3des-md5-modp1024", "3des-sha1-modp1536", "aes128-sha1-modp2048", "aes256-sha512-ecp384"]
)
def test_every_kind_of_suite_works(suite: str, method: Authentication) -> None:
    suites = (IkeSuite.from_name(suite),)
    client, server = (replace(c, ike_suites=suites) for c in ends(method))
    world = World(client, server).connect()
    assert world.up
    assert [e.suite for e in world.client_events if isinstance(e, events.IkeSaEstablished)] == [suite]


@pytest.mark.draft("AM-1")
def test_message_1_carries_the_vendor_id_and_what_rfc_2409_wants() -> None:
    world = World(*ends(Authentication.PSK)).connect()
    first = message(world, 1)
    assert kinds(first)[:4] == [
        PayloadType.SA,
        PayloadType.KEY_EXCHANGE,
        PayloadType.NONCE,
        PayloadType.IDENTIFICATION,
    ]
    assert VendorId(METHOD.vendor_id) in first.all(VendorId)
    assert not first.all(NatDiscovery)


@pytest.mark.draft("AM-2")
@pytest.mark.parametrize("method", METHODS)
def test_message_2_carries_the_vendor_id_and_what_the_responder_saw(method: Authentication) -> None:
    world = World(*ends(method)).connect()
    second = message(world, 2)
    proof = Hash if method == Authentication.PSK else Signature
    assert second.one(proof)
    assert bool(second.all(Certificate)) == (method == Authentication.RSA)
    assert VendorId(METHOD.vendor_id) in second.all(VendorId)
    assert second.one(NatDiscovery).data == METHOD.digest(SERVER_SEES, initiator=False)


@pytest.mark.draft("AM-3")
@pytest.mark.parametrize("method", METHODS)
def test_message_3_carries_what_the_initiator_sees(method: Authentication) -> None:
    world = World(*ends(method)).connect()
    assert message(world, 3).one(NatDiscovery).data == METHOD.digest(CLIENT_SEES, initiator=True)


@pytest.mark.draft("AM-2")
@pytest.mark.draft("VID-2")
def test_a_peer_without_the_vendor_id_gets_plain_aggressive_mode() -> None:
    world = World(*ends(Authentication.PSK), nat=Nat(public=None))

    class Ignorant(EspThruNat):
        def announce(self) -> list[Payload]:
            return []

    world.client._context.method = Ignorant()
    world.connect()
    assert world.up
    for number in (1, 2, 3):
        assert not message(world, number).all(NatDiscovery)


@pytest.mark.draft("AM-4")
@pytest.mark.draft("AM-5")
@pytest.mark.parametrize("nat", [True, False])
def test_an_address_as_identity_behind_a_nat_is_warned_of_and_goes_on(nat: bool) -> None:
    client, server = ends(Authentication.PSK)
    client = replace(client, local_identity=Identity.from_text("192.168.1.11"))
    server = replace(server, remote_identity=IdentityPattern("192.168.1.11"))
    world = World(client, server, nat=Nat() if nat else Nat(public=None)).connect()
    assert world.up
    for log in (world.client_events, world.server_events):
        warnings = [e.text for e in log if isinstance(e, events.Warned)]
        assert len(warnings) == int(nat)
        assert all("192.168.1.11" in text for text in warnings)


def test_hash_r_can_be_recomputed_from_messages_1_and_2_and_the_key() -> None:
    """RFC 2409, 5, written out once more: what password crackers do with a captured Aggressive Mode."""
    world = World(*ends(Authentication.PSK)).connect()
    first, second = message(world, 1), message(world, 2)
    cookies = world.wire[1][0][:16]
    skeyid = hmac.digest(b"a key for tests", first.one(Nonce).data + second.one(Nonce).data, "sha256")
    said = second.one(KeyExchange).data + first.one(KeyExchange).data + cookies[8:] + cookies[:8]
    said += first.bodies(SecurityAssociation)[0] + second.bodies(Identification)[0]
    assert hmac.new(skeyid, said, hashlib.sha256).digest() == second.one(Hash).data


# lost, doubled, late and damaged


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lost", range(MESSAGES))
def test_any_single_datagram_may_be_lost(lost: int, method: Authentication) -> None:
    world = World(*ends(method), fate=lambda n, d, s: [] if n == lost else intact(n, d, s)).connect(20.0)
    assert world.up


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("doubled", range(MESSAGES))
def test_any_datagram_may_come_twice(doubled: int, method: Authentication) -> None:
    world = World(*ends(method), fate=lambda n, d, s: intact(n, d, s) * (2 if n == doubled else 1)).connect(20.0)
    assert world.up


@pytest.mark.parametrize("late", range(MESSAGES))
def test_any_datagram_may_come_after_the_next_ones(late: int) -> None:
    world = World(*ends(Authentication.PSK), fate=lambda n, d, s: [(0.8, d)] if n == late else intact(n, d, s))
    assert world.connect(20.0).up


def test_message_3_goes_out_until_the_responder_shows_that_it_has_it_and_no_longer() -> None:
    deaf = True
    world = World(*ends(Authentication.PSK))
    world.fate = lambda n, d, s: [] if deaf and n >= 2 else intact(n, d, s)
    world.connect(1.0)
    assert not any(sa.established for sa in world.server.ike_sas())
    deaf = False
    world.run(10.0)
    assert world.up
    third = [d for d, to_server in world.wire if to_server and parse_header(d).exchange == 4][1:]
    assert 2 <= len(third) <= 4
    assert len(set(third)) == 1


@pytest.mark.parametrize("step", range(3))
def test_damaged_copies_before_a_message_do_not_spoil_it(step: int) -> None:
    def fate(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        early = [d for d in mutations(data, step) if d[:8] == data[:8]][:5] if number == step and step else []
        return [*((0.001 + i / 10_000, d) for i, d in enumerate(early)), *intact(number, data, to_server)]

    assert World(*ends(Authentication.PSK), fate=fate).connect(20.0).up


@pytest.mark.draft("NATD-8")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_discovery_that_is_doubled_malformed_or_misplaced_opens_nothing(number: int) -> None:
    def fate(n: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        if n != number - 1:
            return intact(n, data, to_server)
        header = parse_header(data)
        said = [item.payload for item in parse_payloads(header.next_payload, data[28:])]
        two = NatDiscovery(b"D" * 16)
        bodies = [encode_payloads([*said, two, two])]
        if number == 3:  # and one that is missing
            bodies.append(encode_payloads([p for p in said if not isinstance(p, NatDiscovery)]))
        early = [(0.001, data[:24] + (28 + len(b)).to_bytes(4, "big") + b) for b in bodies]
        return [*early, *intact(n, data, to_server)]

    world = World(*ends(Authentication.PSK), fate=fate).connect(20.0)
    refusals = world.reasons(world.client_events) + world.reasons(world.server_events)
    assert "NAT" in refusals or "NatDiscovery" in refusals, "the refusal is told"
    assert world.up


def test_a_repeated_message_1_is_answered_a_few_times_only() -> None:
    world = World(*ends(Authentication.PSK))
    world.client.initiate("server", 0.0)
    ((first, _),) = world.client.datagrams_to_send()
    for _ in range(100):
        world.server.receive_datagram(first, SERVER_SEES, 0.0)
    answers = world.server.datagrams_to_send()
    assert 6 <= len(answers) <= 20
    assert len(set(answers)) == 1


# whom it serves


def test_main_mode_and_aggressive_mode_do_not_mix() -> None:
    client, server = ends(Authentication.PSK)
    for pair, mode in (((client, RESPONDER), "Aggressive Mode"), ((INITIATOR, server), "Main Mode")):
        world = World(*pair).connect()
        assert not world.server.ike_sas()
        assert f"{mode} refused: no connection for a peer at 203.0.113.2 allows it" in world.reasons(
            world.server_events
        )
        assert "NO-PROPOSAL-CHOSEN" in world.reasons(world.client_events)


def test_the_key_is_found_by_the_identity_and_an_exact_one_comes_first() -> None:
    client, server = ends(Authentication.PSK)
    world = World(client, server)
    others = [
        replace(server, name="all", remote_identity=IdentityPattern("any"), secret=Secret(b"for all")),
        replace(server, name="other", remote_identity=IdentityPattern("client2.example"), secret=Secret(b"two")),
    ]
    world.server.connections.clear()
    world.server.connections.update({c.name: c for c in [*others, server]})
    world.connect()
    (sa,) = world.client.ike_sas()
    assert sa.established
    (theirs,) = world.server.ike_sas()
    assert theirs.connection.name == "client1"
    assert [c.name for c in theirs.candidates] == ["client1"]


def test_an_unknown_identity_is_refused() -> None:
    client, server = ends(Authentication.PSK)
    world = World(replace(client, local_identity=Identity.from_text("stranger.example")), server).connect()
    assert not world.server.ike_sas()
    assert "stranger.example belongs to no connection" in world.reasons(world.server_events)


def test_a_responder_that_proves_to_be_another_is_refused() -> None:
    client, server = ends(Authentication.PSK)
    world = World(replace(client, remote_identity=IdentityPattern("bank.example")), server).connect()
    assert not any(isinstance(e, events.IkeSaEstablished) for e in world.client_events)
    assert "proved to be server.example, the connection wants bank.example" in world.reasons(world.client_events)


def test_several_groups_cannot_be_offered_and_the_reason_is_told() -> None:
    client, server = ends(Authentication.PSK)
    mixed = tuple(IkeSuite.from_name(s) for s in ("aes128-sha256-ecp256", "aes128-sha256-modp2048"))
    world = World(replace(client, ike_suites=mixed), server).connect(1.0)
    assert "one group only, and the suites have ecp256, modp2048" in world.reasons(world.client_events)
    assert not world.wire
    assert not world.client.ike_sas()


def test_a_responder_refuses_an_offer_of_several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggressive_mode, "require_one_group", lambda _: None)
    client, server = ends(Authentication.PSK)
    mixed = tuple(IkeSuite.from_name(s) for s in ("aes128-sha256-ecp256", "aes128-sha256-modp2048"))
    world = World(replace(client, ike_suites=mixed), replace(server, ike_suites=mixed)).connect(1.0)
    assert "several groups" in world.reasons(world.server_events)
    assert not world.server.ike_sas()


def test_another_group_than_the_responders_is_refused() -> None:
    client, server = ends(Authentication.PSK)
    world = World(replace(client, ike_suites=(IkeSuite.from_name("aes128-sha256-modp2048"),)), server).connect(1.0)
    assert "no IKE suite that is allowed" in world.reasons(world.server_events)
    assert not world.server.ike_sas()
