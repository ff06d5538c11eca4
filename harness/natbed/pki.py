"""Certification authorities for one run, and what each host proves itself with."""

from __future__ import annotations

import datetime
import os
import pathlib
from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from .stacks.base import Credentials

KEY_BITS = 2048
VALID = datetime.timedelta(days=1)
SLACK = datetime.timedelta(minutes=5)  # before now, for clocks that disagree
ORGANISATION = "natbed"


def issue(folder: pathlib.Path, identities: Mapping[str, str]) -> dict[str, Credentials]:
    """Make an authority and a certificate for each host's identity, a domain name; files in `folder`/HOST/.

    The name stands in subjectAltName (RFC 4945, 5.1.3). A second authority stands between, as is usual: with its
    certificate an IKE message no longer fits an Ethernet, and must pass the NAT in fragments. The authorities' own keys
    are kept nowhere.
    """
    root_name, issuer_name = _name("natbed root"), _name("natbed issuer")
    root_key, issuer_key = _key(), _key()
    root = _authority(root_name, root_key, root_name, root_key, path_length=1)
    issuer = _authority(issuer_name, issuer_key, root_name, root_key, path_length=0)
    return {
        host: _write(folder / host, [_host(identity, key := _key(), issuer_name, issuer_key), issuer], key, root)
        for host, identity in identities.items()
    }


def _authority(
    name: x509.Name, key: rsa.RSAPrivateKey, issuer: x509.Name, issuer_key: rsa.RSAPrivateKey, *, path_length: int
) -> x509.Certificate:
    return (
        _builder(name, issuer, key.public_key(), issuer_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def _host(identity: str, key: rsa.RSAPrivateKey, issuer: x509.Name, issuer_key: rsa.RSAPrivateKey) -> x509.Certificate:
    return (
        _builder(_name(identity), issuer, key.public_key(), issuer_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(identity)]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, KEY_BITS)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: rsa.RSAPublicKey, issuer_key: rsa.RSAPrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    """An authority signs certificates; a host signs what IKE hashes."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    folder: pathlib.Path, chain: Sequence[x509.Certificate], key: rsa.RSAPrivateKey, authority: x509.Certificate
) -> Credentials:
    folder.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    files = Credentials(folder / "certificate.pem", folder / "private_key.pem", folder / "ca.pem")
    files.certificate.write_bytes(b"".join(certificate.public_bytes(pem) for certificate in chain))
    files.authorities.write_bytes(authority.public_bytes(pem))
    descriptor = os.open(files.private_key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return files
