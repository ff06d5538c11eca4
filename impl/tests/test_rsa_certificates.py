"""What a certificate and its chain must say before a peer is believed; each failure says which check it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from certificate_world import (
    DAY,
    Authority,
    client_certificate,
    default_root,
    root,
    rsa_initiator,
    rsa_key,
    rsa_responder,
    server_certificate,
    with_rsa,
)
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from ike_world import INITIATOR, RESPONDER, World, intact
from test_authenticity import flipped

from espthrunat.ike import authentication, certificates, events, main_mode, main_mode_responder
from espthrunat.ike.credentials import Credentials
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.ike_sa import NotAuthentic
from espthrunat.ike.policy import Connection, IkeSuite
from espthrunat.wire.payloads import (
    Certificate,
    Payload,
    Signature,
)

CLIENT_DN, SERVER_DN = "CN=client1,O=Tests", "CN=server,O=Tests"


def established(world: World) -> bool:
    return any(isinstance(e, events.SaEstablished) for e in world.client_events + world.server_events)


def client_with(
    who: Authority, trusts: Authority | None = None, chain: tuple[x509.Certificate, ...] = ()
) -> Connection:
    return with_rsa(INITIATOR, who.credentials(trusts or default_root(), chain=chain))


def server_with(
    who: Authority, trusts: Authority | None = None, chain: tuple[x509.Certificate, ...] = ()
) -> Connection:
    return with_rsa(RESPONDER, who.credentials(trusts or default_root(), chain=chain))


def own(connection: Connection) -> Credentials:
    assert connection.credentials is not None
    return connection.credentials


def raw(who: Authority) -> Credentials:
    """Credentials that our own loading would refuse."""
    pkcs8 = who.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    authority = default_root().certificate.public_bytes(Encoding.DER)
    return Credentials((who.certificate.public_bytes(Encoding.DER),), pkcs8, (authority,))


# certificates that prove nothing


def wrong_certificates() -> dict[str, tuple[Callable[[str, str], Authority], str]]:
    """How each is issued to (subject, name), and what the other end must say of it."""
    ca = default_root()
    usage = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
    return {
        "expired": (lambda s, n: ca.issue(s, [n], days=(-2, -1)), "expired at"),
        "not yet valid": (lambda s, n: ca.issue(s, [n], days=(1, 2)), "valid only from"),
        "another authority": (lambda s, n: root("CN=Other").issue(s, [n]), "no known authority has issued it"),
        "an authority of the same name": (
            lambda s, n: replace(ca, key=rsa_key("impostor")).issue(s, [n]),
            "not signed by the authority that it names",
        ),
        "another name": (lambda s, n: ca.issue(s, ["other.example"]), "is not in the certificate of"),
        "no name": (lambda s, n: ca.issue(s), "is not in the certificate of"),
        "encryption only": (lambda s, n: ca.issue(s, [n], extensions=[(usage, True)]), "key usage is not to sign"),
        "an unknown critical extension": (lambda s, n: ca.issue(s, [n], extensions=[(unknown, True)]), "not trusted"),
        "self-signed": (lambda s, n: root(s), "no known authority has issued it"),
    }


@pytest.mark.parametrize("what", list(wrong_certificates()))
@pytest.mark.parametrize("side", ["initiator", "responder"])
def test_a_certificate_that_proves_nothing_is_refused_with_the_reason(side: str, what: str) -> None:
    issue, says = wrong_certificates()[what]
    if side == "initiator":
        world = World(client_with(issue(CLIENT_DN, "client1.example")), rsa_responder()).connect()
        reasons = world.reasons(world.server_events)
    else:
        world = World(rsa_initiator(), server_with(issue(SERVER_DN, "server.example"))).connect()
        reasons = world.reasons(world.client_events)
    assert not established(world)
    assert says in reasons
    failed = world.server_events if side == "initiator" else world.client_events
    assert any(isinstance(e, events.AuthenticationFailed) for e in failed)
    assert "AUTHENTICATION-FAILED" in world.reasons(world.client_events) or side == "responder"


@pytest.mark.filterwarnings("ignore")  # the library's word about small keys
@pytest.mark.parametrize("side", ["initiator", "responder"])
def test_a_small_key_is_refused(side: str) -> None:
    small = default_root().issue(f"CN=small {side}", ["client1.example", "server.example"], bits=1024)
    client, server = rsa_initiator(), rsa_responder()
    if side == "initiator":
        client = replace(client, credentials=raw(small))
    else:
        server = replace(server, credentials=raw(small))
    world = World(client, server).connect()
    assert not established(world)
    both = world.reasons(world.client_events) + world.reasons(world.server_events)
    assert "has an RSA key of 1024 bits, 2048 to 8192 are accepted" in both


def test_the_calendar_is_that_of_the_context() -> None:
    world = World(rsa_initiator(), rsa_responder())
    world.server._context.wall_clock = lambda: (client_certificate().certificate.not_valid_after_utc + DAY).timestamp()
    world.connect()
    assert f"the certificate of {CLIENT_DN} expired at" in world.reasons(world.server_events)


def altered(change: Callable[[list[Payload]], list[Payload]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the initiator send other proofs than it should."""

    def own_proof(connection: Connection, digest: bytes) -> list[Payload]:
        return change(authentication.own_proof(connection, digest))

    spoilt = SimpleNamespace(**(vars(authentication) | {"own_proof": own_proof}))
    monkeypatch.setattr(main_mode, "authentication", spoilt)


