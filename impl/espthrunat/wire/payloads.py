"""ISAKMP payloads (RFC 2408, 3.4 to 3.16) and NAT discovery (the draft, 4.1): bodies to values and back."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

from .errors import ParseError
from .proposal import Proposal, encode_proposals, parse_proposals

IPSEC_DOI = 1
SIT_IDENTITY_ONLY = 1
NAT_D_OCTETS = 16
X509_SIGNATURE = 4  # the certificate encoding that RSA signatures use (RFC 2408, 3.9)


class PayloadType(IntEnum):
    """Payload numbers (RFC 2408, 3.1; 130 from the draft, 4.1)."""

    NONE = 0
    SA = 1
    KEY_EXCHANGE = 4
    IDENTIFICATION = 5
    CERTIFICATE = 6
    CERTIFICATE_REQUEST = 7
    HASH = 8
    SIGNATURE = 9
    NONCE = 10
    NOTIFICATION = 11
    DELETE = 12
    VENDOR_ID = 13
    NAT_DISCOVERY = 130


class IdType(IntEnum):
    """Identification types that are used here (RFC 2407, 4.6.2.1)."""

    IPV4_ADDR = 1
    FQDN = 2
    USER_FQDN = 3
    IPV4_ADDR_SUBNET = 4
    DER_ASN1_DN = 9


class NotifyType(IntEnum):
    """Notify message types that are used here (RFC 2408, 3.14.1; RFC 2407, 4.6.3; RFC 3706, 5.2)."""

    INVALID_PAYLOAD_TYPE = 1
    INVALID_COOKIE = 4
    INVALID_SPI = 11
    NO_PROPOSAL_CHOSEN = 14
    PAYLOAD_MALFORMED = 16
    INVALID_KEY_INFORMATION = 17
    INVALID_ID_INFORMATION = 18
    INVALID_HASH_INFORMATION = 23
    AUTHENTICATION_FAILED = 24
    RESPONDER_LIFETIME = 24576
    INITIAL_CONTACT = 24578
    R_U_THERE = 36136
    R_U_THERE_ACK = 36137

    @property
    def label(self) -> str:
        """The name as the RFC prints it."""
        return self.name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class SecurityAssociation:
    """SA: what is offered, or the one transform that was chosen."""

    type: ClassVar = PayloadType.SA
    proposals: tuple[Proposal, ...]

    def body(self) -> bytes:
        """The octets after the generic header."""
        return struct.pack("!II", IPSEC_DOI, SIT_IDENTITY_ONLY) + encode_proposals(self.proposals)

    @classmethod
    def parse(cls, body: bytes, offset: int) -> SecurityAssociation:
        """Read a body that starts at `offset` of the message."""
        if len(body) < 8:
            raise ParseError("SA", offset, f"{len(body)} octets, 8 needed")
        doi, situation = struct.unpack_from("!II", body)
        if doi != IPSEC_DOI:
            raise ParseError("SA", offset, f"DOI {doi}, only IPsec (1) is known")
        if situation != SIT_IDENTITY_ONLY:
            raise ParseError("SA", offset + 4, f"situation {situation}, only SIT_IDENTITY_ONLY (1) is known")
        return cls(parse_proposals(body[8:], offset + 8))


@dataclass(frozen=True, slots=True)
class _Octets:
    """A payload that is nothing but its octets, `least` to `most` of them."""

    label: ClassVar[str]
    least: ClassVar[int] = 1
    most: ClassVar[int] = 0xFFFF - 4
    data: bytes

    def body(self) -> bytes:
        """The octets after the generic header."""
        return self.data

    @classmethod
    def parse(cls, body: bytes, offset: int) -> Self:
        """Read a body that starts at `offset` of the message."""
        if not cls.least <= len(body) <= cls.most:
            allowed = f"{cls.least}" if cls.least == cls.most else f"{cls.least} to {cls.most}"
            raise ParseError(cls.label, offset, f"{len(body)} octets, {allowed} are allowed")
        return cls(body)


class KeyExchange(_Octets):
    """KE: a Diffie-Hellman public value."""

    __slots__ = ()
    type: ClassVar = PayloadType.KEY_EXCHANGE
    label = "KE"


class Hash(_Octets):
    """HASH: proves knowledge of the keys."""

    __slots__ = ()
    type: ClassVar = PayloadType.HASH
    label = "HASH"


class Signature(_Octets):
    """SIG: the same by a private key, of up to 16384 bits."""

    __slots__ = ()
    type: ClassVar = PayloadType.SIGNATURE
    label, most = "SIG", 2048


class Nonce(_Octets):
    """NONCE: 8 to 256 octets (RFC 2409, 5)."""

    __slots__ = ()
    type: ClassVar = PayloadType.NONCE
    label, least, most = "NONCE", 8, 256


class VendorId(_Octets):
    """VID: an extension that the sender knows."""

    __slots__ = ()
    type: ClassVar = PayloadType.VENDOR_ID
    label, least = "VID", 0


class NatDiscovery(_Octets):
    """NAT-D (130): MD5 over the addresses and ports of both ends, 16 octets (the draft, 4.1)."""

    __slots__ = ()
    type: ClassVar = PayloadType.NAT_DISCOVERY
    label, least, most = "NAT-D", NAT_D_OCTETS, NAT_D_OCTETS


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A payload of an octet that names the encoding, and data in that encoding."""

    label: ClassVar[str]
    encoding: int
    data: bytes

    def body(self) -> bytes:
        """The octets after the generic header."""
        return self.encoding.to_bytes(1) + self.data

    @classmethod
    def parse(cls, body: bytes, offset: int) -> Self:
        """Read a body that starts at `offset` of the message."""
        if not body:
            raise ParseError(cls.label, offset, "0 octets, 1 needed")
        return cls(body[0], body[1:])


