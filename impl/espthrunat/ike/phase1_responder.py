"""The responder's side of phase 1, as far as Main Mode and Aggressive Mode are alike."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from ..messages import Path
from ..wire.errors import ParseError
from ..wire.isakmp import Chain, ExchangeType, Header, encode_message, encode_payloads
from ..wire.payloads import Notification, NotifyType, Payload, SecurityAssociation
from .context import Context
from .events import AuthenticationFailed, ExchangeFailed, Phase1Keys
from .identity import Identity
from .ike_offers import choose_ike
from .ike_sa import IkeSa, Refused, open_clear
from .nat_traversal import NatStatus
from .phase1 import (
    DPD,
    MAX_WRONG_PROOFS,
    MODES,
    State,
    establish,
    in_fragments,
    knows_dpd,
    tell_nat,
    warn_of_addresses,
)
from .policy import Authentication, Connection, Exchange

HALF_OPEN_SECONDS = 60.0
MAX_REPEATS = 16  # of one answer: whoever asks more often wants something else


class Responder(ABC):
    """One phase 1 that a peer has begun. Making it answers message 1; Refused means that nothing was kept."""

    exchange: ClassVar[ExchangeType]
    policy: ClassVar[Exchange]

    def __init__(
        self,
        context: Context,
        connections: Sequence[Connection],
        header: Header,
        datagram: bytes,
        path: Path,
        now: float,
        *,
        done: Callable[[Responder, float], None],
        failed: Callable[[Responder, str, float], None],
    ) -> None:
        self._context = context
        self._done = done
        self._failed = failed
        self._replies: dict[bytes, tuple[bytes, int]] = {}  # and how often each may go out again
        self._octets = 0  # of our newest message
        self._wrong_proofs = 0
        message = open_clear(header, datagram)
        offered = message.one(SecurityAssociation)
        context.method.refuse_misplaced(message)
        self._offered_body = message.bodies(SecurityAssociation)[0]
        self._peer_announced = context.method.announced(message)
        possible = self._possible(connections, header, message, path)
        self._peers, answer, self.sa = self._choose(possible, offered, header, path, now)
        self.sa.peer_knows_dpd = knows_dpd(message)
        self.state, payloads = self._answer(message, answer)
        payloads.append(DPD)
        if self._peer_announced:
            payloads += [*context.method.announce(), *context.method.discovery(path, initiator=False)]
        context.timers.set(self, now + HALF_OPEN_SECONDS, self._expire)
        self._reply(datagram, self.sa.clear(self.exchange, payloads))

    @abstractmethod
    def _answer(self, message: Chain, chosen: SecurityAssociation) -> tuple[State, list[Payload]]:
        """The answer to message 1 without vendor IDs and NAT discovery. May raise ParseError and Refused."""

    @abstractmethod
    def _take(self, header: Header, datagram: bytes, now: float) -> None:
        """Take the message that `state` waits for."""

    def receive(self, header: Header, datagram: bytes, now: float) -> None:
        """Take a message of this exchange; ParseError, NotAuthentic and Refused leave the state as it was."""
        digest = hashlib.sha256(datagram).digest()
        reply, left = self._replies.get(digest, (None, 0))
        if reply is not None:
            if left:
                self._replies[digest] = (reply, left - 1)
                if reply:
                    self._context.send(reply, self.sa.path)
            return
        if header.exchange != self.exchange:
            raise Refused(f"a message of another exchange than {MODES[self.exchange]}")
        if not any(header.responder_cookie):
            raise Refused("another message 1 with the cookie of an exchange under way")
        if self.state in (State.ESTABLISHED, State.FAILED):
            raise Refused(f"{MODES[self.exchange]} has ended")
        self._take(header, datagram, now)

    def abandon(self) -> None:
        """Stop without a word."""
        if self.state != State.ESTABLISHED:
            self.state = State.FAILED
        self._context.timers.cancel(self)

    def _possible(
        self, connections: Sequence[Connection], header: Header, message: Chain, path: Path
    ) -> Sequence[Connection]:
        """The connections that the peer may mean, as far as message 1 shows it."""
        near = [c for c in connections if c.may_come_from(path.remote)]
        possible = [c for c in near if c.exchange == self.policy]
        if not near:
            self._refuse(header, path, f"no connection is for a peer at {path.remote}")
        if not possible:
            self._refuse(header, path, f"no connection for a peer at {path.remote} allows it")
        return possible

    def _choose(
        self, possible: Sequence[Connection], offered: SecurityAssociation, header: Header, path: Path, now: float
    ) -> tuple[tuple[Connection, ...], SecurityAssociation, IkeSa]:
        # A stranger may offer hundreds of transforms, and connections are many but mostly want the same.
        distinct: dict[object, Connection] = {}
        for connection in possible:
            distinct.setdefault((connection.ike_suites, connection.authentication), connection)
        for connection in distinct.values():
            chosen = choose_ike(offered, connection.ike_suites, connection.authentication)
            if chosen is None:
                continue
            suite, seconds, answer = chosen
            sa = IkeSa(False, path, header.initiator_cookie, self._context.cookie(), connection, now, suite=suite)
            sa.expires = now + min(connection.ike_lifetime, seconds or connection.ike_lifetime)
            method = connection.authentication
            return tuple(c for c in possible if suite in c.ike_suites and c.authentication == method), answer, sa
        reason = "it offers no IKE suite that is allowed here"
        if any(choose_ike(offered, c.ike_suites, method) for c in distinct.values() for method in Authentication):
            allowed = " or ".join(sorted({c.authentication for c in possible}))
            reason = f"it offers no authentication method that is allowed here ({allowed})"
        self._refuse(header, path, reason)
        raise AssertionError

    def _refuse(self, header: Header, path: Path, reason: str) -> None:
        self._context.send(refuse(header, NotifyType.NO_PROPOSAL_CHOSEN), path)
        self._context.emit(ExchangeFailed("", path, f"{MODES[self.exchange]} refused: {reason}"))
        raise Refused(reason)

    def _discover(self, message: Chain) -> NatStatus:
        """What the initiator's NAT discovery shows, in the message that has it. ParseError if it is wrong."""
        method = self._context.method
        if not self._peer_announced:
            method.refuse_misplaced(message)
            return NatStatus.UNKNOWN
        nat = method.detect(message, self.sa.path, initiator=False)
        if nat == NatStatus.UNKNOWN:
            raise ParseError("NAT_DISCOVERY", 0, "missing, though the peer has announced the method")
        return nat

    def _require_tries_left(self) -> None:
        if self._wrong_proofs >= MAX_WRONG_PROOFS:
            raise Refused("too many wrong proofs in one exchange")

    def _establish(self, identity: Identity, candidates: tuple[Connection, ...], now: float, tries: int = 1) -> None:
        """The SA has its keys, and the peer has proven who it is."""
        sa, context = self.sa, self._context
        sa.connection, sa.candidates = candidates[0], candidates
        self.state = State.ESTABLISHED
        context.timers.cancel(self)
        context.emit(Phase1Keys(sa.initiator_cookie, sa.cipher_key))
        tell_nat(context, sa)
        warn_of_addresses(context, sa, identity)
        establish(context, sa, identity, now, tries)

    def _deny(self, reason: str, notify: NotifyType, datagram: bytes) -> None:
        """Say why, once a datagram; keep waiting, since the message may have been damaged or forged."""
        self._wrong_proofs += 1
        sa = self.sa
        self._context.emit(AuthenticationFailed(sa.connection.name, sa.path, reason))
        reply = refuse(sa.header(self.exchange), notify)
        if self._wrong_proofs == 1:
            self._reply(datagram, reply)
        else:
            self._context.send(reply, sa.path)

    def _reply(self, received: bytes, reply: bytes) -> None:
        """Answer a message, now and when it comes again; with nothing, take note of it."""
        self._replies[hashlib.sha256(received).digest()] = (reply, MAX_REPEATS)
        self._octets = len(reply)
        if reply:
            self._context.send(reply, self.sa.path)

    def _expire(self, now: float) -> None:
        number = self.state.value
        reason = f"no valid {MODES[self.exchange]} message {number} within {HALF_OPEN_SECONDS:.0f} s"
        if fragments := in_fragments(self._octets):
            reason += f" of message {number - 1}{fragments}"
        self.state = State.FAILED
        self._failed(self, reason, now)


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
