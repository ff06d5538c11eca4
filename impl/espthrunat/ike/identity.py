"""Who a peer is: identities of phase 1 and how a policy matches them (the draft, 4.1; RFC 2407, 4.6.2)."""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass

from ..wire.errors import ParseError
from ..wire.payloads import Identification, IdType
from . import distinguished_name

ANY = "any"
_TEXT_TYPES = (IdType.FQDN, IdType.USER_FQDN)


@dataclass(frozen=True, slots=True)
class Identity:
    """A name (FQDN), a user at a name, an IPv4 address, or a distinguished name as RFC 4514 text."""

    type: IdType
    text: str

    @classmethod
    def from_text(cls, text: str) -> Identity:
        """The identity that a configuration means: an IPv4 address, "CN=x, O=y", a user@name, or a name."""
        try:
            return cls(IdType.IPV4_ADDR, str(ipaddress.IPv4Address(text)))
        except ValueError:
            pass
        if "=" in text:
            return cls(IdType.DER_ASN1_DN, distinguished_name.canonical(text))
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("an identity is a domain name, user@domain, an IPv4 address or a distinguished name")
        return cls(IdType.USER_FQDN if "@" in text else IdType.FQDN, text.lower())

    @classmethod
    def from_payload(cls, payload: Identification) -> Identity:
        """The identity in a phase 1 ID payload; ParseError if it is of a type or content that is not known here."""
        if payload.id_type == IdType.IPV4_ADDR:
            return cls(IdType.IPV4_ADDR, str(ipaddress.IPv4Address(payload.data)))
        if payload.id_type in _TEXT_TYPES:
            if not payload.data or not payload.data.isascii() or any(c <= 0x20 or c == 0x7F for c in payload.data):
                raise ParseError("ID", 4, "a name has printable ASCII octets")
            return cls(IdType(payload.id_type), payload.data.decode("ascii").lower())
        if payload.id_type == IdType.DER_ASN1_DN:
            try:
                return cls(IdType.DER_ASN1_DN, distinguished_name.decode(payload.data))
            except ValueError as error:
                raise ParseError("ID", 4, str(error)) from error
        raise ParseError("ID", 0, f"identification type {payload.id_type} is not known in phase 1")

    @property
    def is_address(self) -> bool:
        """Whether a NAT may have made this identity untrue."""
        return self.type == IdType.IPV4_ADDR

    def to_payload(self) -> Identification:
        """The ID payload; port and protocol 0, since behind a NAT no port is certain."""
        if self.is_address:
            return Identification(self.type, ipaddress.IPv4Address(self.text).packed)
        if self.type == IdType.DER_ASN1_DN:
            return Identification(self.type, distinguished_name.encode(self.text))
        return Identification(self.type, self.text.encode("ascii"))


@dataclass(frozen=True, slots=True)
class IdentityPattern:
    """What a policy accepts: one identity, every name below a domain ("*.example.org"), or "any"."""

    text: str

    @property
    def exact(self) -> bool:
        """Whether it is a single identity."""
        return self.text.lower() != ANY and not self.text.startswith("*.")

    def matches(self, identity: Identity) -> bool:
        """Whether this identity is accepted."""
        pattern = self.text.lower()
        if pattern == ANY:
            return True
        if not self.exact:
            return identity.type == IdType.FQDN and identity.text.endswith(pattern[1:]) and identity.text != pattern[1:]
        return identity == _meant(self.text)

    def __str__(self) -> str:
        return self.text


@functools.lru_cache(maxsize=1024)
def _meant(text: str) -> Identity | None:
    try:
        return Identity.from_text(text)
    except ValueError:
        return None
