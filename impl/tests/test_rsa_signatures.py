"""Main Mode with RSA signatures: who proves to be whom, and what a certificate must say for that."""

from __future__ import annotations

import hmac
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath
from shutil import which
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
from ike_world import INITIATOR, RESPONDER, Nat, RepeatableEntropy, World, intact
from test_authenticity import flipped

from espthrunat.ike import authentication, certificates, events, main_mode, main_mode_responder
from espthrunat.ike.credentials import Credentials
from espthrunat.ike.groups import GROUPS
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.ike_sa import NotAuthentic
from espthrunat.ike.policy import Connection, Exchange, IkeSuite, Secret
from espthrunat.wire.isakmp import parse_header, parse_payloads
from espthrunat.wire.payloads import (
    Certificate,
    CertificateRequest,
    Identification,
    IdType,
    KeyExchange,
    Nonce,
    Payload,
    SecurityAssociation,
    Signature,
)

MESSAGES = 9
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


def test_a_connection_through_a_nat_comes_up_in_nine_messages() -> None:
    world = World(rsa_initiator(), rsa_responder()).connect(5.0)
    assert world.up
    assert len(world.wire) == MESSAGES


@pytest.mark.parametrize("suite", ["3des-md5-modp1024", "aes128-sha1-modp2048", "aes256-sha512-ecp384"])
def test_every_kind_of_suite_works(suite: str) -> None:
    suites = (IkeSuite.from_name(suite),)
    ends = (replace(c, ike_suites=suites) for c in (rsa_initiator(), rsa_responder()))
    assert World(*ends).connect(5.0).up


@pytest.mark.parametrize("lost", range(MESSAGES))
def test_any_single_datagram_may_be_lost(lost: int) -> None:
    fate = lambda n, d, s: [] if n == lost else intact(n, d, s)  # noqa: E731
    assert World(rsa_initiator(), rsa_responder(), fate=fate).connect(20.0).up


@pytest.mark.parametrize("odd", range(MESSAGES))
@pytest.mark.parametrize("delays", [(0.01, 0.01), (0.8,)], ids=["doubled", "late"])
def test_any_datagram_may_come_twice_or_late(odd: int, delays: tuple[float, ...]) -> None:
    fate = lambda n, d, s: [(t, d) for t in delays] if n == odd else intact(n, d, s)  # noqa: E731
    assert World(rsa_initiator(), rsa_responder(), fate=fate).connect(20.0).up


# identities


@pytest.mark.draft("ID-1")
@pytest.mark.draft("ID-3")
@pytest.mark.parametrize(
    ("identity", "pattern"),
    [
        ("client1.example", "client1.example"),
        ("client1.example", "*.example"),
        ("client1@example", "client1@example"),
        (CLIENT_DN, "any"),
        (CLIENT_DN, "cn=client1, o=Tests"),
    ],
)
def test_names_in_the_certificate_are_identities_behind_a_nat(identity: str, pattern: str) -> None:
    client = replace(rsa_initiator(), local_identity=Identity.from_text(identity))
    world = World(client, replace(rsa_responder(), remote_identity=IdentityPattern(pattern))).connect(5.0)
    assert world.up
    (sa,) = world.server.ike_sas()
    assert sa.identity == Identity.from_text(identity)


@pytest.mark.draft("ID-1")
@pytest.mark.draft("ID-2")
def test_an_address_in_the_certificate_is_an_identity_only_without_a_nat() -> None:
    client = replace(rsa_initiator(), local_identity=Identity.from_text("192.168.1.11"))
    server = replace(rsa_responder(), remote_identity=IdentityPattern("192.168.1.11"))
    assert World(client, server, nat=Nat(public=None)).connect(5.0).up
    world = World(client, server).connect(5.0)
    assert "must be a name, not an address" in world.reasons(world.client_events)
    assert not established(world)


