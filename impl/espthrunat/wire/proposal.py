"""The SA payload's inside: proposals, transforms and attributes (RFC 2408, 3.3 to 3.6)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from .errors import ParseError

_PROPOSAL = 2
_TRANSFORM = 3
MAX_TRANSFORMS = 256  # of one SA payload: each is compared with every suite of every connection


class Protocol(IntEnum):
    """Protocol identifiers of the IPsec DOI (RFC 2407, 4.4.1)."""

    ISAKMP = 1
    AH = 2
    ESP = 3


class Phase1Attribute(IntEnum):
    """Attribute classes of phase 1 (RFC 2409, appendix A)."""

    ENCRYPTION = 1
    HASH = 2
    AUTHENTICATION = 3
    GROUP = 4
    LIFE_TYPE = 11
    LIFE_DURATION = 12
    KEY_LENGTH = 14


class Phase2Attribute(IntEnum):
    """Attribute classes of phase 2 (RFC 2407, 4.5)."""

    LIFE_TYPE = 1
    LIFE_DURATION = 2
    GROUP = 3
    ENCAPSULATION_MODE = 4
    AUTHENTICATION = 5
    KEY_LENGTH = 6


@dataclass(frozen=True, slots=True)
class Attribute:
    """One data attribute; an int value travels in the two-octet form, bytes in the variable one."""

    type: int
    value: int | bytes

    @property
    def number(self) -> int:
        """The value as an unsigned integer, whichever form it came in."""
        return self.value if isinstance(self.value, int) else int.from_bytes(self.value, "big")

    def encode(self) -> bytes:
        """The attribute's octets."""
        if isinstance(self.value, int):
            return struct.pack("!HH", 0x8000 | self.type, self.value)
        return struct.pack("!HH", self.type, len(self.value)) + self.value


@dataclass(frozen=True, slots=True)
class Transform:
    """One way to protect traffic: a transform identifier and its attributes."""

    number: int
    transform_id: int
    attributes: tuple[Attribute, ...] = ()

    def attribute(self, type_: int) -> int | None:
        """The number of the first attribute of this type, or None."""
        return next((a.number for a in self.attributes if a.type == type_), None)


@dataclass(frozen=True, slots=True)
class Proposal:
    """Transforms of one protocol, in the sender's order of preference."""

    number: int
    protocol: int
    spi: bytes
    transforms: tuple[Transform, ...]


def encode_proposals(proposals: Sequence[Proposal]) -> bytes:
    """The octets of a run of proposals, as the SA payload carries them."""
    parts = []
    for i, proposal in enumerate(proposals):
        transforms = []
        for j, transform in enumerate(proposal.transforms):
            attributes = b"".join(a.encode() for a in transform.attributes)
            following = _TRANSFORM if j + 1 < len(proposal.transforms) else 0
            transforms.append(
                struct.pack("!BxHBBxx", following, 8 + len(attributes), transform.number, transform.transform_id)
                + attributes
            )
        inside = proposal.spi + b"".join(transforms)
        following = _PROPOSAL if i + 1 < len(proposals) else 0
        parts.append(
            struct.pack(
                "!BxHBBBB",
                following,
                8 + len(inside),
                proposal.number,
                proposal.protocol,
                len(proposal.spi),
                len(proposal.transforms),
            )
            + inside
        )
    return b"".join(parts)


def parse_proposals(data: bytes, offset: int) -> tuple[Proposal, ...]:
    """Read a run of proposals that fills `data`; `offset` is where it starts in the message, for errors."""
    proposals = []
    position, more, left = 0, True, MAX_TRANSFORMS
    while more:
        if len(data) - position < 8:
            raise ParseError("proposal", offset + position, f"{len(data) - position} octets left, 8 needed")
        following, reserved, length, number, protocol, spi_size, count = struct.unpack_from("!BBHBBBB", data, position)
        if following not in (0, _PROPOSAL):
            raise ParseError("proposal", offset + position, f"next payload {following}, only 0 or 2 may follow")
        if reserved:
            raise ParseError("proposal", offset + position + 1, f"reserved octet is {reserved}")
        if length < 8 + spi_size or position + length > len(data):
            raise ParseError("proposal", offset + position + 2, f"length {length} does not fit")
        left -= count
        if left < 0:
            raise ParseError("proposal", offset + position + 7, f"more than {MAX_TRANSFORMS} transforms in all")
        spi = data[position + 8 : position + 8 + spi_size]
        start = position + 8 + spi_size
        transforms = _parse_transforms(data[start : position + length], offset + start)
        if len(transforms) != count:
            raise ParseError("proposal", offset + position + 7, f"{count} transforms promised, {len(transforms)} found")
        proposals.append(Proposal(number, protocol, spi, transforms))
        position += length
        more = following == _PROPOSAL
    if position != len(data):
        raise ParseError("proposal", offset + position, f"{len(data) - position} trailing octets")
    return tuple(proposals)


def _parse_transforms(data: bytes, offset: int) -> tuple[Transform, ...]:
    transforms = []
    position, more = 0, True
    while more:
        if len(data) - position < 8:
            raise ParseError("transform", offset + position, f"{len(data) - position} octets left, 8 needed")
        following, r1, length, number, transform_id, r2 = struct.unpack_from("!BBHBBH", data, position)
        if following not in (0, _TRANSFORM):
            raise ParseError("transform", offset + position, f"next payload {following}, only 0 or 3 may follow")
        if r1 or r2:
            raise ParseError("transform", offset + position, "reserved octets are not zero")
        if length < 8 or position + length > len(data):
            raise ParseError("transform", offset + position + 2, f"length {length} does not fit")
        attributes = parse_attributes(data[position + 8 : position + length], offset + position + 8)
        transforms.append(Transform(number, transform_id, attributes))
        position += length
        more = following == _TRANSFORM
    if position != len(data):
        raise ParseError("transform", offset + position, f"{len(data) - position} trailing octets")
    return tuple(transforms)


def parse_attributes(data: bytes, offset: int) -> tuple[Attribute, ...]:
    """Read a run of attributes that fills `data`; `offset` as for `parse_proposals`."""
    attributes = []
    position = 0
    while position < len(data):
        if len(data) - position < 4:
            raise ParseError("attribute", offset + position, f"{len(data) - position} octets left, 4 needed")
        kind, value = struct.unpack_from("!HH", data, position)
        if kind & 0x8000:
            attributes.append(Attribute(kind & 0x7FFF, value))
            position += 4
            continue
        if position + 4 + value > len(data):
            raise ParseError("attribute", offset + position + 2, f"length {value} does not fit")
        attributes.append(Attribute(kind, data[position + 4 : position + 4 + value]))
        position += 4 + value
    return tuple(attributes)
