"""Main Mode, the responder's side (RFC 2409, 5.4; NAT discovery as in the draft, 4.1).

Behind a NAT the peer's address says nothing, so the pre-shared key is chosen when message 5 shows which one decrypts
it, among those of the connections that may come from that address.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable, Sequence

from ..messages import Path
from ..wire.errors import ParseError
from ..wire.isakmp import Chain, ExchangeType, Header, encode_message, encode_payloads
from ..wire.payloads import (
    Hash,
    Identification,
    KeyExchange,
    Nonce,
    Notification,
    NotifyType,
    Payload,
    SecurityAssociation,
)
from . import authentication
from .authentication import Phase1Secrets, Transcript
from .context import NONCE_OCTETS, Context
from .events import AuthenticationFailed, ExchangeFailed, IkeSaEstablished, NatDetected, Phase1Keys
from .groups import BadPublicValue, PrivateKey
from .identity import Identity
from .ike_offers import choose_ike
from .ike_sa import IkeSa, NotAuthentic, Refused, open_clear
from .nat_traversal import NatStatus
from .policy import Connection, Secret

HALF_OPEN_SECONDS = 60.0
MAX_WRONG_PROOFS = 8  # message 5 costs work for every candidate key


class State(enum.Enum):
    """What the responder waits for."""

    WAITS_FOR_3 = 3
    WAITS_FOR_5 = 5
    ESTABLISHED = 6
    FAILED = 0


class MainModeResponder:
    """One Main Mode that a peer has begun. Creating it answers message 1; Refused means that nothing was kept."""

    def __init__(
        self,
        context: Context,
        connections: Sequence[Connection],
        header: Header,
        datagram: bytes,
        path: Path,
        now: float,
        *,
        done: Callable[[MainModeResponder, float], None],
        failed: Callable[[MainModeResponder, str, float], None],
    ) -> None:
        self._context = context
        self._done = done
        self._failed = failed
        self._replies: dict[bytes, bytes] = {}
        self._private: PrivateKey | None = None
        self._said: Transcript | None = None
        self._wrong_proofs = 0
        self._why = ""
        message = open_clear(header, datagram)
        offered = message.one(SecurityAssociation)
        context.method.refuse_misplaced(message)
        self._offered_body = message.bodies(SecurityAssociation)[0]
        self._connections, answer, sa = self._choose(connections, offered, header, path, now)
        self.sa = sa
        self._peer_announced = context.method.announced(message)
        payloads: list[Payload] = [answer]
        if self._peer_announced:
            payloads += [*context.method.announce(), *context.method.discovery(path, initiator=False)]
        self.state = State.WAITS_FOR_3
        context.timers.set(self, now + HALF_OPEN_SECONDS, self._expire)
        self._reply(datagram, sa.clear(ExchangeType.MAIN, payloads), path)

    def _choose(
        self,
        connections: Sequence[Connection],
        offered: SecurityAssociation,
        header: Header,
        path: Path,
        now: float,
    ) -> tuple[tuple[Connection, ...], SecurityAssociation, IkeSa]:
        possible = [c for c in connections if c.may_come_from(path.remote)]
        reason = f"no connection is for a peer at {path.remote}"
        for connection in possible:
            chosen = choose_ike(offered, connection.ike_suites)
            if chosen is None:
                reason = "it offers no IKE suite that is allowed here"
                continue
            suite, seconds, answer = chosen
            sa = IkeSa(False, path, header.initiator_cookie, self._context.cookie(), connection, now, suite=suite)
            sa.expires = now + min(connection.ike_lifetime, seconds or connection.ike_lifetime)
            return tuple(c for c in possible if suite in c.ike_suites), answer, sa
        refusal = refuse(header, NotifyType.NO_PROPOSAL_CHOSEN)
        self._context.send(refusal, path)
        self._context.emit(ExchangeFailed("", path, f"Main Mode refused: {reason}"))
        raise Refused(reason)

    def receive(self, header: Header, datagram: bytes, now: float) -> None:
        """Take a message of this exchange; ParseError, NotAuthentic and Refused leave the state as it was."""
        cached = self._replies.get(hashlib.sha256(datagram).digest())
        if cached is not None:
            self._context.send(cached, self.sa.path)
            return
        if not any(header.responder_cookie):
            raise Refused("another message 1 with the cookie of an exchange under way")
        if self.state == State.WAITS_FOR_3:
            self._on_message_3(open_clear(header, datagram), datagram)
        elif self.state == State.WAITS_FOR_5:
            self._on_message_5(header, datagram, now)
        else:
            raise Refused("Main Mode has ended")

    def abandon(self) -> None:
        """Stop without a word."""
        if self.state != State.ESTABLISHED:
            self.state = State.FAILED
        self._context.timers.cancel(self)

    def _on_message_3(self, message: Chain, datagram: bytes) -> None:
        sa, method = self.sa, self._context.method
        assert sa.suite is not None
        if self._peer_announced:
            sa.nat = method.detect(message, sa.path, initiator=False)
            if sa.nat == NatStatus.UNKNOWN:
                raise ParseError("NAT_DISCOVERY", 0, "missing, though the peer has announced the method")
        else:
            method.refuse_misplaced(message)
        peer = message.one(KeyExchange).data
        peer_nonce = message.one(Nonce).data
        private = self._context.entropy.private_key(sa.suite.group)
        nonce = self._context.entropy.octets(NONCE_OCTETS)
        try:
            shared = private.exchange(peer)
        except BadPublicValue as error:
            raise ParseError("KE", 0, str(error)) from error
        self._private = private
        self._said = Transcript(
            sa.initiator_cookie,
            sa.responder_cookie,
            self._offered_body,
            peer,
            private.public,
            peer_nonce,
            nonce,
            shared,
        )
        self.state = State.WAITS_FOR_5
        reply = sa.clear(ExchangeType.MAIN, [KeyExchange(private.public), Nonce(nonce)])
        self._reply(datagram, reply, sa.path)

    def _on_message_5(self, header: Header, datagram: bytes, now: float) -> None:
        sa, said = self.sa, self._said
        assert sa.suite is not None
        assert said is not None
        if not header.encrypted:
            raise Refused("message 5 is not encrypted")
        if self._wrong_proofs >= MAX_WRONG_PROOFS:
            raise Refused("too many wrong proofs in one exchange")
        opened = self._try_secrets(header, datagram, said)
        if opened is None:
            self._deny(f"message 5 {self._why}", NotifyType.AUTHENTICATION_FAILED, datagram)
            return
        secrets, secret, message, iv = opened
        self._context.method.refuse_misplaced(message)
        identity = Identity.from_payload(message.one(Identification))
        candidates = tuple(c for c in self._connections if c.secret == secret and c.remote_identity.matches(identity))
        if not candidates:
            reason = f"the identity {identity.text} belongs to no connection with the key that it used"
            self._deny(reason, NotifyType.INVALID_ID_INFORMATION, datagram)
            return
        sa.connection, sa.candidates = candidates[0], candidates
        sa.identity = identity
        sa.keys, sa.cipher_key = secrets.keys, secrets.cipher_key
        own = sa.connection.local_identity.to_payload()
        proof = authentication.proof(sa.suite, secrets, said, own.body(), initiator=False)
        sealed, sa.last_block = sa.seal(ExchangeType.MAIN, 0, iv, [own, Hash(proof)])
        sa.established = True
        self.state = State.ESTABLISHED
        self._context.timers.cancel(self)
        self._private = self._said = None
        emit = self._context.emit
        emit(Phase1Keys(sa.initiator_cookie, sa.cipher_key))
        emit(NatDetected(sa.connection.name, sa.path, sa.nat == NatStatus.DETECTED, sa.peer_knows_method))
        emit(
            IkeSaEstablished(
                sa.connection.name,
                sa.path,
                identity.text,
                sa.suite.name,
                initiator=False,
                seconds=now - sa.started,
            )
        )
        self._reply(datagram, sealed, sa.path)
        self._done(self, now)

    def _try_secrets(
        self, header: Header, datagram: bytes, said: Transcript
    ) -> tuple[Phase1Secrets, Secret, Chain, bytes] | None:
        """The first candidate key under which message 5 is authentic; the tries are as many as there are keys."""
        sa = self.sa
        assert sa.suite is not None
        distinct = list(dict.fromkeys(c.secret for c in self._connections if c.secret is not None))
        self._why = f"decrypts with none of {len(distinct)} pre-shared keys: the keys differ"
        iv = authentication.first_iv(sa.suite, said)
        for secret in distinct:
            secrets = authentication.derive(sa.suite, secret, said)
            sa.cipher_key = secrets.cipher_key
            try:
                message, _, next_iv = sa.open(header, datagram, iv)
                message.one(Identification)
                proof = message.one(Hash).data
            except (NotAuthentic, ParseError):
                continue
            body = message.bodies(Identification)[0]
            expected = authentication.proof(sa.suite, secrets, said, body, initiator=True)
            if hmac.compare_digest(proof, expected):
                return secrets, secret, message, next_iv
            self._why = "decrypts, but HASH_I is wrong"
        sa.cipher_key = b""
        return None

    def _deny(self, reason: str, notify: NotifyType, datagram: bytes) -> None:
        """Say why, once a datagram; keep waiting, since the message may have been damaged or forged."""
        self._wrong_proofs += 1
        sa = self.sa
        self._context.emit(AuthenticationFailed(sa.connection.name, sa.path, reason))
        reply = refuse(sa.header(ExchangeType.MAIN), notify)
        if self._wrong_proofs == 1:
            self._reply(datagram, reply, sa.path)
        else:
            self._context.send(reply, sa.path)

    def _reply(self, received: bytes, reply: bytes, path: Path) -> None:
        self._replies[hashlib.sha256(received).digest()] = reply
        self._context.send(reply, path)

    def _expire(self, now: float) -> None:
        waited = {State.WAITS_FOR_3: 3, State.WAITS_FOR_5: 5}[self.state]
        self.state = State.FAILED
        self._failed(self, f"no valid Main Mode message {waited} within {HALF_OPEN_SECONDS:.0f} s", now)


def refuse(header: Header, notify: NotifyType) -> bytes:
    """An unprotected notification about the exchange of `header` (RFC 2408, 4.8); the peer may not trust it."""
    spi = header.initiator_cookie + header.responder_cookie
    notification = Notification(notify, spi=spi)
    about = Header(
        header.initiator_cookie,
        header.responder_cookie,
        notification.type,
        ExchangeType.INFORMATIONAL,
        0,
        0,
    )
    return encode_message(about, encode_payloads([notification]))