class Certificate(_Encoded):
    """CERT: a certificate, DER where the encoding is X509_SIGNATURE."""

    __slots__ = ()
    type: ClassVar = PayloadType.CERTIFICATE
    label = "CERT"


class CertificateRequest(_Encoded):
    """CERTREQ: the authority that the peer's certificate should come from, as the DER of its name; empty for any."""

    __slots__ = ()
    type: ClassVar = PayloadType.CERTIFICATE_REQUEST
    label = "CERTREQ"


@dataclass(frozen=True, slots=True)
class Identification:
    """ID: who a peer is (phase 1), or which traffic an SA is for (phase 2)."""

    type: ClassVar = PayloadType.IDENTIFICATION
    id_type: int
    data: bytes
    protocol: int = 0
    port: int = 0

    def body(self) -> bytes:
        """The octets after the generic header."""
        return struct.pack("!BBH", self.id_type, self.protocol, self.port) + self.data

    @classmethod
    def parse(cls, body: bytes, offset: int) -> Identification:
        """Read a body that starts at `offset` of the message."""
        if len(body) < 4:
            raise ParseError("ID", offset, f"{len(body)} octets, 4 needed")
        id_type, protocol, port = struct.unpack_from("!BBH", body)
        fixed = {IdType.IPV4_ADDR: 4, IdType.IPV4_ADDR_SUBNET: 8}.get(id_type)
        if fixed is not None and len(body) != 4 + fixed:
            raise ParseError("ID", offset + 4, f"{len(body) - 4} octets of data, type {id_type} has {fixed}")
        return cls(id_type, body[4:], protocol, port)


@dataclass(frozen=True, slots=True)
class Notification:
    """N: an error or a status about the SA that `spi` names."""

    type: ClassVar = PayloadType.NOTIFICATION
    notify_type: int
    protocol: int = 1
    spi: bytes = b""
    data: bytes = b""

    def body(self) -> bytes:
        """The octets after the generic header."""
        return struct.pack("!IBBH", IPSEC_DOI, self.protocol, len(self.spi), self.notify_type) + self.spi + self.data

    @classmethod
    def parse(cls, body: bytes, offset: int) -> Notification:
        """Read a body that starts at `offset` of the message."""
        if len(body) < 8:
            raise ParseError("N", offset, f"{len(body)} octets, 8 needed")
        doi, protocol, spi_size, notify_type = struct.unpack_from("!IBBH", body)
        if doi not in (0, IPSEC_DOI):
            raise ParseError("N", offset, f"DOI {doi}, only ISAKMP (0) and IPsec (1) are known")
        if len(body) < 8 + spi_size:
            raise ParseError("N", offset + 5, f"SPI of {spi_size} octets does not fit")
        return cls(notify_type, protocol, body[8 : 8 + spi_size], body[8 + spi_size :])


@dataclass(frozen=True, slots=True)
class Delete:
    """D: SAs that the sender no longer accepts traffic on."""

    type: ClassVar = PayloadType.DELETE
    protocol: int
    spis: tuple[bytes, ...]

    def body(self) -> bytes:
        """The octets after the generic header."""
        size = len(self.spis[0]) if self.spis else 0
        return struct.pack("!IBBH", IPSEC_DOI, self.protocol, size, len(self.spis)) + b"".join(self.spis)

    @classmethod
    def parse(cls, body: bytes, offset: int) -> Delete:
        """Read a body that starts at `offset` of the message."""
        if len(body) < 8:
            raise ParseError("D", offset, f"{len(body)} octets, 8 needed")
        doi, protocol, size, count = struct.unpack_from("!IBBH", body)
        if doi not in (0, IPSEC_DOI):
            raise ParseError("D", offset, f"DOI {doi}, only ISAKMP (0) and IPsec (1) are known")
        if not count or not size or len(body) != 8 + size * count:
            raise ParseError("D", offset + 5, f"{count} SPIs of {size} octets in {len(body) - 8}")
        return cls(protocol, tuple(body[i : i + size] for i in range(8, len(body), size)))


Payload = (
    SecurityAssociation
    | KeyExchange
    | Identification
    | Certificate
    | CertificateRequest
    | Hash
    | Signature
    | Nonce
    | Notification
    | Delete
    | VendorId
    | NatDiscovery
)

PAYLOADS: dict[int, type[Payload]] = {
    kind.type: kind
    for kind in (
        SecurityAssociation,
        KeyExchange,
        Identification,
        Certificate,
        CertificateRequest,
        Hash,
        Signature,
        Nonce,
        Notification,
        Delete,
        VendorId,
        NatDiscovery,
    )
}
