"""Quick Mode (RFC 2409, 5.5) in tunnel mode, with the draft's encapsulation modes (4.3).

initiator                                        responder
1  HDR*, HASH(1), SA, Ni [, KE], IDci, IDcr  -->
                                             <-- 2  HDR*, HASH(2), SA, Nr [, KE], IDci, IDcr
3  HDR*, HASH(3)                             -->
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..messages import Direction, Encapsulation, Mode, Selector
from ..wire.errors import ParseError
from ..wire.isakmp import Chain, ExchangeType, Header, encode_payloads
from ..wire.payloads import Hash, Identification, KeyExchange, Nonce, NotifyType, Payload, SecurityAssociation
from ..wire.proposal import Proposal, Protocol
from . import keying
from .child_sa import ChildSa
from .context import NONCE_OCTETS, Context
from .esp_offers import EspOffer, choose_esp, offer_esp
from .events import SaEstablished
from .groups import BadPublicValue, PrivateKey
from .ike_sa import IkeSa, Refused, covered, require_hash
from .keying import HashAlgorithm, Skeyids
from .nat_traversal import NatStatus
from .policy import Connection, EncapsulationPolicy
from .retransmission import Retransmitter
from .traffic import network_of, payload_of

LINGER_SECONDS = 60.0  # how long a finished exchange still answers repeated messages


class State(enum.Enum):
    """What this side waits for."""

    WAITS_FOR_2 = 2
    WAITS_FOR_3 = 3
    DONE = 4
    FAILED = 0


class PolicyRefusal(Refused):
    """A Quick Mode that policy refuses; `notify` is what the peer is told."""

    def __init__(self, reason: str, notify: NotifyType, spi: bytes = b"") -> None:
        super().__init__(reason)
        self.notify = notify
        self.spi = spi


def wanted_encapsulation(sa: IkeSa, connection: Connection) -> Encapsulation:
    """What to offer (the draft, 1: only when necessary, and only if both ends can); PolicyRefusal if nothing fits."""
    policy = connection.encapsulation
    if policy == EncapsulationPolicy.NEVER and sa.nat == NatStatus.DETECTED:
        raise PolicyRefusal(
            'a NAT lies between, and encapsulation = "never" forbids ESP in UDP', NotifyType.NO_PROPOSAL_CHOSEN
        )
    if policy == EncapsulationPolicy.ALWAYS and not sa.peer_knows_method:
        raise PolicyRefusal(
            'encapsulation = "always", but the peer has not announced ESP in UDP',
            NotifyType.NO_PROPOSAL_CHOSEN,
        )
    if policy == EncapsulationPolicy.ALWAYS or sa.nat == NatStatus.DETECTED:
        return Encapsulation.UDP
    return Encapsulation.NONE


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

    # the initiator

    def start(self, now: float) -> None:
        """Send message 1; PolicyRefusal when the policy leaves nothing to offer."""
        connection = self.connection
        encapsulation = wanted_encapsulation(self.sa, connection)
        self._offers = tuple(EspOffer(s, Mode.TUNNEL, encapsulation, connection.pfs) for s in connection.esp_suites)
        spi = self.inbound_spi.to_bytes(4, "big")
        payloads: list[Payload] = [
            offer_esp(self._offers, spi, connection.esp_lifetime, self._context.method),
            Nonce(self._nonce),
        ]
        if connection.pfs is not None:
            self._private = self._context.entropy.private_key(connection.pfs)
            payloads.append(KeyExchange(self._private.public))
        payloads += [payload_of(connection.selector.local), payload_of(connection.selector.remote)]
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
        offer, seconds, proposal = chosen
        ids = [item.payload for item in message if isinstance(item.payload, Identification)]
        if ids and [network_of(i) for i in ids] != [self.connection.selector.local, self.connection.selector.remote]:
            raise Refused("the peer changed the identities of Quick Mode")
        self._peer_nonce = message.one(Nonce).data
        shared = self._exchange(message, offer)
        material = _Material(self._hash, self._keys, self._nonce, self._peer_nonce, shared)
        self.child = self._make_child(offer, proposal, material, self.connection.selector, seconds, now)
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
        offered = message.one(SecurityAssociation)
        spi = next((p.spi for p in offered.proposals if p.protocol == Protocol.ESP), b"")
        ids = [item.payload for item in message if isinstance(item.payload, Identification)]
        selector = self._select_connection(ids, spi)
        suites = self.connection.esp_suites
        chosen = choose_esp(offered, suites, self._context.method, self._refusal)
        if isinstance(chosen, str):
            raise PolicyRefusal(f"Quick Mode refused: {chosen}", NotifyType.NO_PROPOSAL_CHOSEN, spi)
        offer, seconds, proposal = chosen
        self._peer_nonce = message.one(Nonce).data
        if offer.group is not None:
            self._private = self._context.entropy.private_key(offer.group)
        shared = self._exchange(message, offer)
        material = _Material(self._hash, self._keys, self._peer_nonce, self._nonce, shared)
        self.child = self._make_child(offer, proposal, material, selector, seconds, now)
        own = replace(proposal, spi=self.inbound_spi.to_bytes(4, "big"))
        payloads: list[Payload] = [SecurityAssociation((own,)), Nonce(self._nonce)]
        if self._private is not None:
            payloads.append(KeyExchange(self._private.public))
        payloads += ids
        reply = self._seal_behind_hash(payloads, self._peer_nonce)
        self.state = State.WAITS_FOR_3
        self._replies[hashlib.sha256(datagram).digest()] = reply
        # the initiator may send as soon as it has our answer: accept before confirmation, send after it
        self._context.emit(SaEstablished(self.child, (Direction.INBOUND,)))
        self._retransmitter.send(reply, self.sa.path, now)

    def _select_connection(self, ids: list[Identification], spi: bytes) -> Selector:
        """The connection whose static policy is what the peer asks for (the draft, 7); nothing else is allowed."""
        if len(ids) != 2:
            raise PolicyRefusal(
                "Quick Mode in tunnel mode needs two identities", NotifyType.INVALID_ID_INFORMATION, spi
            )
        remote, local = (network_of(i) for i in ids)
        for connection in self.sa.candidates or (self.connection,):
            if (connection.selector.local, connection.selector.remote) == (local, remote):
                self.connection = connection
                return connection.selector
        raise PolicyRefusal(
            f"no connection of this peer protects {local or '?'} (here) and {remote or '?'} (there)",
            NotifyType.INVALID_ID_INFORMATION,
            spi,
        )

    def _refusal(self, offer: EspOffer) -> str:
        """Why policy refuses an offer; empty when it does not."""
        if offer.mode != Mode.TUNNEL:
            return "it offers transport mode, the policy has tunnel mode"
        if offer.group != self.connection.pfs:
            wanted = self.connection.pfs.name if self.connection.pfs else "none"
            return f"it offers {offer.group.name if offer.group else 'no'} group for PFS, the policy has {wanted}"
        policy = self.connection.encapsulation
        if offer.encapsulation == Encapsulation.UDP:
            if policy == EncapsulationPolicy.NEVER:
                return 'it offers ESP in UDP, which encapsulation = "never" forbids'
            if not self.sa.peer_knows_method:
                return "it offers ESP in UDP without having announced it in phase 1"
            return ""
        if policy == EncapsulationPolicy.ALWAYS:
            return 'it offers ESP without UDP, which encapsulation = "always" forbids'
        if self.sa.nat == NatStatus.DETECTED:
            return "it offers ESP without UDP, which the NAT between would not let through"
        return ""

    def _on_message_3(self, header: Header, datagram: bytes, now: float) -> bytes:
        message, _, _ = self.sa.open(header, datagram, self._iv)
        expected = keying.quick_hash3(self._hash, self._keys.a, self.message_id, self._peer_nonce, self._nonce)
        require_hash(message, expected)
        self._retransmitter.stop()
        self.state = State.DONE
        self._finish((Direction.OUTBOUND,), now)
        return b""

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
        seconds: int | None,
        now: float,
    ) -> ChildSa:
        outbound_spi = int.from_bytes(proposal.spi, "big")
        if len(proposal.spi) != 4 or outbound_spi < 256:
            raise ParseError("SA", 0, f"SPI {proposal.spi.hex()} is reserved or not of 4 octets")
        octets = offer.suite.keymat_octets
        lifetime = min(self.connection.esp_lifetime, seconds or self.connection.esp_lifetime)
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
            now + lifetime,
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
