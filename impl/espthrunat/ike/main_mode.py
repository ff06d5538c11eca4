"""Main Mode, the initiator's side (RFC 2409, 5.1 and 5.4; NAT discovery as in the draft, 4.1).

initiator                                              responder
1  HDR, SA, VID                            -->
                                           <--         2  HDR, SA, VID, NAT-D
3  HDR, KE, Ni, [CERTREQ,] VID, NAT-D      -->
                                           <--         4  HDR, KE, Nr, [CERTREQ]
5  HDR*, IDii, HASH_I or CERT, SIG_I       -->
                                           <--         6  HDR*, IDir, HASH_R or CERT, SIG_R
"""

from __future__ import annotations

from ..wire.errors import ParseError
from ..wire.isakmp import Chain, ExchangeType, Header
from ..wire.payloads import KeyExchange, Nonce, Payload
from . import authentication
from .authentication import Phase1Secrets, Transcript
from .context import NONCE_OCTETS
from .events import Phase1Keys
from .groups import PrivateKey
from .ike_sa import NotAuthentic, open_clear
from .nat_traversal import NatStatus
from .phase1 import DPD, State, agree, is_first_contact, take_keys, tell_nat
from .phase1_initiator import Initiator


class MainModeInitiator(Initiator):
    """One Main Mode that was begun here."""

    exchange = ExchangeType.MAIN
    _private: PrivateKey
    _nonce: bytes
    _said: Transcript
    _secrets: Phase1Secrets
    _iv: bytes

    def _begin(self, now: float) -> None:
        message = self.sa.clear(ExchangeType.MAIN, [self._offer, DPD, *self._context.method.announce()])
        self._send(message, State.WAITS_FOR_2, now)

    def _take(self, header: Header, datagram: bytes, now: float) -> None:
        if self.state == State.WAITS_FOR_2:
            self._on_message_2(header, open_clear(header, datagram), now)
        elif self.state == State.WAITS_FOR_4:
            self._on_message_4(open_clear(header, datagram), now)
        else:
            self._on_message_6(header, datagram, now)

    def _on_message_2(self, header: Header, message: Chain, now: float) -> None:
        suite, _ = choice = self._choice(header, message)
        sa, method = self.sa, self._context.method
        self._accept(header, message, choice, method.detect(message, sa.path, initiator=True), now)
        tell_nat(self._context, sa)
        if sa.nat == NatStatus.DETECTED and self._connection.local_identity.is_address:
            # the draft, 4.1: an address that a NAT changes proves nothing, so it should not be sent
            self._fail("a NAT changes addresses here: local.identity must be a name, not an address", now)
            return
        self._private = self._context.entropy.private_key(suite.group)
        self._nonce = self._context.entropy.octets(NONCE_OCTETS)
        payloads: list[Payload] = [KeyExchange(self._private.public), Nonce(self._nonce)]
        payloads += authentication.requests([self._connection])
        if sa.peer_knows_method:
            payloads += [*method.announce(), *method.discovery(sa.path, initiator=True)]
        self._send(sa.clear(ExchangeType.MAIN, payloads), State.WAITS_FOR_4, now)

    def _on_message_4(self, message: Chain, now: float) -> None:
        self._context.method.refuse_misplaced(message)
        sa, suite = self.sa, self.sa.suite
        assert suite is not None
        cookies = (sa.initiator_cookie, sa.responder_cookie)
        said = agree(message, self._private, self._nonce, self._offer.body(), cookies, initiator=True)
        secrets = authentication.derive(suite, authentication.key_of(self._connection), said)
        self._said, self._secrets = said, secrets
        take_keys(sa, secrets)
        self._context.emit(Phase1Keys(sa.initiator_cookie, sa.cipher_key))
        own = authentication.own_identity(self._connection)
        digest = authentication.proof(suite, secrets, said, own.body(), initiator=True)
        payloads: list[Payload] = [own, *authentication.own_proof(self._connection, digest)]
        sealed, self._iv = sa.seal(ExchangeType.MAIN, 0, authentication.first_iv(suite, said), payloads)
        self._send(sealed, State.WAITS_FOR_6, now)

    def _on_message_6(self, header: Header, datagram: bytes, now: float) -> None:
        sa = self.sa
        assert sa.suite is not None
        try:
            message, _, last_block = sa.open(header, datagram, self._iv)
        except (NotAuthentic, ParseError) as error:
            self._complain(error)
            raise
        identity = self._identify(message, sa.suite, self._secrets, self._said)
        self._context.method.refuse_misplaced(message)
        if not self._known(identity, now):
            return
        sa.last_block = last_block
        sa.initial_contact = is_first_contact(message)
        self._establish(identity, now)
        self._done(self, now)
