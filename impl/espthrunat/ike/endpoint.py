"""An IKEv1 endpoint without I/O: datagrams, time and randomness come in, datagrams and events go out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..messages import Direction, Path
from ..wire.errors import ParseError
from ..wire.isakmp import HEADER_OCTETS, ExchangeType, Header, parse_header, parse_payloads
from ..wire.payloads import Notification
from . import informational
from .address_pool import AddressPool
from .admission import Admission, Limits
from .aggressive_mode import AggressiveModeInitiator
from .aggressive_mode_responder import AggressiveModeResponder
from .child_sa import ChildSa
from .context import Context, Entropy, SystemEntropy
from .events import DatagramRefused, Event, ExchangeFailed
from .ike_sa import IkeSa, NotAuthentic, Refused
from .main_mode import MainModeInitiator
from .main_mode_responder import MainModeResponder
from .policy import Connection, Rebinding
from .quick_mode import PolicyRefusal
from .sa_keeper import SaKeeper
from .sa_table import Pair, PairTable, Phase1, Phase1Table
from .timers import Timers

MAX_MESSAGE_IDS = 10_000  # per phase 1 SA; then the peer must begin a new one
PHASE1 = (ExchangeType.MAIN, ExchangeType.AGGRESSIVE)


class Endpoint:
    """All exchanges and SAs of one host. It never reads a clock, opens a socket or draws randomness by itself.

    `now` is seconds on any clock that does not go back. Inner networks of peers whose connection says
    `translate` appear as networks of `pool`.
    """

    def __init__(
        self,
        local: tuple[str, int],
        connections: Sequence[Connection],
        entropy: Entropy | None = None,
        limits: Limits | None = None,
        pool: str = "",
    ) -> None:
        self.connections = {connection.name: connection for connection in connections}
        self._limits = limits or Limits()
        self._admission = Admission(self._limits)
        self._out: list[tuple[bytes, Path]] = []
        self._events: deque[Event] = deque()
        self._timers = Timers()
        self._phase1 = Phase1Table()
        self._pairs = PairTable()
        self._context = Context(
            entropy or SystemEntropy(),
            send=lambda data, path: self._out.append((data, path)),
            emit=self._events.append,
            timers=self._timers,
            spi_in_use=self._pairs.__contains__,
            holder=self._pairs.holder,
        )
        lent = AddressPool(pool) if pool else None
        self._keeper = SaKeeper(self._context, local, self.connections, self._phase1, self._pairs, lent)

    # datagrams, time, events

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """Take an IKE datagram that came in on `path`. Whatever it holds, it raises nothing."""
        try:
            header = parse_header(data)
            if header.exchange in PHASE1:
                self._on_phase1(header, data, path, now)
            elif header.exchange == ExchangeType.QUICK:
                self._on_quick_mode(header, data, path, now)
            elif header.exchange == ExchangeType.INFORMATIONAL:
                self._on_informational(header, data, path, now)
            else:
                raise Refused(f"exchange type {header.exchange} is not supported")
        except ParseError as error:
            self._refuse("malformed", path, str(error))
        except NotAuthentic as error:
            self._refuse("not authentic", path, str(error))
        except Refused as error:
            self._refuse("refused", path, str(error))

    def handle_timer(self, now: float) -> None:
        """Do what is due at `now`."""
        self._timers.run(now)

    def timer(self) -> float | None:
        """When `handle_timer` must be called next, or None."""
        return self._timers.next()

    def datagrams_to_send(self) -> list[tuple[bytes, Path]]:
        """What must go out, in order; each datagram is handed out once."""
        out, self._out[:] = list(self._out), []
        return out

    def next_event(self) -> Event | None:
        """The next thing that happened, or None."""
        return self._events.popleft() if self._events else None

    # what the host wants

    def initiate(self, name: str, now: float) -> None:
        """Bring a connection up, unless it is or is about to be. ValueError when nobody knows where the peer is."""
        connection = self.connections[name]
        if connection.remote is None:
            raise ValueError(f"connection {name} has no remote address: only its peers can begin it")
        self._keeper.held.discard(name)
        self._keeper.bring_up(connection, now)

    def acquire(self, name: str, now: float) -> None:
        """There is traffic and no SA for it. `name` may be followed by "@" and the peer's address."""
        name, _, address = name.partition("@")
        connection = self.connections[name]
        if not connection.acquire or name in self._keeper.held:
            return
        if connection.translate and connection.remote is None:
            return  # nobody has that address of the pool, or its peer is about to say that it does
        if connection.remote is None:
            self._keeper.reach(connection, now, address)
        else:
            self._keeper.bring_up(connection, now)

    def rekey(self, name: str, now: float, *, phase1: bool = False, quick: bool = True) -> int:
        """Replace the SAs of a connection now; returns how many new pairs that will make.

        One pair replaces all that stand for the same traffic, as there are when both ends have begun at once. Raises
        ValueError when there is nothing to replace and nobody to ask.
        """
        connection = self.connections[name]
        pairs = [pair for pair in self._pairs.named(name) if pair.usable]
        peers = {(pair.sa.identity, pair.child.path) for pair in pairs}
        peers |= {(e.sa.identity, e.sa.path) for e in self._phase1 if e.sa.established and e.sa.connection.name == name}
        if not peers:
            if connection.remote is not None or not self._keeper.reach(connection, now):
                raise ValueError(f"{name} is not up")
            return 1
        if phase1:
            for identity, path in peers:
                established = self._phase1.of(identity, path)
                if established:
                    self._keeper.replace_phase1(established[-1], now)
        if quick:
            for pair in pairs:
                if phase1 and not pair.replacing:
                    self._keeper.replace_pair_anew(pair, now)
                elif not pair.replacing:
                    self._keeper.replace_pair(pair, now)
        return len({(pair.sa.identity, pair.traffic) for pair in pairs}) if quick else 0

    def terminate(self, name: str, now: float, reason: str = "taken down here") -> None:
        """Take a connection down: delete its SAs here and at the peer.

        Where the peer's address is configured it stays down, whoever wants it, until `initiate`; peers that may come
        from anywhere may come again.
        """
        keeper, connection = self._keeper, self.connections[name]
        if connection.remote is not None:
            keeper.held.add(name)
        self._timers.cancel(("retry", name))
        for quick in keeper.launcher.all_quick():
            if quick.connection.name == name:
                keeper.launcher.forget_quick(quick)
        mine = self._pairs.named(name)
        paths = {pair.child.path for pair in mine}
        for exchange in self._phase1:
            sa = exchange.sa
            here = connection.remote is not None and sa.path == keeper.launcher.path_to(connection)
            if (here or sa.connection.name == name) and not self._serves_others(sa, name):
                paths.add(sa.path)
                if sa.established:
                    keeper.end_all(sa, reason, now)
                else:
                    keeper.drop_phase1(exchange, reason, now, tell=False)
        for pair in mine:
            keeper.drop_pair(pair, reason, now, tell=True)
        for path in paths:
            if not self._pairs.on_path(path) and not any(e.sa.path == path for e in self._phase1):
                keeper.keepalives.stop(path)

    def _serves_others(self, sa: IkeSa, name: str) -> bool:
        """Whether connections other than this one need a phase 1, be it for pairs, or for what is under way."""
        launcher = self._keeper.launcher
        pairs = (pair.child.connection for pair in self._pairs if pair.child.path == sa.path)
        quick = (exchange.connection.name for exchange in launcher.quick_of(sa))
        return launcher.want_no_more(sa, name) or any(other != name for other in (*pairs, *quick))

    def shut_down(self, now: float) -> None:
        """Take everything down."""
        for name in self.connections:
            self.terminate(name, now, "shut down here")
        for exchange in self._phase1:
            if exchange.sa.established:
                self._keeper.end_all(exchange.sa, "shut down here", now)

    # what the data plane says

    def sa_expires(self, spi: int, direction: Direction, hard: bool, now: float) -> None:
        """The octets or sequence numbers of an SA are nearly (`hard`: entirely) used up."""
        inbound = direction == Direction.INBOUND
        pair = self._pairs.get(spi) if inbound else self._pairs.find_outbound(spi)
        if pair is None:
            return
        if not hard:
            self._keeper.renewal.use_up(pair, now)
            return
        self._keeper.drop_pair(pair, "used up", now, tell=True)
        others = self._pairs.named(pair.child.connection)
        if not any(other.usable and other.traffic == pair.traffic for other in others):
            self._keeper.replace_pair(pair, now)

    def sa_used(self, spi: int, now: float) -> None:
        """An authentic ESP packet came in: proof that the initiator of its Quick Mode has the keys."""
        pair = self._pairs.get(spi)
        if pair is None or pair.confirmed:
            return
        for exchange in self._keeper.launcher.quick_of(pair.sa):
            if exchange.inbound_spi == spi:
                exchange.confirm(now)

    def sa_rebound(self, spi: int, old: Path, new: Path, now: float) -> None:
        """An authentic, fresh ESP packet came from elsewhere, and policy lets its SA follow."""
        pair = self._pairs.get(spi)
        if pair is not None:
            self._keeper.follow(pair.sa.identity, old, new)

    def plane_lost(self, now: float) -> None:
        """The data plane has lost all SAs, and must never get the same keys again: their counters would repeat."""
        for pair in self._pairs:
            wanted = pair.usable
            self._keeper.drop_pair(pair, "the data plane was lost", now, tell=True)
            if wanted:
                self._keeper.replace_pair(pair, now)

    # what there is

    def ike_sas(self) -> list[IkeSa]:
        """Phase 1 SAs, established or on their way."""
        return [exchange.sa for exchange in self._phase1]

    def is_replaced(self, sa: IkeSa) -> bool:
        """Whether a phase 1 SA is there only because what is under way may still need it."""
        return self._phase1.replaced(sa)

    def pairs(self) -> list[Pair]:
        """ESP SA pairs with what has become of them."""
        return list(self._pairs)

    def children(self) -> list[ChildSa]:
        """ESP SA pairs, those included that a responder accepts traffic on but has no confirmation of."""
        return [pair.child for pair in self._pairs]

    def usable_children(self) -> list[ChildSa]:
        """ESP SA pairs that traffic may be sent on."""
        return [pair.child for pair in self._pairs if pair.usable]

    # what datagrams do

    def _on_phase1(self, header: Header, data: bytes, path: Path, now: float) -> None:
        if header.message_id:
            raise ParseError("header", 20, "phase 1 has a message ID other than 0")
        exchange = self._phase1.find(header.initiator_cookie, path)
        if exchange is None:
            if any(header.responder_cookie):
                raise Refused("no such phase 1 SA")
            self._answer_phase1(header, data, path, now)
            return
        known = exchange.sa.responder_cookie
        if any(known) and any(header.responder_cookie) and header.responder_cookie != known:
            raise Refused("no such phase 1 SA")
        exchange.receive(header, data, now)

    def _answer_phase1(self, header: Header, data: bytes, path: Path, now: float) -> None:
        if not self._admission.admit(path.remote, now):
            self._refuse("too many", path, f"more than {self._limits.new_per_second:g} phase 1 a second from there")
            return
        kind = MainModeResponder if header.exchange == ExchangeType.MAIN else AggressiveModeResponder
        outcome = self._keeper
        connections = tuple(c for c in self.connections.values() if c.name not in outcome.held)
        exchange: Phase1 = kind(
            self._context,
            connections,
            header,
            data,
            path,
            now,
            done=outcome.phase1_done,
            failed=outcome.phase1_failed,
        )
        oldest = self._phase1.oldest_half_open(self._limits.half_open)
        if oldest is not None:
            self._keeper.drop_phase1(oldest, "", now, tell=False)
        self._phase1.add(exchange)

    def _on_quick_mode(self, header: Header, data: bytes, path: Path, now: float) -> None:
        sa = self._established(header, path).sa
        if not header.message_id:
            raise ParseError("header", 20, "Quick Mode has message ID 0")
        exchange = self._keeper.launcher.find_quick(sa, header.message_id)
        if exchange is not None:
            exchange.receive(header, data, now)
            return
        self._refuse_used(sa, header.message_id)
        try:
            exchange = self._keeper.launcher.answer_quick(sa, header, data, now)
        except PolicyRefusal as refusal:
            sa.used_message_ids.add(header.message_id)
            informational.send_refusal(self._context, sa, refusal.notify, refusal.spi)
            self._context.emit(ExchangeFailed(sa.connection.name, path, str(refusal)))
            return
        sa.used_message_ids.add(header.message_id)
        self._keeper.quick_answered(exchange, now)

    def _on_informational(self, header: Header, data: bytes, path: Path, now: float) -> None:
        if not header.encrypted:
            self._take_hint(header, data, path)
            return
        exchange = self._phase1.find(header.initiator_cookie, path) or self._moved(header)
        exchange = self._established(header, exchange.sa.path if exchange else path)
        sa = exchange.sa
        self._refuse_used(sa, header.message_id)
        message = informational.open_protected(sa, header, data)
        sa.used_message_ids.add(header.message_id)
        if sa.path != path:
            self._keeper.follow(sa.identity, sa.path, path)
        informational.handle(message, sa, self._keeper, now)

    def _moved(self, header: Header) -> Phase1 | None:
        """The SA of a message that came by another path, where policy lets it follow what is authentic and new."""
        if all(c.rebinding == Rebinding.NEVER for c in self.connections.values()):
            return None
        exchange = self._phase1.find_by_cookies(header.initiator_cookie, header.responder_cookie)
        follows = exchange is not None and exchange.sa.connection.rebinding == Rebinding.AUTHENTICATED
        return exchange if follows else None

    def _take_hint(self, header: Header, data: bytes, path: Path) -> None:
        exchange = self._phase1.find(header.initiator_cookie, path)
        initiators = (MainModeInitiator, AggressiveModeInitiator)
        if not isinstance(exchange, initiators) or exchange.sa.established:
            raise Refused("an unprotected notification about nothing that is under way")
        message = parse_payloads(header.next_payload, data[HEADER_OCTETS:])
        exchange.hint(message.one(Notification).notify_type)

    def _established(self, header: Header, path: Path) -> Phase1:
        exchange = self._phase1.find(header.initiator_cookie, path)
        if exchange is None or exchange.sa.responder_cookie != header.responder_cookie:
            raise Refused("no such phase 1 SA")
        if not exchange.sa.established:
            raise Refused("phase 1 is not established")
        return exchange

    def _refuse_used(self, sa: IkeSa, message_id: int) -> None:
        if message_id in sa.used_message_ids:
            raise Refused("the message ID was used before: a repeated message")
        if len(sa.used_message_ids) >= MAX_MESSAGE_IDS:
            raise Refused("too many exchanges under one phase 1 SA")

    def _refuse(self, kind: str, path: Path, reason: str) -> None:
        self._context.emit(DatagramRefused(kind, path, reason))
