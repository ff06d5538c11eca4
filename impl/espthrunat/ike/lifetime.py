"""Lifetimes as attributes of proposals (RFC 2407, 4.5; RFC 2409, appendix A)."""

from __future__ import annotations

from ..wire.proposal import Attribute, Transform

LIFE_SECONDS = 1
LIFE_KILOBYTES = 2


def life(life_type: int, life_duration: int, seconds: int) -> tuple[Attribute, Attribute]:
    """The pair of attributes that says how long an SA lives, in seconds."""
    value: int | bytes = seconds if seconds < 0x10000 else seconds.to_bytes(4, "big")
    return Attribute(life_type, LIFE_SECONDS), Attribute(life_duration, value)


def seconds_of(transform: Transform, life_type: int, life_duration: int) -> int | None:
    """The first duration that is in seconds: life types and durations come in pairs, in order."""
    kind = None
    for attribute in transform.attributes:
        if attribute.type == life_type:
            kind = attribute.number
        elif attribute.type == life_duration and kind == LIFE_SECONDS:
            return attribute.number
    return None
