"""ISAKMP messages (RFC 2408, 3.1 and 3.2): the header and the chain of payloads behind it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from .errors import ParseError
from .payloads import PAYLOADS, Payload, PayloadType

HEADER_OCTETS = 28
VERSION = 0x10
COOKIE_OCTETS = 8
FLAG_ENCRYPTED = 0x01
FLAG_COMMIT = 0x02
FLAG_AUTHENTICATION_ONLY = 0x04
_KNOWN_FLAGS = FLAG_ENCRYPTED | FLAG_COMMIT | FLAG_AUTHENTICATION_ONLY
_HEADER = struct.Struct("!8s8sBBBBII")

P = TypeVar("P", bound=Payload)


class ExchangeType(IntEnum):
    """Exchange types (RFC 2408, 3.1; RFC 2409, appendix A)."""

    MAIN = 2
    AGGRESSIVE = 4
    INFORMATIONAL = 5
    QUICK = 32


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed 28 octets; `length` is what they say of the whole message."""

    initiator_cookie: bytes
    responder_cookie: bytes
    next_payload: int
    exchange: int
    flags: int
    message_id: int
    length: int = 0

    @property
    def encrypted(self) -> bool:
        """Whether what follows is ciphertext."""
        return bool(self.flags & FLAG_ENCRYPTED)


@dataclass(frozen=True, slots=True)
class Item:
    """A payload where it stood: hashes cover octets as they were sent, not as we would send them."""

    payload: Payload
    body: bytes
    end: int  # octets from the start of the chain to the payload's end


class Chain(tuple[Item, ...]):
    """The payloads of one message, in order."""

    __slots__ = ()

    def all(self, kind: type[P]) -> list[P]:
        """Every payload of this kind."""
        return [item.payload for item in self if isinstance(item.payload, kind)]

    def bodies(self, kind: type[P]) -> list[bytes]:
        """The bodies, as received, of every payload of this kind."""
        return [item.body for item in self if isinstance(item.payload, kind)]

    def one(self, kind: type[P]) -> P:
        """The only payload of this kind; ParseError when there is none or another."""
        found = self.all(kind)
        if len(found) != 1:
            raise ParseError(kind.__name__, 0, f"{len(found)} in a message that needs exactly one")
        return found[0]

    def at_most_one(self, kind: type[P]) -> P | None:
        """The only payload of this kind or None; ParseError when it is repeated."""
        return self.one(kind) if self.all(kind) else None


def parse_header(datagram: bytes) -> Header:
    """Read and check the header of a whole datagram.

    Raises ParseError for a zero initiator cookie (which would be ESP's marker), a version other than 1.0, unknown
    flags, and a length that is not the datagram's: trailing octets are nobody's.
    """
    if len(datagram) < HEADER_OCTETS:
        raise ParseError("header", 0, f"{len(datagram)} octets, {HEADER_OCTETS} needed")
    icookie, rcookie, following, version, exchange, flags, message_id, length = _HEADER.unpack_from(datagram)
    if icookie == bytes(COOKIE_OCTETS):
        raise ParseError("header", 0, "the initiator cookie is zero")
    if version != VERSION:
        raise ParseError("header", 17, f"version {version >> 4}.{version & 15}, only 1.0 is known")
    if flags & ~_KNOWN_FLAGS:
        raise ParseError("header", 19, f"unknown flags 0x{flags:02x}")
    if length != len(datagram):
        raise ParseError("header", 24, f"length {length} in a datagram of {len(datagram)} octets")
    return Header(icookie, rcookie, following, exchange, flags, message_id, length)


def parse_payloads(first: int, data: bytes, offset: int = HEADER_OCTETS, padding: int = 0) -> Chain:
    """Read a chain of payloads that fills `data`, but for less than `padding` octets behind the last one.

    `offset` is where `data` starts in the message, for errors. Raises ParseError for a payload that is unknown,
    does not fit or has reserved bits set, and for trailing octets.
    """
    items = []
    position, kind = 0, first
    if kind == PayloadType.NONE:
        raise ParseError("header", offset, "a message without payloads")
    while kind != PayloadType.NONE:
        where = offset + position
        payload_class = PAYLOADS.get(kind)
        if payload_class is None:
            raise ParseError(f"payload {kind}", where, "unknown payload type")
        name = PayloadType(kind).name
        if len(data) - position < 4:
            raise ParseError(name, where, f"{len(data) - position} octets left, 4 needed")
        following, reserved, length = struct.unpack_from("!BBH", data, position)
        if reserved:
            raise ParseError(name, where + 1, f"reserved octet is {reserved}")
        if length < 4 or position + length > len(data):
            raise ParseError(name, where + 2, f"length {length}, {len(data) - position} octets left")
        body = data[position + 4 : position + length]
        position += length
        items.append(Item(payload_class.parse(body, where + 4), body, position))
        kind = following
    trailing = len(data) - position
    if trailing and trailing >= padding:
        raise ParseError("header", offset + position, f"{trailing} trailing octets")
    return Chain(items)


def encode_payloads(payloads: Sequence[Payload]) -> bytes:
    """The octets of a chain of payloads, each with its generic header."""
    parts = []
    for i, payload in enumerate(payloads):
        body = payload.body()
        following = payloads[i + 1].type if i + 1 < len(payloads) else PayloadType.NONE
        parts.append(struct.pack("!BxH", following, 4 + len(body)) + body)
    return b"".join(parts)


def encode_message(header: Header, body: bytes) -> bytes:
    """The octets of a message: the header, its length set to fit, and the body behind it."""
    return (
        _HEADER.pack(
            header.initiator_cookie,
            header.responder_cookie,
            header.next_payload,
            VERSION,
            header.exchange,
            header.flags,
            header.message_id,
            HEADER_OCTETS + len(body),
        )
        + body
    )
