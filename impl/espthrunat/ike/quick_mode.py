"""Quick Mode (RFC 2409, 5.5) with the draft's encapsulation modes (4.3).

initiator                                             responder
1  HDR*, HASH(1), SA, Ni [, KE], IDci, IDcr [, N]  -->
                                                  <-- 2  HDR*, HASH(2), SA, Nr [, KE], IDci, IDcr [, N]
3  HDR*, HASH(3)                                  -->

The notifications are INITIAL-CONTACT in message 1 and RESPONDER-LIFETIME in message 2 (RFC 2407, 4.6.3).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..messages import Direction, Mode, Selector
from ..wire.errors import ParseError
from ..wire.isakmp import Chain, ExchangeType, Header, encode_payloads
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
from ..wire.proposal import Proposal, Protocol
from . import keying
from .child_sa import ChildSa
from .context import NONCE_OCTETS, Context
from .esp_offers import EspOffer, choose_esp, offer_esp
from .events import SaEstablished
from .groups import BadPublicValue, PrivateKey
from .ike_sa import IkeSa, Refused, covered, require_hash
from .keying import HashAlgorithm, Skeyids
from .lifetime import DEFAULT_SECONDS, Lifetime, read_responder_lifetime, responder_lifetime
from .policy import Connection
from .quick_mode_policy import PolicyRefusal, choose, wanted_encapsulation
from .retransmission import Retransmitter
from .traffic import identities, own_selector

__all__ = ["PolicyRefusal", "QuickMode", "State"]

LINGER_SECONDS = 60.0  # how long a finished exchange still answers repeated messages


class State(enum.Enum):
    """What this side waits for."""

    WAITS_FOR_2 = 2
    WAITS_FOR_3 = 3
    DONE = 4
    FAILED = 0


@dataclass(slots=True)
class _Material:
    """What KEYMAT is made of besides the SPI."""

    hash: HashAlgorithm
    keys: Skeyids
    initiator_nonce: bytes
    responder_nonce: bytes
    shared: bytes

    def keymat(self, spi: int, octets: int) -> bytes:
        return keying.keymat(
            self.hash,
            self.keys.d,
            Protocol.ESP,
            spi.to_bytes(4, "big"),
            self.initiator_nonce,
            self.responder_nonce,
            octets,
            self.shared,
        )


class QuickMode:
    """One Quick Mode, from either side."""

    def __init__(
        self,
        context: Context,
        sa: IkeSa,
        connection: Connection,
        message_id: int,
        now: float,
        *,
        finished: Callable[[QuickMode, float], None],
        failed: Callable[[QuickMode, str, float], None],
    ) -> None:
        assert sa.suite is not None
        assert sa.keys is not None
        self.sa = sa
        self.connection = connection
        self.message_id = message_id
        self.inbound_spi = context.spi()
        self.child: ChildSa | None = None
        self.initial_contact = False  # the peer has said, authentically, that it has no other SAs with us
        self.state = State.FAILED
        self._hash = sa.suite.hash
        self._keys = sa.keys
        self._context = context
        self._started = now
        self._finished = finished
        self._failed = failed
        self._iv = sa.phase2_iv(message_id)
        self._replies: dict[bytes, bytes] = {}
        self._retransmitter = Retransmitter(context, connection.retransmission, self._give_up)
        self._nonce = context.entropy.octets(NONCE_OCTETS)
        self._peer_nonce = b""
        self._private: PrivateKey | None = None
        self._offers: tuple[EspOffer, ...] = ()
        self._asked: list[Identification] = []
        self._began_here = False

    # the initiator

    def start(self, now: float, *, initial_contact: bool = False) -> None:
        """Send message 1; PolicyRefusal when the policy leaves nothing to offer.

        `initial_contact` tells the peer that we have no other SAs with it.
        """
        connection = self.connection
        encapsulation = wanted_encapsulation(self.sa, connection)
        self._offers = tuple(EspOffer(s, connection.mode, encapsulation, connection.pfs) for s in connection.esp_suites)
        self._asked = identities(self.sa, connection)
        self._inner_network(now)  # better refused before the peer has agreed
        self._began_here = True
        spi = self.inbound_spi.to_bytes(4, "big")
        payloads: list[Payload] = [
            offer_esp(self._offers, spi, self._own_lifetime, self._context.method),
            Nonce(self._nonce),
        ]
        if connection.pfs is not None:
            self._private = self._context.entropy.private_key(connection.pfs)
            payloads.append(KeyExchange(self._private.public))
        payloads += self._asked
        if initial_contact:
            payloads.append(Notification(NotifyType.INITIAL_CONTACT, Protocol.ISAKMP, self._cookies))
        self.state = State.WAITS_FOR_2
        self._retransmitter.send(self._seal_behind_hash(payloads, b""), self.sa.path, now)

    def receive(self, header: Header, datagram: bytes, now: float) -> None:
        """Take a message of this exchange; ParseError, NotAuthentic and Refused leave the state as it was."""
        digest = hashlib.sha256(datagram).digest()
        if digest in self._replies:
            if reply := self._replies[digest]:
                self._context.send(reply, self.sa.path)
            return
        if self.state == State.WAITS_FOR_2:
            reply = self._on_message_2(header, datagram, now)
        elif self.state == State.WAITS_FOR_3:
            reply = self._on_message_3(header, datagram, now)
        elif self.state == State.DONE and not self._began_here:
            self._require_proof(header, datagram)  # message 3, where traffic was faster
            return
        else:
            raise Refused("Quick Mode has ended")
        self._replies[digest] = reply

    def _on_message_2(self, header: Header, datagram: bytes, now: float) -> bytes:
        message, plain, next_iv = self.sa.open(header, datagram, self._iv)
        rest = covered(message, plain)
        require_hash(message, keying.quick_hash2(self._hash, self._keys.a, self.message_id, self._nonce, rest))
        answer = message.one(SecurityAssociation)
        if sum(len(p.transforms) for p in answer.proposals) != 1:
            raise Refused("the peer's choice is not one transform")
        chosen = choose_esp(answer, self.connection.esp_suites, self._context.method, self._not_offered)
        if isinstance(chosen, str):
            raise Refused(chosen)
        repeated = message.all(Identification)
        if repeated != self._asked and (repeated or self.connection.mode == Mode.TUNNEL):
            raise Refused("the peer changed the identities of Quick Mode")
        self._peer_nonce = message.one(Nonce).data
        shared = self._exchange(message, chosen.offer)
        material = _Material(self._hash, self._keys, self._nonce, self._peer_nonce, shared)
        selector = own_selector(self.sa, self.connection)
        theirs = chosen.lifetime.within(read_responder_lifetime(message, chosen.proposal.spi))
        lifetime = self._own_lifetime.within(theirs)
        child = self._make_child(chosen.offer, chosen.proposal, material, selector, lifetime, now)
        self.child = replace(child, mapped=self._inner_network(now))
        self._retransmitter.stop()
        proof = keying.quick_hash3(self._hash, self._keys.a, self.message_id, self._nonce, self._peer_nonce)
        reply, _ = self.sa.seal(ExchangeType.QUICK, self.message_id, next_iv, [Hash(proof)])
        self.state = State.DONE
        self._context.send(reply, self.sa.path)
        both = (Direction.INBOUND, Direction.OUTBOUND)
        self._finish(both, now)
        return reply

    def _not_offered(self, offer: EspOffer) -> str:
        return "" if offer in self._offers else "the peer's choice is none of what was offered"

    # the responder

    def respond(self, header: Header, datagram: bytes, now: float) -> None:
        """Answer message 1. PolicyRefusal when policy refuses it; ParseError and NotAuthentic as in `receive`."""
        message, plain, self._iv = self.sa.open(header, datagram, self._iv)
        rest = covered(message, plain)
        require_hash(message, keying.quick_hash1(self._hash, self._keys.a, self.message_id, rest))
        self.initial_contact = any(
            (n.notify_type, n.protocol, n.spi) == (NotifyType.INITIAL_CONTACT, Protocol.ISAKMP, self._cookies)
            for n in message.all(Notification)
        )
        self._asked = message.all(Identification)
        connections = self.sa.candidates or (self.connection,)
        offered = message.one(SecurityAssociation)
        chosen = choose(self.sa, connections, offered, self._asked, self._context.method)
        self.connection = chosen.connection
        self._require_free(chosen.selector, chosen.offer.mode, chosen.proposal.spi)
        offer, proposal = chosen.offer, chosen.proposal
        self._peer_nonce = message.one(Nonce).data
        if offer.group is not None:
            self._private = self._context.entropy.private_key(offer.group)
        shared = self._exchange(message, offer)
        material = _Material(self._hash, self._keys, self._peer_nonce, self._nonce, shared)
        theirs = replace(chosen.lifetime, seconds=chosen.lifetime.seconds or DEFAULT_SECONDS)
        lifetime = self._own_lifetime.within(theirs)
        child = self._make_child(offer, proposal, material, chosen.selector, lifetime, now)
        self.child = replace(child, mapped=self._inner_network(now, proposal.spi))
        spi = self.inbound_spi.to_bytes(4, "big")
        payloads: list[Payload] = [SecurityAssociation((replace(proposal, spi=spi),)), Nonce(self._nonce)]
        if self._private is not None:
            payloads.append(KeyExchange(self._private.public))
        payloads += self._asked
        if lifetime != theirs:
            payloads.append(responder_lifetime(lifetime, spi))
        reply = self._seal_behind_hash(payloads, self._peer_nonce)
        self.state = State.WAITS_FOR_3
        self._replies[hashlib.sha256(datagram).digest()] = reply
        # the initiator may send as soon as it has our answer: accept before confirmation, send after it
        self._context.emit(SaEstablished(self.child, (Direction.INBOUND,)))
        self._retransmitter.send(reply, self.sa.path, now)

    def _require_free(self, selector: Selector, mode: Mode, spi: bytes) -> None:
        """Refuse what another peer has: packets for that address could reach the wrong one (the draft, 7)."""
        identity = self.sa.identity
        assert identity is not None
        if self.connection.translate:
            return  # no packet for that address is ever sent from here
        if mode == Mode.TUNNEL and (holder := self._context.holder(identity, selector)):
            reason = f"Quick Mode refused: {selector.remote} is {holder}'s at present, not {identity.text}'s"
            raise PolicyRefusal(reason, NotifyType.INVALID_ID_INFORMATION, spi)

    def _inner_network(self, now: float, spi: bytes = b"") -> str:
        """What the peer's inner network appears as here; PolicyRefusal when no network is left for it."""
        identity = self.sa.identity
        assert identity is not None
        network = self._context.inner_network(identity, self.connection, now)
        if network is None:
            reason = f"Quick Mode refused: the pool has no network left that {identity.text} could appear as"
            raise PolicyRefusal(reason, NotifyType.INVALID_ID_INFORMATION, spi)
        return network

    def confirm(self, now: float) -> None:
        """An authentic ESP packet has come on our new inbound SA: who sent it has the keys, as message 3 would prove.

        Nothing happens unless message 3 is what we wait for.
        """
        if self.state == State.WAITS_FOR_3:
            self._retransmitter.stop()
            self.state = State.DONE
            self._finish((Direction.OUTBOUND,), now)

    def _on_message_3(self, header: Header, datagram: bytes, now: float) -> bytes:
        self._require_proof(header, datagram)
        self.confirm(now)
        return b""

    def _require_proof(self, header: Header, datagram: bytes) -> None:
        message, _, _ = self.sa.open(header, datagram, self._iv)
        expected = keying.quick_hash3(self._hash, self._keys.a, self.message_id, self._peer_nonce, self._nonce)
        require_hash(message, expected)

    # both

    def fail(self, reason: str, now: float) -> None:
        """The peer has refused the exchange, with proof of being the peer."""
        self._retransmitter.stop()
        self.state = State.FAILED
        self._failed(self, reason, now)

    def abandon(self) -> None:
        """Stop without a word."""
        self._retransmitter.stop()
        self._context.timers.cancel(self)

    @property
    def _own_lifetime(self) -> Lifetime:
        return Lifetime.of(self.connection.esp_lifetime, self.connection.esp_octets)

    @property
    def _cookies(self) -> bytes:
        return self.sa.initiator_cookie + self.sa.responder_cookie

    def _exchange(self, message: Chain, offer: EspOffer) -> bytes:
        """Quick Mode's own shared secret; empty without PFS. ParseError when KE is missing, needless or wrong."""
        public = message.at_most_one(KeyExchange)
        if offer.group is None:
            if public is not None:
                raise ParseError("KEY_EXCHANGE", 0, "present, though no group was chosen")
            return b""
        if public is None or self._private is None:
            raise ParseError("KEY_EXCHANGE", 0, "missing, though a group was chosen")
        try:
            return self._private.exchange(public.data)
        except BadPublicValue as error:
            raise ParseError("KEY_EXCHANGE", 0, str(error)) from error

    def _make_child(
        self,
        offer: EspOffer,
        proposal: Proposal,
        material: _Material,
        selector: Selector,
        lifetime: Lifetime,
        now: float,
    ) -> ChildSa:
        outbound_spi = int.from_bytes(proposal.spi, "big")
        if len(proposal.spi) != 4 or outbound_spi < 256:
            raise ParseError("SA", 0, f"SPI {proposal.spi.hex()} is reserved or not of 4 octets")
        octets = offer.suite.keymat_octets
        return ChildSa(
            self.connection.name,
            self.sa.path,
            offer.suite,
            offer.encapsulation,
            selector,
            self.inbound_spi,
            outbound_spi,
            material.keymat(self.inbound_spi, octets),
            material.keymat(outbound_spi, octets),
            now + lifetime.seconds,
            offer.mode,
            lifetime.octets,
            self._began_here,
        )

    def _seal_behind_hash(self, payloads: list[Payload], nonce: bytes) -> bytes:
        """Message 1 (no nonce) or 2 (the initiator's) behind its HASH; moves the IV on."""
        rest = encode_payloads(payloads)
        proof = keying.quick_hash2(self._hash, self._keys.a, self.message_id, nonce, rest)
        sealed, self._iv = self.sa.seal(ExchangeType.QUICK, self.message_id, self._iv, [Hash(proof), *payloads])
        return sealed

    def _finish(self, directions: tuple[Direction, ...], now: float) -> None:
        assert self.child is not None
        self._private = None
        self._context.emit(SaEstablished(self.child, directions, now - self._started))
        self._context.timers.set(self, now + LINGER_SECONDS, self._forget)
        self._finished(self, now)

    def _forget(self, now: float) -> None:
        self._failed(self, "", now)

    def _give_up(self, now: float) -> None:
        number = 1 if self.state == State.WAITS_FOR_2 else 2
        tries = self._retransmitter.sent
        self.fail(f"no valid answer to Quick Mode message {number} after {tries} tries", now)
