"""Authentication in phase 1, with pre-shared keys and with RSA signatures (RFC 2409, 5.1 and 5.4)."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..wire.isakmp import Chain
from ..wire.payloads import (
    X509_SIGNATURE,
    Certificate,
    CertificateRequest,
    Hash,
    Identification,
    IdType,
    Payload,
    Signature,
)
from . import keying
from .identity import Identity
from .ike_sa import NotAuthentic
from .keying import Skeyids
from .policy import Authentication, Connection, IkeSuite, Secret

MAX_REQUESTS = 4  # authorities named to a peer; beyond them it may send what it has
MAX_AUTHORITIES = 16  # sets of authorities that are tried for one message


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


def key_of(connection: Connection) -> Secret | None:
    """The pre-shared key of a connection that authenticates by one; None for signatures."""
    return connection.secret if connection.authentication == Authentication.PSK else None


def derive(suite: IkeSuite, secret: Secret | None, said: Transcript) -> Phase1Secrets:
    """The keys of phase 1: for one candidate pre-shared key, or, without one, for signatures."""
    if secret is not None:
        skeyid = keying.skeyid_psk(suite.hash, secret.octets, said.initiator_nonce, said.responder_nonce)
    else:
        skeyid = keying.prf(suite.hash, said.initiator_nonce + said.responder_nonce, said.shared_secret)
    keys = keying.derive(suite.hash, skeyid, said.shared_secret, said.initiator_cookie, said.responder_cookie)
    octets = suite.cipher.key_octets(suite.key_bits)
    return Phase1Secrets(skeyid, keys, keying.cipher_key(suite.hash, keys.e, octets))


def first_iv(suite: IkeSuite, said: Transcript) -> bytes:
    """The IV of phase 1's first encrypted message."""
    return keying.phase1_iv(suite.hash, said.initiator_public, said.responder_public, suite.cipher.block_octets)


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


def own_identity(connection: Connection) -> Identification:
    """Our ID payload; a distinguished name goes out in the very octets of our certificate."""
    payload = connection.local_identity.to_payload()
    if payload.id_type == IdType.DER_ASN1_DN and connection.credentials is not None:
        from . import certificates  # late: takes 90 ms, and pre-shared keys do without

        return Identification(payload.id_type, certificates.own_subject(connection.credentials))
    return payload


def own_proof(connection: Connection, digest: bytes) -> list[Payload]:
    """What proves who we are, by `digest`, which is HASH_I or HASH_R: itself, or our certificates and a signature."""
    if connection.authentication == Authentication.PSK:
        return [Hash(digest)]
    from . import certificates

    assert connection.credentials is not None
    chain = [Certificate(X509_SIGNATURE, certificate) for certificate in connection.credentials.chain]
    return [*chain, Signature(certificates.sign(connection.credentials, digest))]


def requests(connections: Sequence[Connection]) -> list[Payload]:
    """What asks a peer for its certificate (RFC 2408, 3.10), where any of `connections` needs one."""
    signing = [c for c in connections if c.authentication == Authentication.RSA]
    trusted = list(dict.fromkeys(c.credentials for c in signing if c.credentials is not None))
    if not trusted:
        return []
    from . import certificates

    names = list(dict.fromkeys(name for c in trusted[:MAX_REQUESTS] for name in certificates.authority_names(c)))
    if len(trusted) > MAX_REQUESTS or len(names) > MAX_REQUESTS:
        names = [b""]
    return [CertificateRequest(X509_SIGNATURE, name) for name in names]


def check(
    message: Chain,
    identity: Identity,
    expected: bytes,
    connections: Sequence[Connection],
    *,
    initiator: bool,
    when: float,
) -> tuple[Connection, ...]:
    """Those of `connections` by whose policy the peer has proven to be `identity`; `expected` is its HASH.

    All of them must have one method of authentication and, with pre-shared keys, one key. `when` is seconds since
    1970. Raises NotAuthentic that says which check failed.
    """
    side = "I" if initiator else "R"
    if connections[0].authentication == Authentication.PSK:
        if not hmac.compare_digest(message.one(Hash).data, expected):
            raise NotAuthentic(f"HASH_{side} is wrong")
        return tuple(connections)
    from .certificates import Presented

    presented = Presented(message.all(Certificate), identity)
    presented.require_signature(message.one(Signature).data, expected, f"SIG_{side}")
    meant = [c for c in connections if c.remote_identity.matches(identity)] or connections
    authorities = dict.fromkeys(c.credentials.authorities for c in meant if c.credentials is not None)
    trusting, complaint = [], NotAuthentic("nobody is trusted here")
    for those in list(authorities)[:MAX_AUTHORITIES]:
        try:
            presented.require_trust(those, when)
        except NotAuthentic as error:
            complaint = error
        else:
            trusting.append(those)
    if not trusting:
        raise complaint
    presented.require_identity()
    return tuple(c for c in connections if c.credentials is not None and c.credentials.authorities in trusting)
