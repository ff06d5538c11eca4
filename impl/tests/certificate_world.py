"""A certificate authority for tests, and endpoints that prove themselves with what it issues."""

from __future__ import annotations

import datetime
import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from ike_world import INITIATOR, RESPONDER

from espthrunat.ike import certificates
from espthrunat.ike.credentials import Credentials
from espthrunat.ike.policy import Authentication, Connection

DAY = datetime.timedelta(days=1)


@functools.cache
def rsa_key(name: str, bits: int = 2048) -> RSAPrivateKey:
    """One key a name: making them takes longer than all that is done with them."""
    return generate_private_key(65537, bits)


def pem_key(key: RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.RFC822Name(text) if "@" in text else x509.DNSName(text)


@dataclass(frozen=True)
class Authority:
    """A certificate with its key; what it issues is certified by it, whether or not it may."""

    certificate: x509.Certificate
    key: RSAPrivateKey
    above: tuple[x509.Certificate, ...] = ()  # between it and the root, itself included

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        subject: str,
        names: Sequence[str] = (),
        *,
        authority: bool | None = None,
        days: tuple[float, float] = (-1.0, 30.0),
        bits: int = 2048,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> Authority:
        """A certificate, valid `days` from now, with its key. `authority` None leaves basic constraints out."""
        key = rsa_key(subject, bits)
        certificate = build(subject, self.certificate.subject, key, self.key, names, authority, days, extensions)
        return Authority(certificate, key, (certificate, *self.above) if self.above or authority else ())

    def credentials(self, trusts: Authority, *, chain: Sequence[x509.Certificate] = ()) -> Credentials:
        """What an endpoint with this certificate loads."""
        pem = b"".join(c.public_bytes(Encoding.PEM) for c in (self.certificate, *chain))
        return certificates.load(pem, pem_key(self.key), trusts.pem)


def build(
    subject: str,
    issuer: x509.Name,
    key: RSAPrivateKey,
    issuer_key: RSAPrivateKey,
    names: Sequence[str],
    authority: bool | None,
    days: tuple[float, float],
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
    )
    if authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
    if names:
        san = x509.SubjectAlternativeName([general_name(name) for name in names])
        builder = builder.add_extension(san, critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def root(
    subject: str = "CN=Test Root,O=Tests",
    *,
    authority: bool | None = True,
    days: tuple[float, float] = (-2.0, 60.0),
) -> Authority:
    """A new root of trust; the same subject always has the same key."""
    key = rsa_key(subject)
    name = x509.Name.from_rfc4514_string(subject)
    return Authority(build(subject, name, key, key, (), authority, days, ()), key)


@functools.cache
def default_root() -> Authority:
    return root()


@functools.cache
def client_certificate() -> Authority:
    return default_root().issue("CN=client1,O=Tests", ["client1.example", "client1@example", "192.168.1.11"])


@functools.cache
def server_certificate() -> Authority:
    return default_root().issue("CN=server,O=Tests", ["server.example"])


def with_rsa(connection: Connection, credentials: Credentials) -> Connection:
    return replace(connection, authentication=Authentication.RSA, secret=None, credentials=credentials)


@functools.cache
def rsa_initiator() -> Connection:
    return with_rsa(INITIATOR, client_certificate().credentials(default_root()))


@functools.cache
def rsa_responder() -> Connection:
    return with_rsa(RESPONDER, server_certificate().credentials(default_root()))
