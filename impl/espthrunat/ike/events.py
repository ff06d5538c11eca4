"""What an endpoint has to tell: one dataclass an event."""

from __future__ import annotations

from dataclasses import dataclass

from ..messages import Direction, Path
from .child_sa import ChildSa


@dataclass(frozen=True, slots=True)
class NatDetected:
    """NAT discovery of one phase 1 has ended; `nat` says whether addresses or ports were changed on the way."""

    connection: str
    path: Path
    nat: bool
    supported: bool


@dataclass(frozen=True, slots=True)
class Phase1Keys:
    """Phase 1 has keys: what a key log, if one was asked for, needs to decrypt it."""

    initiator_cookie: bytes
    cipher_key: bytes

    def __repr__(self) -> str:
        return f"Phase1Keys({self.initiator_cookie.hex()})"


@dataclass(frozen=True, slots=True)
class IkeSaEstablished:
    """Phase 1 is complete: the peer has proven its identity. `seconds` counts from the first message here."""

    connection: str
    path: Path
    identity: str
    suite: str
    initiator: bool
    seconds: float
    tries: int = 1  # of pre-shared keys, where a responder had to find the one that fits


@dataclass(frozen=True, slots=True)
class IkeSaDeleted:
    """A phase 1 SA is gone."""

    connection: str
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class SaEstablished:
    """A pair of ESP SAs may be used, each direction from its own event on.

    The responder accepts inbound traffic as soon as it has answered Quick Mode, and sends only when the initiator
    has confirmed.
    """

    child: ChildSa
    directions: tuple[Direction, ...]
    seconds: float = 0.0  # from the first message of Quick Mode


@dataclass(frozen=True, slots=True)
class SaRetired:
    """A pair of ESP SAs was replaced: nothing more may be sent on it, but what is under way is still accepted."""

    child: ChildSa


@dataclass(frozen=True, slots=True)
class SaDeleted:
    """A pair of ESP SAs must no longer be used."""

    child: ChildSa
    reason: str


@dataclass(frozen=True, slots=True)
class KeepaliveWanted:
    """Keepalives must go out on this path, one each `interval` seconds without other traffic; 0 ends them (4.3)."""

    path: Path
    interval: float


@dataclass(frozen=True, slots=True)
class PeerMoved:
    """A peer's SAs have followed it to another outer address or port; only policy `rebinding` allows that."""

    connection: str
    old: Path
    new: Path


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that works and yet deserves a warning."""

    connection: str
    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class AuthenticationFailed:
    """A peer did not prove to be one that the policy knows."""

    connection: str
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class ExchangeFailed:
    """An exchange that was begun here, or a peer's that was refused, has ended without an SA."""

    connection: str
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class DatagramRefused:
    """A datagram was dropped without effect. `kind` is one of few, so that logs can be limited by it."""

    kind: str
    path: Path
    reason: str


Event = (
    NatDetected
    | Phase1Keys
    | IkeSaEstablished
    | IkeSaDeleted
    | SaEstablished
    | SaRetired
    | SaDeleted
    | KeepaliveWanted
    | PeerMoved
    | Warned
    | AuthenticationFailed
    | ExchangeFailed
    | DatagramRefused
)
