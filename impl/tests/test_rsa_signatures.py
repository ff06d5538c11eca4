"""Main Mode with RSA signatures: who proves to be whom, and what a certificate must say for that."""

from __future__ import annotations

import hmac
import subprocess
from dataclasses import replace
from pathlib import Path as FilePath
from shutil import which

import pytest
from certificate_world import (
    Authority,
    client_certificate,
    default_root,
    rsa_initiator,
    rsa_key,
    rsa_responder,
)
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from ike_world import INITIATOR, RESPONDER, Nat, RepeatableEntropy, World, intact
from test_rsa_certificates import CLIENT_DN, client_with, established, server_with

from espthrunat.ike import events
from espthrunat.ike.groups import GROUPS
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.policy import Exchange, IkeSuite, Secret
from espthrunat.wire.isakmp import parse_header, parse_payloads
from espthrunat.wire.payloads import (
    Certificate,
    CertificateRequest,
    Identification,
    IdType,
    KeyExchange,
    Nonce,
    SecurityAssociation,
    Signature,
)

MESSAGES = 9


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
