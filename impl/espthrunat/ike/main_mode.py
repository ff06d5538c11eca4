"""Main Mode, the initiator's side (RFC 2409, 5.4; NAT discovery as in the draft, 4.1).

initiator                                   responder
1  HDR, SA, VID                 -->
                                <--         2  HDR, SA, VID, NAT-D
3  HDR, KE, Ni, VID, NAT-D      -->
                                <--         4  HDR, KE, Nr
5  HDR*, IDii, HASH_I           -->
                                <--         6  HDR*, IDir, HASH_R
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable

from ..messages import Path
from ..wire.errors import ParseError
from ..wire.isakmp import Chain, ExchangeType, Header
from ..wire.payloads import Hash, Identification, KeyExchange, Nonce, NotifyType, Payload, SecurityAssociation
from . import authentication
from .authentication import Phase1Secrets, Transcript
from .context import NONCE_OCTETS, Context
from .events import AuthenticationFailed, IkeSaEstablished, NatDetected, Phase1Keys
from .groups import BadPublicValue, PrivateKey
from .identity import Identity
from .ike_offers import choose_ike, offer_ike
from .ike_sa import IkeSa, NotAuthentic, Refused, open_clear
from .nat_traversal import NatStatus
from .policy import Connection
from .retransmission import Retransmitter


class State(enum.Enum):
    """What the initiator waits for."""

    WAITS_FOR_2 = 2
    WAITS_FOR_4 = 4
    WAITS_FOR_6 = 6
    ESTABLISHED = 7
    FAILED = 0


class MainModeInitiator:
    """One Main Mode that was begun here."""

    def __init__(
        self,
        context: Context,
        connection: Connection,
        path: Path,
        now: float,
        *,
        done: Callable[[MainModeInitiator, float], None],
        failed: Callable[[MainModeInitiator, str, float], None],
    ) -> None:
        self.sa = IkeSa(True, path, context.cookie(), bytes(8), connection, now)
        self.state = State.WAITS_FOR_2
        self._context = context
        self._connection = connection
        self._done = done
        self._failed = failed
        self._hint = ""
        self._complaint = ""
        self._seen: set[bytes] = set()
        self._retransmitter = Retransmitter(context, connection.retransmission, self._give_up)
        self._private: PrivateKey | None = None
        self._nonce = b""
        self._said: Transcript | None = None
        self._secrets: Phase1Secrets | None = None
        self._iv = b""
        self._offer = offer_ike(connection.ike_suites, connection.ike_lifetime)
        message = self.sa.clear(ExchangeType.MAIN, [self._offer, *context.method.announce()])
        self._retransmitter.send(message, path, now)

    def receive(self, header: Header, datagram: bytes, now: float) -> None:
        """Take a message of this exchange; ParseError, NotAuthentic and Refused leave the state as it was."""
        digest = hashlib.sha256(datagram).digest()
        if digest in self._seen:
            return  # answered already; our own timer repeats the answer if it was lost
        if self.state == State.WAITS_FOR_2:
            self._on_message_2(header, open_clear(header, datagram), now)
        elif self.state == State.WAITS_FOR_4:
            self._on_message_4(open_clear(header, datagram), now)
        elif self.state == State.WAITS_FOR_6:
            self._on_message_6(header, datagram, now)
        else:
            raise Refused("Main Mode has ended")
        self._seen.add(digest)

    def hint(self, notify_type: int) -> None:
        """The peer, or somebody who pretends to be it, says that the exchange has failed."""
        try:
            self._hint = NotifyType(notify_type).label
        except ValueError:
            self._hint = f"notification {notify_type}"
        self._retransmitter.hurry()

    def abandon(self) -> None:
        """Stop without a word."""
        self.state = State.FAILED
        self._retransmitter.stop()

    def _on_message_2(self, header: Header, message: Chain, now: float) -> None:
        if not any(header.responder_cookie):
            raise ParseError("header", 8, "the responder cookie is zero")
        answer = message.one(SecurityAssociation)
        chosen = choose_ike(answer, self._connection.ike_suites)
        if chosen is None or sum(len(p.transforms) for p in answer.proposals) != 1:
            raise Refused("the peer's choice is none of what was offered")
        suite, seconds, _ = chosen
        method = self._context.method
        nat = method.detect(message, self.sa.path, initiator=True)
        connection = self._connection
        self.sa.responder_cookie = header.responder_cookie
        self.sa.suite = suite
        self.sa.nat = nat
        self.sa.expires = now + min(connection.ike_lifetime, seconds or connection.ike_lifetime)
        self._context.emit(
            NatDetected(connection.name, self.sa.path, nat == NatStatus.DETECTED, self.sa.peer_knows_method)
        )
        if nat == NatStatus.DETECTED and connection.local_identity.is_address:
            # the draft, 4.1: an address that a NAT changes proves nothing, so it should not be sent
            self._fail("a NAT changes addresses here: local.identity must be a name, not an address", now)
            return
        self._private = self._context.entropy.private_key(suite.group)
        self._nonce = self._context.entropy.octets(NONCE_OCTETS)
        payloads: list[Payload] = [KeyExchange(self._private.public), Nonce(self._nonce)]
        if self.sa.peer_knows_method:
            payloads += [*method.announce(), *method.discovery(self.sa.path, initiator=True)]
        self.state = State.WAITS_FOR_4
        self._retransmitter.send(self.sa.clear(ExchangeType.MAIN, payloads), self.sa.path, now)

    def _on_message_4(self, message: Chain, now: float) -> None:
        self._context.method.refuse_misplaced(message)
        assert self._private is not None
        assert self.sa.suite is not None
        peer = message.one(KeyExchange).data
        try:
            shared = self._private.exchange(peer)
        except BadPublicValue as error:
            raise ParseError("KE", 0, str(error)) from error
        self._said = Transcript(
            self.sa.initiator_cookie,
            self.sa.responder_cookie,
            self._offer.body(),
            self._private.public,
            peer,
            self._nonce,
            message.one(Nonce).data,
            shared,
        )
        assert self._connection.secret is not None
        secrets = authentication.derive(self.sa.suite, self._connection.secret, self._said)
        self._secrets = secrets
        self.sa.keys, self.sa.cipher_key = secrets.keys, secrets.cipher_key
        self._context.emit(Phase1Keys(self.sa.initiator_cookie, self.sa.cipher_key))
        own = self._connection.local_identity.to_payload()
        proof = authentication.proof(self.sa.suite, secrets, self._said, own.body(), initiator=True)
        iv = authentication.first_iv(self.sa.suite, self._said)
        sealed, self._iv = self.sa.seal(ExchangeType.MAIN, 0, iv, [own, Hash(proof)])
        self.state = State.WAITS_FOR_6
        self._retransmitter.send(sealed, self.sa.path, now)

    def _on_message_6(self, header: Header, datagram: bytes, now: float) -> None:
        assert self._said is not None
        assert self._secrets is not None
        assert self.sa.suite is not None
        try:
            message, _, last_block = self.sa.open(header, datagram, self._iv)
            identification = message.one(Identification)
            body = message.bodies(Identification)[0]
            expected = authentication.proof(self.sa.suite, self._secrets, self._said, body, initiator=False)
            if not hmac.compare_digest(message.one(Hash).data, expected):
                raise NotAuthentic("HASH_R is wrong")
        except (NotAuthentic, ParseError) as error:
            self._complaint = f"an answer to message 5 was not authentic: {error}"
            raise
        self._context.method.refuse_misplaced(message)
        identity = Identity.from_payload(identification)
        if not self._connection.remote_identity.matches(identity):
            wanted = self._connection.remote_identity
            self._fail(f"the peer proved to be {identity.text}, the connection wants {wanted}", now, authentic=True)
            return
        self.sa.identity = identity
        self.sa.last_block = last_block
        self.sa.established = True
        self.state = State.ESTABLISHED
        self._retransmitter.stop()
        self._context.emit(
            IkeSaEstablished(
                self._connection.name,
                self.sa.path,
                identity.text,
                self.sa.suite.name,
                initiator=True,
                seconds=now - self.sa.started,
            )
        )
        self._done(self, now)

    def _give_up(self, now: float) -> None:
        number = {State.WAITS_FOR_2: 1, State.WAITS_FOR_4: 3, State.WAITS_FOR_6: 5}[self.state]
        path = self.sa.path
        reason = f"no valid answer to Main Mode message {number} from {path.remote}:{path.remote_port}"
        reason += f" after {self._retransmitter.sent} tries"
        if self._hint:
            reason += f"; the peer reports {self._hint} (not authenticated)"
        if self._complaint:
            reason += f"; {self._complaint}"
        if self.state == State.WAITS_FOR_6:
            reason += "; most likely the pre-shared keys differ"
        self._fail(reason, now, authentic=self.state == State.WAITS_FOR_6)

    def _fail(self, reason: str, now: float, *, authentic: bool = False) -> None:
        self.abandon()
        if authentic:
            self._context.emit(AuthenticationFailed(self._connection.name, self.sa.path, reason))
        self._failed(self, reason, now)
