"""The initiator's side of phase 1, as far as Main Mode and Aggressive Mode are alike."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from ..messages import Path
from ..wire.errors import ParseError
from ..wire.isakmp import Chain, ExchangeType, Header
from ..wire.payloads import Identification, NotifyType, SecurityAssociation
from . import authentication
from .authentication import Phase1Secrets, Transcript
from .context import Context
from .events import AuthenticationFailed
from .identity import Identity
from .ike_offers import choose_ike, offer_ike
from .ike_sa import IkeSa, NotAuthentic, Refused
from .nat_traversal import NatStatus
from .phase1 import MODES, State, establish, in_fragments, knows_dpd
from .policy import Authentication, Connection, IkeSuite
from .retransmission import Retransmitter


class Initiator(ABC):
    """One phase 1 that was begun here; making it sends message 1."""

    exchange: ClassVar[ExchangeType]

    def __init__(
        self,
        context: Context,
        connection: Connection,
        path: Path,
        now: float,
        *,
        done: Callable[[Initiator, float], None],
        failed: Callable[[Initiator, str, float], None],
    ) -> None:
        self.sa = IkeSa(True, path, context.cookie(), bytes(8), connection, now)
        self.state = State.WAITS_FOR_2
        self._context = context
        self._connection = connection
        self._done = done
        self._failed = failed
        self._hint = ""
        self._complaint = ""
        self._octets = 0  # of the message that waits for an answer
        self._seen: set[bytes] = set()
        self._retransmitter = Retransmitter(context, connection.retransmission, self._give_up)
        self._offer = offer_ike(connection.ike_suites, connection.authentication, connection.ike_lifetime)
        self._begin(now)

    @abstractmethod
    def _begin(self, now: float) -> None:
        """Send message 1."""

    @abstractmethod
    def _take(self, header: Header, datagram: bytes, now: float) -> None:
        """Take the message that `state` waits for."""

    def receive(self, header: Header, datagram: bytes, now: float) -> None:
        """Take a message of this exchange; ParseError, NotAuthentic and Refused leave the state as it was."""
        digest = hashlib.sha256(datagram).digest()
        if digest in self._seen:
            return  # answered already; our own timer repeats the answer if it was lost
        if header.exchange != self.exchange:
            raise Refused(f"a message of another exchange than {MODES[self.exchange]}")
        if self.state in (State.ESTABLISHED, State.FAILED):
            raise Refused(f"{MODES[self.exchange]} has ended")
        self._take(header, datagram, now)
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
        self._context.timers.cancel(self)

    def _send(self, message: bytes, awaited: State, now: float) -> None:
        self.state = awaited
        self._octets = len(message)
        self._retransmitter.send(message, self.sa.path, now)

    def _choice(self, header: Header, message: Chain) -> tuple[IkeSuite, float]:
        """The suite that the responder has chosen, and the lifetime in seconds. Raises Refused and ParseError."""
        if not any(header.responder_cookie):
            raise ParseError("header", 8, "the responder cookie is zero")
        connection = self._connection
        answer = message.one(SecurityAssociation)
        chosen = choose_ike(answer, connection.ike_suites, connection.authentication)
        if chosen is None or sum(len(p.transforms) for p in answer.proposals) != 1:
            raise Refused("the peer's choice is none of what was offered")
        suite, seconds, _ = chosen
        return suite, min(connection.ike_lifetime, seconds or connection.ike_lifetime)

    def _accept(
        self, header: Header, message: Chain, choice: tuple[IkeSuite, float], nat: NatStatus, now: float
    ) -> None:
        """Message 2 is in order: the SA is what it says."""
        sa = self.sa
        sa.responder_cookie = header.responder_cookie
        sa.suite, seconds = choice
        sa.expires = now + seconds
        sa.nat = nat
        sa.peer_knows_dpd = knows_dpd(message)

    def _identify(self, message: Chain, suite: IkeSuite, secrets: Phase1Secrets, said: Transcript) -> Identity:
        """Who the responder has proven to be. Raises NotAuthentic and ParseError, which are kept as a complaint."""
        try:
            identity = Identity.from_payload(message.one(Identification))
            body = message.bodies(Identification)[0]
            expected = authentication.proof(suite, secrets, said, body, initiator=False)
            when = self._context.wall_clock()
            authentication.check(message, identity, expected, [self._connection], initiator=False, when=when)
        except (NotAuthentic, ParseError) as error:
            self._complain(error)
            raise
        return identity

    def _complain(self, error: Exception) -> None:
        self._complaint = f"an answer to message {self.state.value - 1} was not authentic: {error}"

    def _known(self, identity: Identity, now: float) -> bool:
        """Whether the responder is who it should be; otherwise the exchange has failed."""
        wanted = self._connection.remote_identity
        if not wanted.matches(identity):
            self._fail(f"the peer proved to be {identity.text}, the connection wants {wanted}", now, authentic=True)
        return self.state != State.FAILED

    def _establish(self, identity: Identity, now: float) -> None:
        self.state = State.ESTABLISHED
        self._retransmitter.stop()
        establish(self._context, self.sa, identity, now)

    def _give_up(self, now: float) -> None:
        path = self.sa.path
        reason = f"no valid answer to {MODES[self.exchange]} message {self.state.value - 1}"
        reason += in_fragments(self._octets)
        reason += f" from {path.remote}:{path.remote_port} after {self._retransmitter.sent} tries"
        if self._hint:
            reason += f"; the peer reports {self._hint} (not authenticated)"
        if self._complaint:
            reason += f"; {self._complaint}"
        authentic = self.state == State.WAITS_FOR_6 or bool(self._complaint)
        if authentic and self._connection.authentication == Authentication.PSK:
            reason += "; most likely the pre-shared keys differ"
        self._fail(reason, now, authentic=authentic)

    def _fail(self, reason: str, now: float, *, authentic: bool = False) -> None:
        self.abandon()
        if authentic:
            self._context.emit(AuthenticationFailed(self._connection.name, self.sa.path, reason))
        self._failed(self, reason, now)
