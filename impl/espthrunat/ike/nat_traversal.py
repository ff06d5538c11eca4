"""Methods of NAT traversal: what to announce, what to hash, and which encapsulation modes to name.

Only this module knows which method is in use. The draft's method is the only one so far.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
import struct
from dataclasses import dataclass
from typing import Protocol

from ..messages import Encapsulation, Mode, Path
from ..wire.errors import ParseError
from ..wire.isakmp import Chain
from ..wire.payloads import NatDiscovery, Payload, VendorId

IKE_PORT = 500


class NatStatus(enum.StrEnum):
    """What discovery found out."""

    UNKNOWN = "unknown"  # not finished, or the peer does not know the method
    NONE = "none"
    DETECTED = "detected"


_PLAIN_MODES = {1: Mode.TUNNEL, 2: Mode.TRANSPORT}  # RFC 2407, 4.5


class NatTraversal(Protocol):
    """What IKE needs of any method; exchanges know this and no more."""

    @property
    def name(self) -> str:
        """What people call the method, for messages."""

    def announce(self) -> list[Payload]:
        """What tells the peer that this method is known here."""

    def announced(self, message: Chain) -> bool:
        """Whether the peer says that it knows this method."""

    def discovery(self, path: Path, initiator: bool) -> list[Payload]:
        """What lets the peer find out whether a NAT lies between."""

    def detect(self, message: Chain, path: Path, initiator: bool) -> NatStatus:
        """What the peer's discovery shows, UNKNOWN when it sent none. ParseError when it is malformed."""

    def refuse_misplaced(self, message: Chain) -> None:
        """Raise ParseError if discovery stands in a message that has none."""

    def mode_attribute(self, mode: Mode, encapsulation: Encapsulation) -> int:
        """The Encapsulation Mode attribute's value (RFC 2407, 4.5)."""

    def read_mode(self, value: int | None) -> tuple[Mode, Encapsulation] | None:
        """What an Encapsulation Mode attribute's value means, or None if it means nothing here."""


@dataclass(frozen=True, slots=True)
class EspThruNat:
    """draft-huttunen-ipsec-esp-in-udp-01: vendor ID MD5("ESPThruNAT"), one NAT-D payload a message, port 500."""

    name: str = "ESPThruNAT"
    vendor_id: bytes = hashlib.md5(b"ESPThruNAT", usedforsecurity=False).digest()
    udp_tunnel: int = 61440
    udp_transport: int = 61441

    def announce(self) -> list[Payload]:
        """What tells the peer that this method is known here (the draft, 4.1)."""
        return [VendorId(self.vendor_id)]

    def announced(self, message: Chain) -> bool:
        """Whether the peer says that it knows this method."""
        return any(vendor.data == self.vendor_id for vendor in message.all(VendorId))

    def discovery(self, path: Path, initiator: bool) -> list[Payload]:
        """The NAT-D payload over the addresses and ports that this end sees."""
        return [NatDiscovery(self.digest(path, initiator))]

    def digest(self, path: Path, initiator: bool) -> bytes:
        """MD5(initiator address, its port, responder address, its port), 16 octets; a port of 0 counts as 500."""
        local = _end(path.local, path.local_port)
        remote = _end(path.remote, path.remote_port)
        both = local + remote if initiator else remote + local
        return hashlib.md5(both, usedforsecurity=False).digest()

    def detect(self, message: Chain, path: Path, initiator: bool) -> NatStatus:
        """Compare the peer's NAT-D with our own view of the same flow; UNKNOWN when the peer sent none.

        Raises ParseError when there is more than one: the draft knows exactly one a message.
        """
        received = message.at_most_one(NatDiscovery)
        if received is None:
            return NatStatus.UNKNOWN
        same = hmac.compare_digest(received.data, self.digest(path, initiator))
        return NatStatus.NONE if same else NatStatus.DETECTED

    def refuse_misplaced(self, message: Chain) -> None:
        """Raise ParseError if NAT discovery stands where the draft has none."""
        if message.all(NatDiscovery):
            raise ParseError("NAT_DISCOVERY", 0, "in a message that has no NAT discovery")

    def mode_attribute(self, mode: Mode, encapsulation: Encapsulation) -> int:
        """The Encapsulation Mode attribute's value (RFC 2407, 4.5; the draft, 4.3)."""
        if encapsulation == Encapsulation.UDP:
            return self.udp_tunnel if mode == Mode.TUNNEL else self.udp_transport
        return next(value for value, plain in _PLAIN_MODES.items() if plain == mode)

    def read_mode(self, value: int | None) -> tuple[Mode, Encapsulation] | None:
        """What an Encapsulation Mode attribute's value means, or None if it means nothing here."""
        if value == self.udp_tunnel:
            return Mode.TUNNEL, Encapsulation.UDP
        if value == self.udp_transport:
            return Mode.TRANSPORT, Encapsulation.UDP
        plain = _PLAIN_MODES.get(value) if value is not None else None
        return (plain, Encapsulation.NONE) if plain else None


def default_method() -> NatTraversal:
    """The method that is used unless something else is asked for."""
    return EspThruNat()


def _end(address: str, port: int) -> bytes:
    return ipaddress.ip_address(address).packed + struct.pack("!H", port or IKE_PORT)
