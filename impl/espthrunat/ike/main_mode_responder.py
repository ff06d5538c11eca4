"""Main Mode, the responder's side (RFC 2409, 5.1 and 5.4; NAT discovery as in the draft, 4.1).

Behind a NAT the peer's address says nothing, so the pre-shared key is chosen when message 5 shows which one decrypts
it, among those of the connections that may come from that address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..wire.errors import ParseError
from ..wire.isakmp import Chain, ExchangeType, Header
from ..wire.payloads import Identification, KeyExchange, Nonce, NotifyType, Payload, SecurityAssociation
from . import authentication
from .authentication import Phase1Secrets, Transcript
from .context import NONCE_OCTETS
from .identity import Identity
from .ike_sa import NotAuthentic, Refused, open_clear
from .phase1 import State, agree, is_first_contact, take_keys
from .phase1_responder import Responder
from .policy import Authentication, Connection, Exchange, Secret

MAX_KEYS = 64  # candidate pre-shared keys that one message 5 may cost


@dataclass(frozen=True, slots=True)
class _Opened:
    """A message 5 that was authentic, and the connections whose key or authorities say so."""

    secrets: Phase1Secrets
    message: Chain
    next_iv: bytes
    identity: Identity
    connections: tuple[Connection, ...]


class MainModeResponder(Responder):
    """One Main Mode that a peer has begun."""

    exchange = ExchangeType.MAIN
    policy = Exchange.MAIN
    _said: Transcript | None = None

    def _answer(self, message: Chain, chosen: SecurityAssociation) -> tuple[State, list[Payload]]:
        return State.WAITS_FOR_3, [chosen]

    def _take(self, header: Header, datagram: bytes, now: float) -> None:
        if self.state == State.WAITS_FOR_3:
            self._on_message_3(open_clear(header, datagram), datagram)
        else:
            self._on_message_5(header, datagram, now)

    def _on_message_3(self, message: Chain, datagram: bytes) -> None:
        sa, entropy = self.sa, self._context.entropy
        assert sa.suite is not None
        sa.nat = self._discover(message)
        private, nonce = entropy.private_key(sa.suite.group), entropy.octets(NONCE_OCTETS)
        cookies = (sa.initiator_cookie, sa.responder_cookie)
        self._said = agree(message, private, nonce, self._offered_body, cookies, initiator=False)
        self.state = State.WAITS_FOR_5
        payloads: list[Payload] = [KeyExchange(private.public), Nonce(nonce), *authentication.requests(self._peers)]
        self._reply(datagram, sa.clear(ExchangeType.MAIN, payloads))

    def _on_message_5(self, header: Header, datagram: bytes, now: float) -> None:
        sa, said = self.sa, self._said
        assert sa.suite is not None
        assert said is not None
        if not header.encrypted:
            raise Refused("message 5 is not encrypted")
        self._require_tries_left()
        candidates = self._candidates()
        opened, why = self._try(candidates, header, datagram, said)
        if opened is None:
            self._deny(f"message 5 {why}", NotifyType.AUTHENTICATION_FAILED, datagram)
            return
        self._context.method.refuse_misplaced(opened.message)
        fitting = tuple(c for c in opened.connections if c.remote_identity.matches(opened.identity))
        if not fitting:
            what = "key that it used" if candidates[0] is not None else "authority of its certificate"
            reason = f"the identity {opened.identity.text} belongs to no connection with the {what}"
            self._deny(reason, NotifyType.INVALID_ID_INFORMATION, datagram)
            return
        take_keys(sa, opened.secrets)
        own = authentication.own_identity(fitting[0])
        digest = authentication.proof(sa.suite, opened.secrets, said, own.body(), initiator=False)
        payloads: list[Payload] = [own, *authentication.own_proof(fitting[0], digest)]
        sealed, sa.last_block = sa.seal(ExchangeType.MAIN, 0, opened.next_iv, payloads)
        sa.initial_contact = is_first_contact(opened.message)
        self._said = None
        self._establish(opened.identity, fitting, now, tries=min(len(candidates), MAX_KEYS))
        self._reply(datagram, sealed)
        self._done(self, now)

    def _candidates(self) -> Sequence[Secret | None]:
        """The distinct pre-shared keys that the peer may have; for signatures, one candidate that is no key."""
        ours = sorted(self._peers, key=lambda c: c.remote is None)  # those for the peer's address first
        return list(dict.fromkeys(authentication.key_of(c) for c in ours))

    def _try(
        self, candidates: Sequence[Secret | None], header: Header, datagram: bytes, said: Transcript
    ) -> tuple[_Opened | None, str]:
        """Message 5 under the candidate that fits, or why none does. All are tried, so that time tells nothing."""
        outcomes = [self._try_one(secret, header, datagram, said) for secret in candidates[:MAX_KEYS]]
        self.sa.cipher_key = b""
        found = next((opened for opened, _, _ in outcomes if opened is not None), None)
        _, deepest, why = max(outcomes, key=lambda outcome: outcome[1])
        if self._peers[0].authentication == Authentication.PSK:
            left = len(candidates) - len(outcomes)
            tried = f"{len(outcomes)} pre-shared keys" + (f" ({left} more were not tried)" if left else "")
            why = f"{why} ({tried} tried)" if deepest == 2 else f"decrypts with none of {tried}: the keys differ"
        return found, why

    def _try_one(
        self, secret: Secret | None, header: Header, datagram: bytes, said: Transcript
    ) -> tuple[_Opened | None, int, str]:
        """What comes of one candidate; how far it got, 1 to 3; and what was wrong."""
        sa = self.sa
        assert sa.suite is not None
        secrets = authentication.derive(sa.suite, secret, said)
        sa.cipher_key = secrets.cipher_key
        depth = 1
        try:
            message, _, next_iv = sa.open(header, datagram, authentication.first_iv(sa.suite, said))
            identification = message.one(Identification)
            depth = 2
            body = message.bodies(Identification)[0]
            expected = authentication.proof(sa.suite, secrets, said, body, initiator=True)
            identity = Identity.from_payload(identification)
            mine = [c for c in self._peers if authentication.key_of(c) == secret]
            when = self._context.wall_clock()
            proven = authentication.check(message, identity, expected, mine, initiator=True, when=when)
        except (NotAuthentic, ParseError) as error:
            return None, depth, f"decrypts, but {error}" if depth == 2 else str(error)
        return _Opened(secrets, message, next_iv, identity, proven), 3, ""
