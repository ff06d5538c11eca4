"""Aggressive Mode, the initiator's side (RFC 2409, 5.1 and 5.4; NAT discovery as in the draft, 4.2).

initiator                                              responder
1  HDR, SA, KE, Ni, IDii, [CERTREQ,] VID   -->
                                           <--         2  HDR, SA, KE, Nr, IDir, HASH_R or CERT, SIG_R, VID, NAT-D
3  HDR, HASH_I or CERT, SIG_I, NAT-D       -->

Identities go in the clear, and with pre-shared keys message 2 lets anyone who asks for it guess keys offline.
"""

from __future__ import annotations

from ..wire.isakmp import ExchangeType, Header
from ..wire.payloads import KeyExchange, Nonce, Payload
from . import authentication
from .context import NONCE_OCTETS
from .events import Phase1Keys, Warned
from .groups import PrivateKey
from .ike_offers import require_one_group
from .ike_sa import Refused, open_clear
from .phase1 import DPD, MAX_WRONG_PROOFS, State, agree, in_fragments, take_keys, tell_nat, warn_of_addresses
from .phase1_initiator import Initiator


class AggressiveModeInitiator(Initiator):
    """One Aggressive Mode that was begun here."""

    exchange = ExchangeType.AGGRESSIVE
    _private: PrivateKey
    _nonce: bytes
    _tried = 0  # of answers that were looked at: each costs a Diffie-Hellman exchange
    _sent = 0  # of message 3

    def _begin(self, now: float) -> None:
        connection = self._connection
        try:
            require_one_group(connection.ike_suites)
        except ValueError as error:
            reason = str(error)
            self._context.timers.set(self, now, lambda later: self._fail(reason, later))
            return
        self._private = self._context.entropy.private_key(connection.ike_suites[0].group)
        self._nonce = self._context.entropy.octets(NONCE_OCTETS)
        payloads: list[Payload] = [
            self._offer,
            KeyExchange(self._private.public),
            Nonce(self._nonce),
            authentication.own_identity(connection),
            *authentication.requests([connection]),
            DPD,
            *self._context.method.announce(),
        ]
        self._send(self.sa.clear(ExchangeType.AGGRESSIVE, payloads), State.WAITS_FOR_2, now)

    def _take(self, header: Header, datagram: bytes, now: float) -> None:
        message = open_clear(header, datagram)
        suite, _ = choice = self._choice(header, message)
        if self._tried >= MAX_WRONG_PROOFS:
            raise Refused("too many wrong proofs in one exchange")
        sa, method, connection = self.sa, self._context.method, self._connection
        nat = method.detect(message, sa.path, initiator=True)
        cookies = (sa.initiator_cookie, header.responder_cookie)
        self._tried += 1
        said = agree(message, self._private, self._nonce, self._offer.body(), cookies, initiator=True)
        secrets = authentication.derive(suite, authentication.key_of(connection), said)
        identity = self._identify(message, suite, secrets, said)
        if not self._known(identity, now):
            return
        self._accept(header, message, choice, nat, now)
        take_keys(sa, secrets)
        sa.last_block = authentication.first_iv(suite, said)  # message 3 goes in the clear: no later block there is
        body = authentication.own_identity(connection).body()
        digest = authentication.proof(suite, secrets, said, body, initiator=True)
        payloads = authentication.own_proof(connection, digest)
        if sa.peer_knows_method:
            payloads += method.discovery(sa.path, initiator=True)
        self._context.emit(Phase1Keys(sa.initiator_cookie, sa.cipher_key))
        tell_nat(self._context, sa)
        warn_of_addresses(self._context, sa, identity)
        self._establish(identity, now)
        self._repeat(sa.clear(ExchangeType.AGGRESSIVE, payloads), now)
        self._done(self, now)

    def _repeat(self, message: bytes, now: float) -> None:
        """Send message 3, which nothing answers, until the peer shows by later messages that it has got it."""
        schedule = self._connection.retransmission
        if self.sa.heard:
            return
        if self._sent >= schedule.tries:
            text = f"nothing shows that Aggressive Mode message 3{in_fragments(len(message))} has arrived"
            self._context.emit(Warned(self._connection.name, self.sa.path, f"{text}, after {self._sent} tries"))
            return
        self._sent += 1
        self._context.send(message, self.sa.path)
        due = now + schedule.wait(self._sent)
        self._context.timers.set(self, due, lambda later: self._repeat(message, later))
