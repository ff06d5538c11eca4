"""What every exchange needs from the endpoint that it belongs to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..messages import Path, Selector
from . import groups
from .events import Event
from .groups import Group, PrivateKey
from .identity import Identity
from .nat_traversal import NatTraversal, default_method
from .policy import Connection
from .timers import Timers

NONCE_OCTETS = 32  # RFC 2409, 5 allows 8 to 256


class Entropy(Protocol):
    """Where randomness comes from: the system's, or a test's that can be repeated."""

    def octets(self, count: int) -> bytes:
        """Unpredictable octets."""

    def private_key(self, group: Group) -> PrivateKey:
        """A fresh Diffie-Hellman key."""


class SystemEntropy:
    """The operating system's randomness."""

    def octets(self, count: int) -> bytes:
        """Unpredictable octets."""
        return os.urandom(count)

    def private_key(self, group: Group) -> PrivateKey:
        """A fresh Diffie-Hellman key."""
        return groups.generate(group)


@dataclass(slots=True)
class Context:
    """Sending, telling, timing and randomness, without any I/O behind them."""

    entropy: Entropy
    send: Callable[[bytes, Path], None]
    emit: Callable[[Event], None]
    timers: Timers
    spi_in_use: Callable[[int], bool]
    holder: Callable[[Identity, Selector], str] = lambda identity, selector: ""  # who else has this tunnel's traffic
    # as what the peer's inner network appears here: "" for itself, None if no network is left for it
    inner_network: Callable[[Identity, Connection, float], str | None] = lambda identity, connection, now: ""
    method: NatTraversal = field(default_factory=default_method)
    wall_clock: Callable[[], float] = time.time  # seconds since 1970: certificates are valid by the calendar

    def cookie(self) -> bytes:
        """An ISAKMP cookie: unpredictable, never zero (zero is ESP's marker)."""
        while not any(cookie := self.entropy.octets(8)):
            pass
        return cookie

    def message_id(self) -> int:
        """A message ID for an exchange after phase 1: random, not zero (RFC 2408, 3.1)."""
        while not (number := int.from_bytes(self.entropy.octets(4), "big")):
            pass
        return number

    def spi(self) -> int:
        """An unused inbound SPI; 1 to 255 are reserved (RFC 2406, 2.1)."""
        while (number := int.from_bytes(self.entropy.octets(4), "big")) < 256 or self.spi_in_use(number):
            pass
        return number
