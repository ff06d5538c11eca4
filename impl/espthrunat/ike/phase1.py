"""What Main Mode and Aggressive Mode share, whoever began them (RFC 2409, 5)."""

from __future__ import annotations

import enum

from ..wire.errors import ParseError
from ..wire.isakmp import Chain, ExchangeType
from ..wire.payloads import KeyExchange, Nonce, Notification, NotifyType, VendorId
from .authentication import Phase1Secrets, Transcript
from .context import Context
from .events import IkeSaEstablished, NatDetected, Warned
from .groups import BadPublicValue, PrivateKey
from .identity import Identity
from .ike_sa import IkeSa
from .nat_traversal import NatStatus

MODES = {ExchangeType.MAIN: "Main Mode", ExchangeType.AGGRESSIVE: "Aggressive Mode"}
DPD = VendorId(bytes.fromhex("afcad71368a1f1c96b8696fc77570100"))  # RFC 3706, 5.1: version 1.0
MAX_WRONG_PROOFS = 8  # of one exchange: each costs work
UNFRAGMENTED = 1472  # octets of UDP payload that an Ethernet carries in one piece


class State(enum.Enum):
    """What an exchange waits for: the message of this number, or nothing any more."""

    WAITS_FOR_2 = 2
    WAITS_FOR_3 = 3
    WAITS_FOR_4 = 4
    WAITS_FOR_5 = 5
    WAITS_FOR_6 = 6
    ESTABLISHED = 7
    FAILED = 0


def in_fragments(octets: int) -> str:
    """A remark about a message of this size that nothing answers; empty if it fits into one packet."""
    return f" ({octets} octets: it travels as IP fragments, which some NATs drop)" if octets > UNFRAGMENTED else ""


def agree(
    message: Chain, private: PrivateKey, nonce: bytes, offer: bytes, cookies: tuple[bytes, bytes], *, initiator: bool
) -> Transcript:
    """The transcript, once the peer's KE and nonce are there; `private` and `nonce` are ours, `cookies` I's and R's.

    Raises ParseError for a public value that is none of the group's.
    """
    peer, peer_nonce = message.one(KeyExchange).data, message.one(Nonce).data
    try:
        shared = private.exchange(peer)
    except BadPublicValue as error:
        raise ParseError("KE", 0, str(error)) from error
    publics = (private.public, peer) if initiator else (peer, private.public)
    nonces = (nonce, peer_nonce) if initiator else (peer_nonce, nonce)
    return Transcript(*cookies, offer, *publics, *nonces, shared)


def take_keys(sa: IkeSa, secrets: Phase1Secrets) -> None:
    """Let the SA have its keys."""
    sa.keys, sa.cipher_key = secrets.keys, secrets.cipher_key


def knows_dpd(message: Chain) -> bool:
    """Whether the peer announces dead peer detection (RFC 3706, 5.1)."""
    return DPD in message.all(VendorId)


def is_first_contact(message: Chain) -> bool:
    """Whether the peer says that it has no other SAs with us (RFC 2407, 4.6.3.3); count it only if encrypted."""
    return any(n.notify_type == NotifyType.INITIAL_CONTACT for n in message.all(Notification))


def tell_nat(context: Context, sa: IkeSa) -> None:
    """Tell what NAT discovery found out."""
    context.emit(NatDetected(sa.connection.name, sa.path, sa.nat == NatStatus.DETECTED, sa.peer_knows_method))


def warn_of_addresses(context: Context, sa: IkeSa, peer: Identity | None) -> None:
    """Warn where a NAT changes addresses and one of them serves as an identity all the same (the draft, 4.2)."""
    if sa.nat != NatStatus.DETECTED:
        return
    for whose, identity in (("our", sa.connection.local_identity), ("the peer's", peer)):
        if identity is not None and identity.is_address:
            text = (
                f"a NAT changes addresses here, and {whose} identity is the address {identity.text}: a name is better"
            )
            context.emit(Warned(sa.connection.name, sa.path, text))


def establish(context: Context, sa: IkeSa, identity: Identity, now: float, tries: int = 1) -> None:
    """The peer has proven who it is: say so."""
    assert sa.suite is not None
    sa.identity = identity
    sa.established = True
    context.emit(
        IkeSaEstablished(
            sa.connection.name,
            sa.path,
            identity.text,
            sa.suite.name,
            initiator=sa.initiator,
            seconds=now - sa.started,
            tries=tries,
        )
    )
