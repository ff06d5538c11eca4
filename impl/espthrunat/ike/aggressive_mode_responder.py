"""Aggressive Mode, the responder's side (RFC 2409, 5.1 and 5.4; NAT discovery as in the draft, 4.2).

Message 1 names the peer, so its connection and pre-shared key are found at once, NAT or not.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..messages import Path
from ..wire.isakmp import Chain, ExchangeType, Header
from ..wire.payloads import Identification, KeyExchange, Nonce, NotifyType, Payload, SecurityAssociation
from . import authentication
from .authentication import Phase1Secrets, Transcript
from .context import NONCE_OCTETS
from .identity import Identity
from .ike_offers import offers_one_group
from .ike_sa import NotAuthentic, open_clear
from .phase1 import State, agree, is_first_contact, take_keys
from .phase1_responder import Responder
from .policy import Authentication, Connection, Exchange


class AggressiveModeResponder(Responder):
    """One Aggressive Mode that a peer has begun."""

    exchange = ExchangeType.AGGRESSIVE
    policy = Exchange.AGGRESSIVE
    _identity: Identity
    _identity_body: bytes
    _said: Transcript
    _secrets: Phase1Secrets

    def _possible(
        self, connections: Sequence[Connection], header: Header, message: Chain, path: Path
    ) -> Sequence[Connection]:
        self._identity = Identity.from_payload(message.one(Identification))
        self._identity_body = message.bodies(Identification)[0]
        if not offers_one_group(message.one(SecurityAssociation)):
            self._refuse(header, path, "it offers several groups, of which Aggressive Mode cannot choose")
        possible = super()._possible(connections, header, message, path)
        meant = [c for c in possible if c.remote_identity.matches(self._identity)]
        if not meant:
            self._refuse(header, path, f"the identity {self._identity.text} belongs to no connection")
        return sorted(meant, key=lambda c: not c.remote_identity.exact)

    def _answer(self, message: Chain, chosen: SecurityAssociation) -> tuple[State, list[Payload]]:
        sa, entropy, connection = self.sa, self._context.entropy, self.sa.connection
        assert sa.suite is not None
        key = authentication.key_of(connection)
        self._peers = tuple(c for c in self._peers if authentication.key_of(c) == key)
        private, nonce = entropy.private_key(sa.suite.group), entropy.octets(NONCE_OCTETS)
        cookies = (sa.initiator_cookie, sa.responder_cookie)
        self._said = agree(message, private, nonce, self._offered_body, cookies, initiator=False)
        self._secrets = authentication.derive(sa.suite, key, self._said)
        take_keys(sa, self._secrets)
        own = authentication.own_identity(connection)
        digest = authentication.proof(sa.suite, self._secrets, self._said, own.body(), initiator=False)
        return State.WAITS_FOR_3, [
            chosen,
            KeyExchange(private.public),
            Nonce(nonce),
            own,
            *authentication.own_proof(connection, digest),
            *authentication.requests([connection]),
        ]

    def _take(self, header: Header, datagram: bytes, now: float) -> None:
        sa = self.sa
        assert sa.suite is not None
        self._require_tries_left()
        last_block = authentication.first_iv(sa.suite, self._said)
        try:
            if header.encrypted:  # both are allowed (RFC 2409, 5)
                message, _, last_block = sa.open(header, datagram, last_block)
            else:
                message = open_clear(header, datagram)
            nat = self._discover(message)
            proven = self._check(message)
        except NotAuthentic as error:
            self._deny(f"message 3: {error}", NotifyType.AUTHENTICATION_FAILED, datagram)
            return
        sa.nat = nat
        sa.last_block = last_block
        sa.initial_contact = header.encrypted and is_first_contact(message)
        self._establish(self._identity, proven, now)
        self._reply(datagram, b"")
        self._done(self, now)

    def _check(self, message: Chain) -> tuple[Connection, ...]:
        assert self.sa.suite is not None
        expected = authentication.proof(self.sa.suite, self._secrets, self._said, self._identity_body, initiator=True)
        when = self._context.wall_clock()
        peers = self._peers
        if self.sa.connection.authentication == Authentication.RSA:
            own = self.sa.connection.credentials  # the answer was made with them
            peers = tuple(c for c in peers if c.credentials == own)
        return authentication.check(message, self._identity, expected, peers, initiator=True, when=when)
