"""What phase 1 does beside proving who is who: candidate keys, ciphers, vendor IDs, first contact."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
from certificate_world import root, rsa_initiator, rsa_responder, server_certificate, with_rsa
from ike_world import INITIATOR, RESPONDER, World, intact
from test_hostile import mutations

from espthrunat.ike import authentication, events, main_mode, main_mode_responder
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.policy import Connection, Exchange, IkeSuite, Secret
from espthrunat.messages import Selector
from espthrunat.wire.isakmp import Chain, encode_payloads, parse_header, parse_payloads
from espthrunat.wire.payloads import Notification, NotifyType, Payload, SecurityAssociation, VendorId
from espthrunat.wire.proposal import Phase1Attribute

RFC_3706 = VendorId(bytes.fromhex("afcad71368a1f1c96b8696fc77570100"))


def clear(data: bytes) -> Chain:
    return parse_payloads(parse_header(data).next_payload, data[28:])


@pytest.mark.parametrize("suite", ["3des-md5-modp768", "3des-sha1-modp1024", "3des-sha512-ecp384"])
def test_triple_des_works_in_main_mode(suite: str) -> None:
    suites = (IkeSuite.from_name(suite),)
    world = World(replace(INITIATOR, ike_suites=suites), replace(RESPONDER, ike_suites=suites)).connect(5.0)
    assert world.up
    transform = clear(world.wire[0][0]).one(SecurityAssociation).proposals[0].transforms[0]
    assert transform.attribute(Phase1Attribute.ENCRYPTION) == 5
    assert transform.attribute(Phase1Attribute.KEY_LENGTH) is None, "3DES has one key length, which must not be named"
    assert all(len(d[28:]) % 8 == 0 for d, _ in world.wire if parse_header(d).encrypted)
    assert any(len(d[28:]) % 16 for d, _ in world.wire if parse_header(d).encrypted), "padded to its own block"


@pytest.mark.parametrize(
    ("offered", "allowed"),
    [("3des-sha256-ecp256", "aes128-sha256-ecp256"), ("aes128-sha256-ecp256", "3des-sha256-ecp256")],
)
def test_one_cipher_is_not_taken_for_another(offered: str, allowed: str) -> None:
    client = replace(INITIATOR, ike_suites=(IkeSuite.from_name(offered),))
    server = replace(RESPONDER, ike_suites=(IkeSuite.from_name(allowed),))
    world = World(client, server).connect(5.0)
    assert not world.server.ike_sas()
    assert "no IKE suite that is allowed" in world.reasons(world.server_events)


@pytest.mark.parametrize("exchange", list(Exchange))
def test_dead_peer_detection_is_announced_and_noticed_at_both_ends(exchange: Exchange) -> None:
    client, server = (replace(c, exchange=exchange) for c in (INITIATOR, RESPONDER))
    world = World(client, server).connect(5.0)
    assert all(RFC_3706 in clear(data).all(VendorId) for data, _ in world.wire[:2])
    assert all(sa.peer_knows_dpd for sa in (*world.client.ike_sas(), *world.server.ike_sas()))


def without_dpd(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
    if number < 2:
        body = encode_payloads([i.payload for i in clear(data) if i.payload != RFC_3706])
        data = data[:24] + (28 + len(body)).to_bytes(4, "big") + body
    return intact(number, data, to_server)


def test_a_peer_without_dead_peer_detection_is_known_as_such() -> None:
    world = World(fate=without_dpd).connect(5.0)
    assert world.up
    assert not any(sa.peer_knows_dpd for sa in (*world.client.ike_sas(), *world.server.ike_sas()))


@pytest.mark.parametrize("module", [main_mode, main_mode_responder])
def test_first_contact_counts_in_an_encrypted_message(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own end says it in Quick Mode; other implementations say it here."""

    def own_proof(connection: Connection, digest: bytes) -> list[Payload]:
        return [*authentication.own_proof(connection, digest), Notification(NotifyType.INITIAL_CONTACT, spi=bytes(16))]

    monkeypatch.setattr(module, "authentication", SimpleNamespace(**(vars(authentication) | {"own_proof": own_proof})))
    world = World().connect(5.0)
    assert world.up
    ((theirs,), (ours,)) = (world.server.ike_sas(), world.client.ike_sas())
    assert (theirs.initial_contact, ours.initial_contact) == (module is main_mode, module is main_mode_responder)


