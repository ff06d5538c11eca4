"""Lifetimes as attributes of proposals and in RESPONDER-LIFETIME (RFC 2407, 4.5 and 4.6.3.1; RFC 2409, appendix A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..wire.isakmp import Chain
from ..wire.payloads import Notification, NotifyType
from ..wire.proposal import Attribute, Phase2Attribute, Protocol, Transform, parse_attributes

LIFE_SECONDS = 1
LIFE_KILOBYTES = 2
DEFAULT_SECONDS = 28_800  # what a peer means that names none (RFC 2407, 4.5)

_MOST_KILOBYTES = 1 << 38  # 2^32 packets of 64 KB: sequence numbers end before


def life(life_type: int, life_duration: int, seconds: int, kilobytes: int = 0) -> tuple[Attribute, ...]:
    """The pairs of attributes that say how long an SA lives: in seconds, and in kilobytes unless these are 0."""
    attributes = [Attribute(life_type, LIFE_SECONDS), Attribute(life_duration, _value(seconds))]
    if kilobytes:
        attributes += [Attribute(life_type, LIFE_KILOBYTES), Attribute(life_duration, _value(kilobytes))]
    return tuple(attributes)


def seconds_of(transform: Transform, life_type: int, life_duration: int) -> int | None:
    """The first duration that is in seconds: life types and durations come in pairs, in order."""
    return _duration(transform.attributes, LIFE_SECONDS, life_type, life_duration)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long an ESP SA lives: seconds, and kilobytes (1024 octets) of inner packets; 0 is no limit."""

    seconds: int = 0
    kilobytes: int = 0

    @classmethod
    def of(cls, seconds: int, octets: int) -> Lifetime:
        """A policy's seconds and octets."""
        return cls(seconds, _countable(-(-octets // 1024)))

    @classmethod
    def read(cls, attributes: Sequence[Attribute]) -> Lifetime:
        """What a peer says in phase 2."""
        kind, value = Phase2Attribute.LIFE_TYPE, Phase2Attribute.LIFE_DURATION
        seconds = _duration(attributes, LIFE_SECONDS, kind, value) or 0
        kilobytes = _duration(attributes, LIFE_KILOBYTES, kind, value) or 0
        return cls(seconds, _countable(kilobytes))

    def within(self, other: Lifetime) -> Lifetime:
        """What both allow."""
        return Lifetime(_smaller(self.seconds, other.seconds), _smaller(self.kilobytes, other.kilobytes))

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """As phase 2 says it."""
        return life(Phase2Attribute.LIFE_TYPE, Phase2Attribute.LIFE_DURATION, self.seconds, self.kilobytes)

    @property
    def octets(self) -> int:
        """Octets of inner packets; 0 is no limit."""
        return self.kilobytes * 1024


def responder_lifetime(lifetime: Lifetime, spi: bytes) -> Notification:
    """What tells the initiator that the responder's policy is shorter; `spi` is the responder's inbound one."""
    data = b"".join(attribute.encode() for attribute in lifetime.attributes)
    return Notification(NotifyType.RESPONDER_LIFETIME, Protocol.ESP, spi, data)


def read_responder_lifetime(message: Chain, spi: bytes) -> Lifetime:
    """What the responder's notifications say, no limit where they say nothing; `spi` is the responder's inbound one.

    Raises ParseError for attributes that cannot be read.
    """
    lifetime = Lifetime()
    for notification in message.all(Notification):
        if (notification.notify_type, notification.protocol, notification.spi) == (
            NotifyType.RESPONDER_LIFETIME,
            Protocol.ESP,
            spi,
        ):
            lifetime = lifetime.within(Lifetime.read(parse_attributes(notification.data, 0)))
    return lifetime


def _duration(attributes: Sequence[Attribute], unit: int, life_type: int, life_duration: int) -> int | None:
    kind = None
    for attribute in attributes:
        if attribute.type == life_type:
            kind = attribute.number
        elif attribute.type == life_duration and kind == unit:
            return attribute.number
    return None


def _value(number: int) -> int | bytes:
    return number if number < 0x10000 else number.to_bytes(4 if number < 1 << 32 else 8, "big")


def _countable(kilobytes: int) -> int:
    """What no SA can carry is no limit; peers may name any number."""
    return kilobytes if kilobytes <= _MOST_KILOBYTES else 0


def _smaller(a: int, b: int) -> int:
    return min(a or b, b or a)
