"""Two ends of one established phase 1, and Quick Modes between them: no endpoint, no network, no time."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ike_world import CLIENT, INITIATOR, PUBLIC, RESPONDER, SERVER, RepeatableEntropy

from espthrunat.ike import events, keying
from espthrunat.ike.child_sa import ChildSa
from espthrunat.ike.context import Context
from espthrunat.ike.ike_sa import IkeSa
from espthrunat.ike.nat_traversal import NatStatus
from espthrunat.ike.policy import Connection
from espthrunat.ike.quick_mode import QuickMode
from espthrunat.ike.timers import Timers
from espthrunat.messages import Mode, Path, Selector
from espthrunat.wire.isakmp import Chain, ExchangeType, encode_message, encode_payloads, parse_header
from espthrunat.wire.payloads import Hash, Payload

MAPPED_PORT = 1024
KEYS = keying.Skeyids(b"d" * 32, b"a" * 32, b"e" * 32)


def transport(connection: Connection, protocol: int = 0, local_port: int = 0, remote_port: int = 0) -> Connection:
    """The same peer in transport mode; the addresses of the selector are placeholders there."""
    selector = Selector("0.0.0.0/0", "0.0.0.0/0", protocol, local_port, remote_port)
    return replace(connection, mode=Mode.TRANSPORT, selector=selector)


@dataclass
class End:
    """One end: its phase 1 SA, its connections, and what it has said."""

    sa: IkeSa
    context: Context
    sent: list[bytes] = field(default_factory=list)
    said: list[events.Event] = field(default_factory=list)
    ended: list[tuple[QuickMode, str]] = field(default_factory=list)  # and why, "" for well

    def quick(self, connection: Connection, message_id: int) -> QuickMode:
        return QuickMode(
            self.context,
            self.sa,
            connection,
            message_id,
            0.0,
            finished=lambda exchange, _now: self.ended.append((exchange, "")),
            failed=lambda exchange, reason, _now: self.ended.append((exchange, reason)),
        )


class QuickWorld:
    """A client behind a NAT (or not) and a server; connections as each end's policy has them."""

    def __init__(
        self,
        client: tuple[Connection, ...] = (INITIATOR,),
        server: tuple[Connection, ...] = (RESPONDER,),
        *,
        nat: NatStatus = NatStatus.DETECTED,
        phase1_by_client: bool = True,
        seed: int = 1,
    ) -> None:
        outside = (PUBLIC, MAPPED_PORT) if nat == NatStatus.DETECTED else (CLIENT, 500)
        self.client = self._end(client, Path(CLIENT, 500, SERVER, 500), nat, phase1_by_client, server[0], seed)
        path = Path(SERVER, 500, *outside)
        self.server = self._end(server, path, nat, not phase1_by_client, client[0], seed + 1)
        self.wire: list[Chain] = []  # every message in the clear, HASH first
        self.ivs: dict[int, bytes] = {}  # of the next message of each exchange

    @staticmethod
    def _end(
        connections: tuple[Connection, ...], path: Path, nat: NatStatus, initiator: bool, peer: Connection, seed: int
    ) -> End:
        sa = IkeSa(initiator, path, b"cookie-i", b"cookie-r", connections[0], 0.0, suite=connections[0].ike_suites[0])
        sa.keys, sa.cipher_key, sa.last_block = KEYS, b"k" * 16, b"l" * 16
        sa.identity, sa.nat, sa.established = peer.local_identity, nat, True
        sa.candidates = connections
        sent: list[bytes] = []
        said: list[events.Event] = []
        context = Context(
            RepeatableEntropy(seed),
            send=lambda data, _path: sent.append(data),
            emit=said.append,
            timers=Timers(),
            spi_in_use=lambda _spi: False,
        )
        return End(sa, context, sent, said)

    def run(
        self, connection: Connection, *, by_client: bool = True, message_id: int = 77, initial_contact: bool = False
    ) -> tuple[QuickMode, QuickMode]:
        """One whole Quick Mode; the client's exchange first. Whatever an end refuses is raised."""
        first, second = (self.client, self.server) if by_client else (self.server, self.client)
        beginner = first.quick(connection, message_id)
        beginner.start(0.0, initial_contact=initial_contact)
        answerer = self.answer(first.sent[-1], by_client=by_client)
        self.give(beginner, second.sent[-1])
        self.give(answerer, first.sent[-1])
        return (beginner, answerer) if by_client else (answerer, beginner)

    def answer(self, message_1: bytes, *, by_client: bool = True) -> QuickMode:
        end = self.server if by_client else self.client
        header = parse_header(message_1)
        exchange = end.quick(end.sa.connection, header.message_id)
        self._note(exchange, message_1)
        exchange.respond(header, message_1, 0.0)
        return exchange

    def give(self, exchange: QuickMode, message: bytes) -> None:
        self._note(exchange, message)
        exchange.receive(parse_header(message), message, 0.0)

    def craft(self, end: End, payloads: Sequence[Payload], *, nonce: bytes = b"", message_id: int = 77) -> bytes:
        """An authentic message 1, or 2 if the initiator's nonce is given, with any payloads."""
        return self.craft_raw(end, payloads[0].type, encode_payloads(payloads), nonce=nonce, message_id=message_id)

    def craft_raw(self, end: End, first: int, rest: bytes, *, nonce: bytes = b"", message_id: int = 77) -> bytes:
        """The same with any octets behind HASH, that claim to begin with a payload of type `first`."""
        sa = end.sa
        assert sa.suite is not None
        digest = keying.quick_hash2(sa.suite.hash, KEYS.a, message_id, nonce, rest)
        plain = struct.pack("!BxH", first, 4 + len(digest)) + digest + rest
        iv = self.ivs.get(message_id, sa.phase2_iv(message_id))
        ciphertext = keying.encrypt(sa.cipher_key, iv, plain + bytes(-len(plain) % 16))
        return encode_message(sa.header(ExchangeType.QUICK, message_id, first=Hash.type, encrypted=True), ciphertext)

    def _note(self, exchange: QuickMode, message: bytes) -> None:
        header = parse_header(message)
        iv = self.ivs.get(header.message_id, exchange.sa.phase2_iv(header.message_id))
        chain, _, self.ivs[header.message_id] = exchange.sa.open(header, message, iv)
        self.wire.append(chain)


def child_of(exchange: QuickMode) -> ChildSa:
    assert exchange.child is not None
    return exchange.child


def agree(client: QuickMode, server: QuickMode) -> bool:
    """Both ends have the same pair, keys included."""
    here, there = child_of(client), child_of(server)
    return (here.inbound_spi, here.outbound_spi, here.inbound_keymat, here.outbound_keymat) == (
        there.outbound_spi,
        there.inbound_spi,
        there.outbound_keymat,
        there.inbound_keymat,
    )
