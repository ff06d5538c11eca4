"""Tells apart what shares the IKE port: ESP behind its marker, keepalives and IKE (the draft, 3.2 and 4.3)."""

from __future__ import annotations

import enum

ESP_MARKER = bytes(8)  # where IKE has the initiator cookie, which is never zero (3.2)
KEEPALIVE = b"\xff"  # the whole payload of a NAT keepalive (4.3, NAT Keepalives)

_MARKER_OCTETS = len(ESP_MARKER)


class Kind(enum.Enum):
    """What a datagram on the IKE port is."""

    ESP = enum.auto()
    """Eight zero octets, then ESP."""
    IKE = enum.auto()
    """Begins with an initiator cookie. A damaged marker looks like this too; IKE knows no such cookie."""
    KEEPALIVE = enum.auto()
    """One octet 0xFF: to be dropped silently."""
    JUNK = enum.auto()
    """Nothing of the three: too short for a cookie, or a marker with nothing behind it."""


def classify(datagram: bytes) -> Kind:
    """What the UDP payload `datagram` is, by the draft's rules 3.2 and 4.3. Any octets have an answer."""
    if datagram.startswith(ESP_MARKER):
        return Kind.ESP if len(datagram) > _MARKER_OCTETS else Kind.JUNK
    if len(datagram) >= _MARKER_OCTETS:
        return Kind.IKE
    return Kind.KEEPALIVE if datagram == KEEPALIVE else Kind.JUNK
