"""Distinguished names: the DER of X.501 and the text of RFC 4514, each made canonical so that equal names are equal."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.x509 import Name

MAX_OCTETS = 2048  # of a peer's name, before it has proven anything
_MAX_OID_OCTETS = 64

_SEQUENCE, _SET, _OID = 0x30, 0x31, 0x06
_STRINGS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be"}
_MORE_TYPES = {"emailAddress": "1.2.840.113549.1.9.1", "serialNumber": "2.5.4.5"}  # beyond those of RFC 4514, 3
_SYNONYMS = {"E": "emailAddress", "EMAILADDRESS": "emailAddress", "SERIALNUMBER": "serialNumber", "S": "ST"}
_PART = re.compile(r"((?:\\.|[^\\,+])*)([,+]|$)", re.DOTALL)


def canonical(text: str) -> str:
    """RFC 4514 text as this module writes it: attribute types in upper case, no spaces around "," and "=".

    Raises ValueError for what is no distinguished name.
    """
    return to_text(_name(text))


def encode(text: str) -> bytes:
    """The DER of a name. Raises ValueError for what is no distinguished name."""
    return _name(text).public_bytes()


def to_text(name: Name) -> str:
    """RFC 4514 text."""
    from cryptography.x509 import ObjectIdentifier  # late: takes 70 ms

    return name.rfc4514_string({ObjectIdentifier(oid): short for short, oid in _MORE_TYPES.items()})


def decode(der: bytes) -> str:
    """RFC 4514 text of a name's DER, which anyone may have sent. Raises ValueError for anything else."""
    from cryptography import x509  # late: takes 70 ms

    if len(der) > MAX_OCTETS:
        raise ValueError(f"a distinguished name of more than {MAX_OCTETS} octets")
    relative = []
    for part in _children(_whole(der, _SEQUENCE), _SET):
        attributes = []
        for pair in _children(part, _SEQUENCE):
            tag, oid, rest = _element(pair)
            kind, value, end = _element(rest)
            if tag != _OID or kind not in _STRINGS or end:
                raise ValueError("an attribute of a distinguished name is no type and string")
            if len(oid) > _MAX_OID_OCTETS:
                raise ValueError(f"an attribute type of more than {_MAX_OID_OCTETS} octets")
            text = value.decode(_STRINGS[kind])
            if not text.isprintable():
                raise ValueError("a distinguished name with characters that cannot be printed")
            attributes.append(x509.NameAttribute(x509.ObjectIdentifier(_dotted(oid)), text))
        relative.append(x509.RelativeDistinguishedName(attributes))
    if not relative:
        raise ValueError("a distinguished name without content")
    return to_text(x509.Name(relative))


def _name(text: str) -> Name:
    from cryptography import x509

    parts = []
    for part, separator in _PART.findall(text):
        kind, equals, value = part.partition("=")
        if not equals and not separator and not part:
            continue  # what the pattern finds behind the last part
        kind = kind.strip()
        value = value.lstrip()
        while value.endswith(" ") and not value.endswith("\\ "):
            value = value[:-1]
        parts.append(f"{_SYNONYMS.get(kind.upper(), kind.upper())}={value}{separator}")
    if not text.isprintable():
        raise ValueError("a distinguished name with characters that cannot be printed")
    types = {short: x509.ObjectIdentifier(oid) for short, oid in _MORE_TYPES.items()}
    try:
        with warnings.catch_warnings(action="error"):
            name = x509.Name.from_rfc4514_string("".join(parts), types)
    except (ValueError, Warning) as error:
        raise ValueError(f"{text!r} is no distinguished name (RFC 4514){_because(error)}") from error
    if not name.rdns:
        raise ValueError("a distinguished name without content")
    return name


def _because(error: Exception) -> str:
    return f": {error}" if str(error) else ""


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """The tag and content of the first element, and what follows it."""
    if len(data) < 2:
        raise ValueError("a distinguished name is cut")
    length, start = data[1], 2
    if length & 0x80:
        size = length & 0x7F
        start += size
        length = int.from_bytes(data[2:start], "big")
        if not 1 <= size <= 2 or len(data) < start or length < 0x80:
            raise ValueError("a length in a distinguished name is no DER")
    if len(data) < start + length:
        raise ValueError("a distinguished name is cut")
    return data[0], data[start : start + length], data[start + length :]


def _whole(data: bytes, wanted: int) -> bytes:
    tag, content, rest = _element(data)
    if tag != wanted or rest:
        raise ValueError("not the DER of a distinguished name")
    return content


def _children(data: bytes, wanted: int) -> list[bytes]:
    found = []
    while data:
        tag, content, data = _element(data)
        if tag != wanted:
            raise ValueError("not the DER of a distinguished name")
        found.append(content)
    return found


def _dotted(oid: bytes) -> str:
    numbers, number = [], 0
    for octet in oid:
        number = number << 7 | octet & 0x7F
        if not octet & 0x80:
            numbers.append(number)
            number = 0
    if not numbers or oid[-1] & 0x80:
        raise ValueError("an object identifier is cut")
    first = min(numbers[0] // 40, 2)
    return ".".join(str(n) for n in (first, numbers[0] - 40 * first, *numbers[1:]))
