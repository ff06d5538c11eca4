"""Certificates of RSA signature authentication: reading them, trusting them, and what they say (RFC 4945; RFC 5280)."""

from __future__ import annotations

import datetime
import hmac
import warnings
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo
from cryptography.x509 import verification
from cryptography.x509.verification import Criticality, ExtensionPolicy

from ..wire.payloads import X509_SIGNATURE, Certificate, IdType
from . import distinguished_name
from .credentials import Credentials
from .identity import Identity
from .ike_sa import NotAuthentic

MAX_CERTIFICATES = 8  # of one message
MAX_OCTETS = 8192  # of one certificate
MAX_INTERMEDIATES = 4  # between a peer's certificate and an authority
LEAST_BITS, MOST_BITS = 2048, 8192  # of a peer's RSA key
_WRONG_VALUES = (  # what reading somebody's certificate may raise
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def load(certificate: bytes, private_key: bytes, authorities: bytes) -> Credentials:
    """Credentials from three PEM files: our certificate with those above it, its key, and whom we trust.

    Raises ValueError with one line that says what is wrong.
    """
    chain = _read_pem(certificate, "the certificate")
    key = _read_key(private_key)
    own = next((c for c in chain if c.public_key() == key.public_key()), None)
    if own is None:
        raise ValueError("the private key does not belong to the certificate")
    if key.key_size < LEAST_BITS:
        raise ValueError(f"the RSA key has {key.key_size} bits, {LEAST_BITS} are the least")
    trusted = _read_pem(authorities, "the authorities")
    for authority in trusted:
        if not _is_authority(authority):
            raise ValueError(f"{subject(authority)} is no certificate authority (basic constraints)")
    if len(chain) > MAX_CERTIFICATES:
        raise ValueError(f"more than {MAX_CERTIFICATES} certificates in one chain")
    der = serialization.Encoding.DER
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return Credentials(
        chain=tuple(c.public_bytes(der) for c in (own, *(c for c in chain if c != own))),
        private_key=key.private_bytes(der, pkcs8, plain),
        authorities=tuple(a.public_bytes(der) for a in trusted),
    )


def sign(credentials: Credentials, digest: bytes) -> bytes:
    """The private-key operation over a bare digest: PKCS #1 v1.5 without DigestInfo (RFC 2409, 5.1)."""
    # the key was checked when it was loaded, and checking takes a hundred times longer than signing
    key = serialization.load_der_private_key(credentials.private_key, None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, RSAPrivateKey)
    return key.sign(digest, PKCS1v15(), NoDigestInfo())


def own_subject(credentials: Credentials) -> bytes:
    """The DER of our certificate's subject, as it stands there."""
    return x509.load_der_x509_certificate(credentials.chain[0]).subject.public_bytes()


def authority_names(credentials: Credentials) -> list[bytes]:
    """The DER of the names of the authorities that we trust."""
    return [x509.load_der_x509_certificate(a).subject.public_bytes() for a in credentials.authorities]


def certifies(credentials: Credentials, identity: Identity) -> bool:
    """Whether our own certificate says that we are who we say, which peers will check."""
    return _names(x509.load_der_x509_certificate(credentials.chain[0]), identity)


class Presented:
    """The certificates of one message of a peer; the one that goes with the identity stands apart.

    Raises NotAuthentic when there are none, too many, or one that cannot be read.
    """

    def __init__(self, payloads: Sequence[Certificate], identity: Identity) -> None:
        usable = [payload.data for payload in payloads if payload.encoding == X509_SIGNATURE]
        if not usable:
            raise NotAuthentic("the peer sent no certificate")
        if len(usable) > MAX_CERTIFICATES:
            raise NotAuthentic(f"the peer sent {len(usable)} certificates, {MAX_CERTIFICATES} are the most")
        if max(map(len, usable)) > MAX_OCTETS:
            raise NotAuthentic(f"a certificate of more than {MAX_OCTETS} octets")
        self._identity = identity
        try:
            with warnings.catch_warnings(action="ignore"):  # of what authorities do, which nobody here can mend
                self._all = [x509.load_der_x509_certificate(data) for data in usable]
                self.leaf = next((c for c in self._all if _names(c, identity)), self._all[0])
                self._key = self.leaf.public_key()
                self.subject = subject(self.leaf)
        except _WRONG_VALUES as error:
            raise NotAuthentic("a certificate of the peer cannot be read") from error

    def require_signature(self, signature: bytes, digest: bytes, label: str) -> None:
        """Raise NotAuthentic unless the certificate's key has signed `digest`."""
        if not isinstance(self._key, RSAPublicKey):
            raise NotAuthentic(f"the key in the certificate of {self.subject} is not RSA")
        if not LEAST_BITS <= self._key.key_size <= MOST_BITS:
            raise NotAuthentic(
                f"the certificate of {self.subject} has an RSA key of {self._key.key_size} bits,"
                f" {LEAST_BITS} to {MOST_BITS} are accepted"
            )
        try:
            signed = self._key.recover_data_from_signature(signature, PKCS1v15(), None)
        except (InvalidSignature, *_WRONG_VALUES):
            signed = b""
        if not hmac.compare_digest(signed, digest):
            raise NotAuthentic(f"{label} is wrong")

    def require_identity(self) -> None:
        """Raise NotAuthentic unless the certificate says what the peer says of itself."""
        if not _names(self.leaf, self._identity):
            raise NotAuthentic(f"the identity {self._identity.text} is not in the certificate of {self.subject}")

    def require_trust(self, authorities: Sequence[bytes], when: float) -> None:
        """Raise NotAuthentic unless one of `authorities` vouches for the certificate at `when`, seconds since 1970."""
        moment = datetime.datetime.fromtimestamp(when, datetime.UTC)
        if moment > self.leaf.not_valid_after_utc:
            raise NotAuthentic(f"the certificate of {self.subject} expired at {self.leaf.not_valid_after_utc}")
        if moment < self.leaf.not_valid_before_utc:
            raise NotAuthentic(f"the certificate of {self.subject} is valid only from {self.leaf.not_valid_before_utc}")
        store = verification.Store([x509.load_der_x509_certificate(a) for a in authorities])
        builder = (
            verification.PolicyBuilder()
            .store(store)
            .time(moment.replace(tzinfo=None))
            .max_chain_depth(MAX_INTERMEDIATES)
            .extension_policies(ca_policy=_authority_policy(), ee_policy=_peer_policy())
        )
        try:
            builder.build_client_verifier().verify(self.leaf, [c for c in self._all if c != self.leaf])
        except verification.VerificationError as error:
            raise NotAuthentic(f"the certificate of {self.subject} is not trusted: {_why(error)}") from error
        except _WRONG_VALUES as error:
            raise NotAuthentic("a certificate of the peer cannot be read") from error


def subject(certificate: x509.Certificate) -> str:
    """The subject as RFC 4514 text, fit for a log."""
    return "".join(c if c.isprintable() else "?" for c in _subject(certificate))


def _subject(certificate: x509.Certificate) -> str:
    with warnings.catch_warnings(action="ignore"):  # of odd lengths
        return distinguished_name.to_text(certificate.subject)


def _names(certificate: x509.Certificate, identity: Identity) -> bool:
    if identity.type == IdType.DER_ASN1_DN:
        return _subject(certificate) == identity.text
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    if identity.type == IdType.FQDN:
        return identity.text in (name.lower() for name in names.get_values_for_type(x509.DNSName))
    if identity.type == IdType.USER_FQDN:
        return identity.text in (name.lower() for name in names.get_values_for_type(x509.RFC822Name))
    if identity.type == IdType.IPV4_ADDR:
        return identity.text in (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return False


def _authority_policy() -> ExtensionPolicy:
    def signs_certificates(_: object, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
        if usage is not None and not usage.key_cert_sign:
            raise ValueError("its key usage is not to sign certificates")

    return (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, signs_certificates)
    )


def _peer_policy() -> ExtensionPolicy:
    """RFC 4945, 5.1.3: no name is obligatory, extended key usage does not matter, and key usage must allow to sign."""

    def signs(_: object, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
        if usage is not None and not (usage.digital_signature or usage.content_commitment):
            raise ValueError("its key usage is not to sign")

    return ExtensionPolicy.permit_all().may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, signs)


def _why(error: verification.VerificationError) -> str:
    text = str(error)
    if "all candidates exhausted with no interior errors" in text:
        return "no known authority has issued it"
    if "not valid at validation time" in text:
        return "an authority's certificate above it has expired"
    if "signature does not match" in text:
        return "it was not signed by the authority that it names"
    return text.removeprefix("validation failed: ").partition(" (encountered")[0]


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except x509.ExtensionNotFound:
        return False


def _read_pem(data: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except _WRONG_VALUES as error:
        raise ValueError(f"{what}: no PEM certificate can be read") from error


def _read_key(data: bytes) -> RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError as error:
        raise ValueError("the private key is encrypted; only keys without a passphrase can be used") from error
    except _WRONG_VALUES as error:
        raise ValueError("the private key: no PEM private key can be read") from error
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("the private key is not RSA")  # noqa: TRY004 - of the file, not of the argument
    return key
