"""Authentication with pre-shared keys in phase 1 (RFC 2409, 5.4)."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import keying
from .keying import Skeyids
from .policy import IkeSuite, Secret


@dataclass(frozen=True, slots=True)
class Transcript:
    """What both ends have said in the clear: everything that HASH_I and HASH_R cover but the identity."""

    initiator_cookie: bytes
    responder_cookie: bytes
    sa_body: bytes
    initiator_public: bytes
    responder_public: bytes
    initiator_nonce: bytes
    responder_nonce: bytes
    shared_secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Phase1Secrets:
    """SKEYID and what follows from it. The repr shows no value."""

    skeyid: bytes = field(repr=False)
    keys: Skeyids = field(repr=False)
    cipher_key: bytes = field(repr=False)


def derive(suite: IkeSuite, secret: Secret, said: Transcript) -> Phase1Secrets:
    """The keys of phase 1 for one candidate pre-shared key."""
    skeyid = keying.skeyid_psk(suite.hash, secret.octets, said.initiator_nonce, said.responder_nonce)
    keys = keying.derive(suite.hash, skeyid, said.shared_secret, said.initiator_cookie, said.responder_cookie)
    return Phase1Secrets(skeyid, keys, keying.cipher_key(suite.hash, keys.e, suite.key_bits // 8))


def first_iv(suite: IkeSuite, said: Transcript) -> bytes:
    """The IV of message 5."""
    return keying.phase1_iv(suite.hash, said.initiator_public, said.responder_public)


def proof(suite: IkeSuite, secrets: Phase1Secrets, said: Transcript, id_body: bytes, *, initiator: bool) -> bytes:
    """HASH_I or HASH_R over an identity's body."""
    make = keying.hash_i if initiator else keying.hash_r
    return make(
        suite.hash,
        secrets.skeyid,
        said.initiator_public,
        said.responder_public,
        said.initiator_cookie,
        said.responder_cookie,
        said.sa_body,
        id_body,
    )