def stranger(digest: bytes) -> bytes:
    return certificates.sign(server_certificate().credentials(default_root()), digest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: [x for x in p if not isinstance(x, Certificate)], "the peer sent no certificate"),
        (lambda p: [Certificate(7, p[0].data), p[-1]], "the peer sent no certificate"),
        (lambda p: [Certificate(4, p[0].data[:-100]), p[-1]], "cannot be read"),
        (lambda p: [Certificate(4, b"\x30\x80" + bytes(9000)), p[-1]], "more than 8192 octets"),
        (lambda p: [p[0]] * 9 + [p[-1]], "9 certificates, 8 are the most"),
        (lambda p: [p[0], Signature(flipped(p[-1].data))], "SIG_I is wrong"),
        (lambda p: [p[0], Signature(b"\xff" * 256)], "SIG_I is wrong"),
        (lambda p: [p[0], Signature(stranger(b"x" * 32))], "SIG_I is wrong"),
        (lambda p: p[:1], "Signature at octet 0: 0 in a message"),
    ],
)
def test_a_proof_that_is_stripped_or_forged_is_refused(
    change: Callable[[list[Payload]], list[Payload]], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered(change, monkeypatch)
    world = World(rsa_initiator(), rsa_responder()).connect()
    assert not established(world)
    assert says in world.reasons(world.server_events)


def test_a_responder_with_the_certificate_and_not_the_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def own_proof(connection: Connection, digest: bytes) -> list[Payload]:
        chain = authentication.own_proof(connection, digest)[:-1]
        return [*chain, Signature(certificates.sign(client_certificate().credentials(default_root()), digest))]

    spoilt = SimpleNamespace(**(vars(authentication) | {"own_proof": own_proof}))
    monkeypatch.setattr(main_mode_responder, "authentication", spoilt)
    world = World(rsa_initiator(), rsa_responder()).connect()
    assert "SIG_R is wrong" in world.reasons(world.client_events)
    assert not any(isinstance(e, events.IkeSaEstablished) for e in world.client_events)


@pytest.mark.parametrize("side", ["initiator", "responder"])
def test_a_signature_over_something_else_is_refused(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def proof(*arguments: object, initiator: bool) -> bytes:
        digest = authentication.proof(*arguments, initiator=initiator)  # type: ignore[arg-type]
        return flipped(digest) if initiator == (side == "initiator") else digest

    spoilt = SimpleNamespace(**(vars(authentication) | {"proof": proof}))
    monkeypatch.setattr(main_mode if side == "initiator" else main_mode_responder, "authentication", spoilt)
    world = World(rsa_initiator(), rsa_responder()).connect()
    assert not established(world)
    log, wrong = (world.server_events, "SIG_I") if side == "initiator" else (world.client_events, "SIG_R")
    assert f"{wrong} is wrong" in world.reasons(log)


def test_an_offer_that_was_changed_on_the_way_is_noticed() -> None:
    both = tuple(IkeSuite.from_name(s) for s in ("aes256-sha256-ecp384", "aes128-sha256-ecp256"))
    client, server = (replace(c, ike_suites=both) for c in (rsa_initiator(), rsa_responder()))
    short = World(replace(client, ike_suites=both[1:]), server)
    short.client.initiate("server", 0.0)
    weak = short.client.datagrams_to_send()[0][0][8:]
    world = World(client, server, fate=lambda n, d, s: intact(n, d[:8] + weak if n == 0 else d, s)).connect()
    assert not established(world)
    assert "SIG_I is wrong" in world.reasons(world.server_events)


# chains


def test_a_chain_over_an_intermediate_authority_is_followed() -> None:
    middle = default_root().issue("CN=Middle,O=Tests", authority=True)
    leaf = middle.issue("CN=leaf", ["client1.example"])
    world = World(client_with(leaf, chain=(middle.certificate,)), rsa_responder()).connect(5.0)
    assert world.up
    alone = World(client_with(leaf), rsa_responder()).connect()
    assert "no known authority has issued it" in alone.reasons(alone.server_events)


@pytest.mark.parametrize(
    ("authority", "days", "says"),
    [
        (False, (-1.0, 30.0), "basicConstraints"),
        (None, (-1.0, 30.0), "basicConstraints"),
        (True, (-2.0, -1.0), "has expired"),
    ],
)
def test_an_intermediate_that_is_no_authority_or_has_expired_breaks_the_chain(
    authority: bool | None, days: tuple[float, float], says: str
) -> None:
    middle = default_root().issue("CN=Middle,O=Tests", authority=authority, days=days)
    leaf = middle.issue("CN=leaf", ["client1.example"])
    world = World(client_with(leaf, chain=(middle.certificate,)), rsa_responder()).connect()
    assert not established(world)
    assert says in world.reasons(world.server_events)


def test_an_authority_that_may_not_sign_certificates_vouches_for_nobody() -> None:
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    middle = default_root().issue("CN=Middle,O=Tests", authority=True, extensions=[(usage, True)])
    leaf = middle.issue("CN=leaf", ["client1.example"])
    world = World(client_with(leaf, chain=(middle.certificate,)), rsa_responder()).connect()
    assert "key usage is not to sign certificates" in world.reasons(world.server_events)


def test_an_authority_vouches_only_for_the_names_that_it_may() -> None:
    inside = x509.NameConstraints([x509.DNSName("inside.example")], None)
    middle = default_root().issue("CN=Middle,O=Tests", authority=True, extensions=[(inside, True)])
    leaf = middle.issue("CN=leaf", ["client1.example"])
    world = World(client_with(leaf, chain=(middle.certificate,)), rsa_responder()).connect()
    assert not established(world)
    assert "not trusted" in world.reasons(world.server_events)


def test_a_root_that_has_expired_vouches_for_nobody() -> None:
    old = root("CN=Old", days=(-9.0, -1.0))
    client = client_with(old.issue("CN=leaf", ["client1.example"]))
    world = World(client, server_with(server_certificate(), trusts=old)).connect()
    assert not established(world)
    assert "has expired" in world.reasons(world.server_events)


@given(st.integers(0, 3000), st.integers(0, 255), st.booleans())
def test_a_damaged_certificate_is_refused_and_crashes_nothing(position: int, value: int, cut: bool) -> None:
    true = client_certificate().certificate.public_bytes(Encoding.DER)
    octets = bytearray(true)
    octets[position % len(octets)] = value
    damaged = bytes(octets[: position % len(octets)] if cut else octets)
    signature = certificates.sign(own(rsa_initiator()), b"digest")
    try:
        shown = certificates.Presented([Certificate(4, damaged)], Identity.from_text("client1.example"))
        shown.require_signature(signature, b"digest", "SIG")
        shown.require_trust(own(rsa_responder()).authorities, time.time())
        shown.require_identity()
    except NotAuthentic:
        return
    assert damaged == true


def test_a_long_chain_is_refused() -> None:
    links = [default_root()]
    for n in range(6):
        links.append(links[-1].issue(f"CN=Link {n}", authority=True))
    leaf = links[-1].issue("CN=leaf", ["client1.example"])
    chain = tuple(link.certificate for link in reversed(links[1:]))
    world = World(client_with(leaf, chain=chain), rsa_responder()).connect()
    assert not established(world)
    assert "not trusted" in world.reasons(world.server_events)


def test_each_connection_trusts_its_own_authorities_only() -> None:
    """The server has another connection that trusts the peer's authority: it is no help for this one's identity."""
    other = root("CN=Other")
    world = World(client_with(other.issue("CN=c", ["client1.example"])), rsa_responder())
    elsewhere = replace(
        server_with(server_certificate(), trusts=other), name="x", remote_identity=IdentityPattern("x.example")
    )
    world.server.connections["x"] = elsewhere
    world.connect()
    assert not established(world)