@pytest.mark.draft("ID-3")
@pytest.mark.parametrize("pattern", ["CN=client1", "O=Tests,CN=client1", "CN=client2,O=Tests", "client1.example"])
def test_another_distinguished_name_is_not_accepted(pattern: str) -> None:
    client = replace(rsa_initiator(), local_identity=Identity.from_text(CLIENT_DN))
    world = World(client, replace(rsa_responder(), remote_identity=IdentityPattern(pattern))).connect(5.0)
    assert not established(world)
    assert f"the identity {CLIENT_DN} belongs to no connection" in world.reasons(world.server_events)


@pytest.mark.draft("ID-3")
def test_a_responder_with_another_identity_than_wanted_is_refused() -> None:
    world = World(replace(rsa_initiator(), remote_identity=IdentityPattern("bank.example")), rsa_responder()).connect()
    assert "proved to be server.example, the connection wants bank.example" in world.reasons(world.client_events)
    assert not established(world)


def test_a_distinguished_name_goes_out_in_the_very_octets_of_the_certificate() -> None:
    """An authority may have encoded it as PrintableString; peers compare octets."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "printable", x509.name._ASN1Type.PrintableString)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(default_root().certificate.subject)
        .public_key(rsa_key("printable").public_key())
        .serial_number(7)
        .not_valid_before(default_root().certificate.not_valid_before_utc)
        .not_valid_after(default_root().certificate.not_valid_after_utc)
        .sign(default_root().key, rsa_hash())
    )
    who = Authority(certificate, rsa_key("printable"))
    client = replace(client_with(who), local_identity=Identity.from_text("CN=printable"), exchange=Exchange.AGGRESSIVE)
    server = replace(rsa_responder(), remote_identity=IdentityPattern("CN=printable"), exchange=Exchange.AGGRESSIVE)
    world = World(client, server).connect(5.0)
    assert world.up
    first = parse_payloads(1, world.wire[0][0][28:]).one(Identification)
    assert (first.id_type, first.data) == (IdType.DER_ASN1_DN, name.public_bytes())


def rsa_hash() -> x509.base.hashes.SHA256:  # type: ignore[name-defined]
    from cryptography.hazmat.primitives.hashes import SHA256

    return SHA256()


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


# what is asked for and what is shown


def test_each_end_asks_for_certificates_of_the_authority_that_it_trusts() -> None:
    world = World(rsa_initiator(), rsa_responder()).connect(5.0)
    wanted = CertificateRequest(4, default_root().certificate.subject.public_bytes())
    for number in (3, 4):
        data, _ = world.wire[number - 1]
        assert parse_payloads(parse_header(data).next_payload, data[28:]).all(CertificateRequest) == [wanted]


def test_a_message_that_travels_in_fragments_is_named_when_nothing_answers_it() -> None:
    middle = default_root().issue("CN=Middle,O=Tests", authority=True)
    client = client_with(middle.issue("CN=leaf", ["client1.example"]), chain=(middle.certificate,))
    world = World(client, rsa_responder(), fate=lambda n, d, s: intact(n, d, s) if len(d) <= 1472 else []).connect()
    size = len(world.wire[4][0])
    assert size > 1472
    assert (
        f"no valid answer to Main Mode message 5 ({size} octets: it travels as IP fragments, which some NATs drop)"
        in world.reasons(world.client_events)
    )


@pytest.mark.parametrize("lost", [1, 2])
def test_fragments_are_blamed_in_aggressive_mode_too(lost: int) -> None:
    middle = default_root().issue("CN=Middle,O=Tests", authority=True)
    client = client_with(middle.issue("CN=leaf", ["client1.example"]), chain=(middle.certificate,))
    server = server_with(middle.issue("CN=other leaf", ["server.example"]), chain=(middle.certificate,))
    ends = (replace(c, exchange=Exchange.AGGRESSIVE) for c in (client, server))
    fate = lambda n, d, s: [] if len(d) > 1472 and s == (lost == 2) else intact(n, d, s)  # noqa: E731
    world = World(*ends, fate=fate).connect(70.0)
    size = next(len(d) for d, s in world.wire if len(d) > 1472 and s == (lost == 2))
    said = f"message {lost + 1} ({size} octets: it travels as IP fragments, which some NATs drop)"
    if lost == 1:
        assert said in world.reasons(world.server_events)
    else:
        assert said in " ".join(e.text for e in world.client_events if isinstance(e, events.Warned))


def test_a_message_that_fits_is_not_blamed_on_fragments() -> None:
    world = World(rsa_initiator(), rsa_responder(), fate=lambda n, d, s: [] if n >= 4 else intact(n, d, s)).connect()
    assert "no valid answer to Main Mode message 5 from" in world.reasons(world.client_events)


def test_private_keys_show_nowhere() -> None:
    world = World(rsa_initiator(), rsa_responder()).connect(5.0)
    shown = repr(world.client_events) + repr(world.client.ike_sas()) + repr(rsa_initiator())
    key = client_certificate().key
    numbers = key.private_numbers()
    pkcs8 = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    for secret in (repr(pkcs8)[2:40], str(numbers.d), f"{numbers.p:x}", "private_key="):
        assert secret not in shown


def test_a_responder_serves_peers_with_keys_and_peers_with_certificates() -> None:
    for client in (rsa_initiator(), INITIATOR):
        world = World(client, rsa_responder())
        world.server.connections["psk"] = replace(RESPONDER, name="psk")
        world.connect(5.0)
        assert world.up
        (sa,) = world.server.ike_sas()
        assert sa.connection.authentication == client.authentication


def test_a_method_that_is_not_allowed_is_named() -> None:
    world = World(INITIATOR, rsa_responder()).connect(5.0)
    assert "no authentication method that is allowed here (rsa)" in world.reasons(world.server_events)
    world = World(rsa_initiator(), RESPONDER).connect(5.0)
    assert "no authentication method that is allowed here (psk)" in world.reasons(world.server_events)


def test_a_pre_shared_key_beside_certificates_does_not_change_the_keys() -> None:
    """SKEYID of signatures has no pre-shared key in it (RFC 2409, 5)."""
    world = World(replace(rsa_initiator(), secret=Secret(b"left over")), rsa_responder()).connect(5.0)
    assert world.up


@pytest.mark.skipif(which("openssl") is None, reason="openssl is not installed")
def test_the_signature_is_over_the_bare_hash_that_rfc_2409_defines(tmp_path: FilePath) -> None:
    """Independent of our signing: openssl recovers what was signed, and clause 5's formulas are written out here."""
    client, server = (replace(c, exchange=Exchange.AGGRESSIVE) for c in (rsa_initiator(), rsa_responder()))
    world = World(client, server).connect(5.0)
    first, second = (parse_payloads(1, world.wire[n][0][28:]) for n in (0, 1))
    (tmp_path / "signature").write_bytes(second.one(Signature).data)
    (tmp_path / "certificate").write_bytes(
        x509.load_der_x509_certificate(second.one(Certificate).data).public_bytes(Encoding.PEM)
    )
    command = "openssl pkeyutl -verifyrecover -certin -inkey certificate -pkeyopt rsa_padding_mode:pkcs1 -in signature"
    signed = subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=30).stdout
    entropy = RepeatableEntropy(1)
    cookie = entropy.octets(8)
    assert cookie == world.wire[0][0][:8], "the test knows the initiator's randomness"
    shared = entropy.private_key(GROUPS["ecp256"]).exchange(second.one(KeyExchange).data)
    skeyid = hmac.digest(first.one(Nonce).data + second.one(Nonce).data, shared, "sha256")
    said = second.one(KeyExchange).data + first.one(KeyExchange).data + world.wire[1][0][8:16] + cookie
    said += first.bodies(SecurityAssociation)[0] + second.bodies(Identification)[0]
    assert signed == hmac.digest(skeyid, said, "sha256")
