"""Loading certificates, and the distinguished names in them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which

import pytest
from certificate_world import client_certificate, default_root, pem_key, root, rsa_key, server_certificate
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from espthrunat.ike import certificates, distinguished_name
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.wire.errors import ParseError
from espthrunat.wire.payloads import Identification, IdType

OWN = client_certificate().pem
KEY = pem_key(client_certificate().key)
CA = default_root().pem


def test_credentials_begin_with_our_own_certificate_whatever_the_file_begins_with() -> None:
    middle = default_root().issue("CN=Middle", authority=True)
    leaf = middle.issue("CN=leaf", ["leaf.example"])
    loaded = certificates.load(middle.pem + leaf.pem, pem_key(leaf.key), CA)
    assert [x509.load_der_x509_certificate(c).subject.rfc4514_string() for c in loaded.chain] == [
        "CN=leaf",
        "CN=Middle",
    ]
    assert certificates.certifies(loaded, Identity.from_text("leaf.example"))
    assert not certificates.certifies(loaded, Identity.from_text("other.example"))


def encrypted_key() -> bytes:
    return client_certificate().key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


def ec_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("certificate", "key", "authorities", "says"),
    [
        (b"", KEY, CA, "the certificate: no PEM certificate"),
        (OWN[:200], KEY, CA, "the certificate: no PEM certificate"),
        (client_certificate().certificate.public_bytes(Encoding.DER), KEY, CA, "the certificate: no PEM certificate"),
        (OWN, b"nonsense", CA, "no PEM private key"),
        (OWN, OWN, CA, "no PEM private key"),
        (OWN, encrypted_key(), CA, "is encrypted"),
        (OWN, ec_key(), CA, "is not RSA"),
        (OWN, pem_key(server_certificate().key), CA, "does not belong to the certificate"),
        (OWN, KEY, b"", "the authorities: no PEM certificate"),
        (OWN, KEY, OWN, "CN=client1,O=Tests is no certificate authority"),
        (OWN, KEY, root("CN=plain", authority=False).pem, "CN=plain is no certificate authority"),
        (OWN * 9, KEY, CA, "more than 8 certificates"),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(
    certificate: bytes, key: bytes, authorities: bytes, says: str
) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        certificates.load(certificate, key, authorities)
    assert "\n" not in str(caught.value)


def test_a_small_key_cannot_be_loaded() -> None:
    small = default_root().issue("CN=small", bits=1024)
    with pytest.raises(ValueError, match="the RSA key has 1024 bits, 2048 are the least"):
        certificates.load(small.pem, pem_key(small.key), CA)


def test_credentials_do_not_show_the_key() -> None:
    loaded = certificates.load(OWN, KEY, CA)
    assert "private_key" not in repr(loaded)
    assert repr(loaded.private_key)[2:-1] not in repr(loaded)


@pytest.mark.skipif(which("openssl") is None, reason="openssl is not installed")
def test_files_that_openssl_made_can_be_loaded(tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    for name in ("ca", "own"):
        (tmp_path / f"{name}.key").write_bytes(pem_key(rsa_key(f"openssl {name}")))
    openssl("req", "-x509", "-key", "ca.key", "-subj", "/C=FI/O=Acme, Inc./CN=Root", "-days", "9", "-out", "ca.pem")
    openssl("req", "-new", "-key", "own.key", "-subj", "/C=FI/O=Acme, Inc./CN=gw", "-out", "own.csr")
    openssl("x509", "-req", "-in", "own.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "9", "-out", "own.pem")
    files = [(tmp_path / name).read_bytes() for name in ("own.pem", "own.key", "ca.pem")]
    loaded = certificates.load(*files)
    assert certificates.certifies(loaded, Identity.from_text(r"CN=gw, O=Acme\, Inc., C=FI"))


# distinguished names


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("CN=x, O=y", "CN=x,O=y"),
        ("cn = x , o= Acme\\, Inc. ", "CN=x,O=Acme\\, Inc."),
        ("E=a@b,CN=x", "emailAddress=a@b,CN=x"),
        ("emailaddress=a@b,CN=x", "emailAddress=a@b,CN=x"),
        ("CN=a+OU=b,DC=example,DC=org", "CN=a+OU=b,DC=example,DC=org"),
        ("2.5.4.97=z", "2.5.4.97=z"),
        ("CN=a=b", "CN=a=b"),
    ],
)
def test_a_name_is_written_in_one_way_only(text: str, canonical: str) -> None:
    assert distinguished_name.canonical(text) == canonical
    assert distinguished_name.canonical(canonical) == canonical
    assert distinguished_name.decode(distinguished_name.encode(text)) == canonical
    identity = Identity.from_text(text)
    assert identity == Identity(IdType.DER_ASN1_DN, canonical)
    assert Identity.from_payload(identity.to_payload()) == identity
    assert IdentityPattern(text).matches(identity)


@pytest.mark.parametrize("text", ["CN=", "=x", "foo=bar", "CN=a,,O=b", "CN=x,", "C=Finland", "CN=a\nb"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="distinguished name"):
        Identity.from_text(text)
    assert not IdentityPattern(text).matches(Identity.from_text("CN=x"))


@pytest.mark.parametrize("octet", [b"\n", b"\x1b", b"\0", b"\x7f"])
def test_a_name_that_could_forge_a_line_of_a_log_is_refused(octet: bytes) -> None:
    name = distinguished_name.encode("CN=client").replace(b"client", b"cli" + octet + b"nt")
    with pytest.raises(ParseError, match="cannot be printed"):
        Identity.from_payload(Identification(IdType.DER_ASN1_DN, name))


@given(st.binary(max_size=80))
def test_arbitrary_octets_are_a_name_or_a_parse_error(data: bytes) -> None:
    try:
        identity = Identity.from_payload(Identification(IdType.DER_ASN1_DN, data))
    except ParseError:
        return
    assert identity.text.isprintable()


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_name_is_another_or_a_parse_error(position: int, value: int) -> None:
    octets = bytearray(distinguished_name.encode("CN=client,OU=Testing,O=Acme\\, Inc.,DC=example,DC=org"))
    octets[position % len(octets)] = value
    try:
        Identity.from_payload(Identification(IdType.DER_ASN1_DN, bytes(octets)))
    except ParseError:
        return


def test_identities_of_different_types_are_different_whatever_their_text() -> None:
    assert not IdentityPattern("192.0.2.1").matches(Identity(IdType.FQDN, "192.0.2.1"))
    assert not IdentityPattern("CN=x").matches(Identity(IdType.FQDN, "CN=x"))
    assert not IdentityPattern("a@b.example").matches(Identity(IdType.FQDN, "a@b.example"))
    assert not IdentityPattern("*.example").matches(Identity(IdType.DER_ASN1_DN, "CN=a.example"))