def test_first_contact_in_the_clear_does_not_count() -> None:
    def fate(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        if number in (1, 2):
            said: list[Payload] = [i.payload for i in clear(data)]
            body = encode_payloads([*said, Notification(NotifyType.INITIAL_CONTACT, spi=data[:16])])
            data = data[:24] + (28 + len(body)).to_bytes(4, "big") + body
        return intact(number, data, to_server)

    client, server = (replace(c, exchange=Exchange.AGGRESSIVE) for c in (INITIATOR, RESPONDER))
    world = World(client, server, fate=fate).connect(5.0)
    assert world.up
    assert not any(sa.initial_contact for sa in (*world.client.ike_sas(), *world.server.ike_sas()))


# candidate keys


def crowd(count: int, known: int | None) -> World:
    """A responder with `count` connections of different keys, of which the `known`-th is the initiator's."""
    world = World()
    world.server.connections.clear()
    for n in range(count):
        name = f"client{n}"
        world.server.connections[name] = replace(
            RESPONDER,
            name=name,
            secret=INITIATOR.secret if n == known else Secret(b"key %d" % n),
            selector=RESPONDER.selector if n == known else Selector("10.0.0.1/32", "10.0.1.1/32"),
        )
    return world


@pytest.mark.parametrize("known", [0, 9, 19, None])
def test_as_many_keys_are_tried_whichever_fits(known: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[bytes] = []
    derive = authentication.derive

    def counted(
        suite: IkeSuite, secret: Secret | None, said: authentication.Transcript
    ) -> authentication.Phase1Secrets:
        tries.append(secret.octets if secret else b"")
        return derive(suite, secret, said)

    world = crowd(20, known)
    monkeypatch.setattr(authentication, "derive", counted)
    world.connect(0.2)
    assert len(tries) == 1 + 20, "the initiator's one, and all of the responder's"
    if known is None:
        assert "decrypts with none of 20 pre-shared keys" in world.reasons(world.server_events)
    else:
        assert world.up
        (told,) = [e.tries for e in world.server_events if isinstance(e, events.IkeSaEstablished)]
        assert told == 20


def test_the_same_key_of_many_connections_is_tried_once() -> None:
    world = World()
    for n in range(10):
        world.server.connections[f"x{n}"] = replace(RESPONDER, name=f"x{n}", remote_identity=IdentityPattern("x"))
    world.connect(5.0)
    assert world.up
    assert [e.tries for e in world.server_events if isinstance(e, events.IkeSaEstablished)] == [1]


def test_no_message_costs_more_than_64_keys_and_the_rest_is_told() -> None:
    world = crowd(100, 99).connect(5.0)
    assert not any(sa.established for sa in world.server.ike_sas())
    assert "none of 64 pre-shared keys (36 more were not tried)" in world.reasons(world.server_events)
    assert crowd(64, 63).connect(5.0).up


def test_keys_for_the_peers_own_address_come_first() -> None:
    world = crowd(100, 99)
    world.server.connections["client99"] = replace(world.server.connections["client99"], remote="203.0.113.2")
    assert world.connect(5.0).up


# addresses


@pytest.mark.draft("ID-2")
def test_a_responder_that_names_an_address_behind_a_nat_warns() -> None:
    client = replace(INITIATOR, remote_identity=IdentityPattern("203.0.113.18"))
    server = replace(RESPONDER, local_identity=Identity.from_text("203.0.113.18"))
    world = World(client, server).connect(5.0)
    assert world.up
    (warning,) = [e.text for e in world.server_events if isinstance(e, events.Warned)]
    assert "our identity is the address 203.0.113.18" in warning


# damage


def ends(exchange: Exchange, rsa: bool) -> tuple[Connection, Connection]:
    pair = (rsa_initiator(), rsa_responder()) if rsa else (INITIATOR, RESPONDER)
    return replace(pair[0], exchange=exchange), replace(pair[1], exchange=exchange)


@pytest.mark.parametrize("step", range(9))
@pytest.mark.parametrize("rsa", [False, True], ids=["psk", "rsa"])
@pytest.mark.parametrize("exchange", list(Exchange))
def test_damaged_copies_leave_an_established_sa_as_it_was(exchange: Exchange, rsa: bool, step: int) -> None:
    world = World(*ends(exchange, rsa)).connect(2.0)
    before = (world.client_sa(), world.server_sa())
    data, to_server = world.wire[min(step, len(world.wire) - 1)]
    for damaged in mutations(data, 100 + step):
        world.inject(damaged, to_server=to_server)
        world.inject(damaged, to_server=not to_server)
    world.run(5.0)
    assert world.up
    assert (world.client_sa(), world.server_sa()) == before


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("exchange", list(Exchange))
def test_damaged_copies_in_an_exchange_with_certificates_crash_nothing(exchange: Exchange, step: int) -> None:
    """Before the true message; the exchange may fail, since whoever is on the path can do that anyway."""

    def fate(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        early = mutations(data, step) if number == step else []
        return [*((0.001 + i / 10_000, d) for i, d in enumerate(early)), *intact(number, data, to_server)]

    world = World(*ends(exchange, rsa=True), fate=fate).connect(20.0)
    for log in (world.client_events, world.server_events):
        for event in log:
            if isinstance(event, events.IkeSaEstablished):
                assert event.identity in ("client1.example", "server.example")


# which connections an SA may serve, and answers that are none


def test_only_connections_whose_authority_vouches_for_the_peer_are_candidates() -> None:
    world = World(rsa_initiator(), rsa_responder())
    other = root("CN=Other")
    elsewhere = with_rsa(RESPONDER, server_certificate().credentials(other))
    world.server.connections["other"] = replace(elsewhere, name="other")
    world.connect(5.0)
    (sa,) = world.server.ike_sas()
    assert [c.name for c in sa.candidates] == ["client1"]


def test_connections_with_another_method_are_no_candidates() -> None:
    world = World()
    world.server.connections["rsa"] = replace(rsa_responder(), name="rsa")
    world.connect(5.0)
    assert world.up
    assert [e.tries for e in world.server_events if isinstance(e, events.IkeSaEstablished)] == [1]


def test_an_answer_with_more_than_one_choice_is_none() -> None:
    both = tuple(IkeSuite.from_name(s) for s in ("aes256-sha512-ecp384", "aes128-sha256-ecp256"))

    def fate(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        if number == 1:
            offer = clear(world.wire[0][0]).one(SecurityAssociation)
            body = encode_payloads([offer, *(i.payload for i in clear(data)[1:])])
            data = data[:24] + (28 + len(body)).to_bytes(4, "big") + body
        return intact(number, data, to_server) if number < 2 else []

    world = World(replace(INITIATOR, ike_suites=both), replace(RESPONDER, ike_suites=both), fate=fate)
    world.connect(0.2)
    assert "the peer's choice is none of what was offered" in world.reasons(world.client_events)
    assert not any(parse_header(d).next_payload == 4 for d, _ in world.wire)


@pytest.mark.parametrize("doubled", [1, 3, 5])
def test_a_repeated_answer_is_nothing_to_complain_about(doubled: int) -> None:
    world = World(fate=lambda n, d, s: intact(n, d, s) * (2 if n == doubled else 1)).connect(5.0)
    assert world.up
    assert not world.reasons(world.client_events)
