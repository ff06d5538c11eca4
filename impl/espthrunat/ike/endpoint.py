"""An IKEv1 endpoint without I/O: datagrams, time and randomness come in, datagrams and events go out."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from ..messages import Path
from ..wire.errors import ParseError
from ..wire.isakmp import HEADER_OCTETS, ExchangeType, Header, parse_header, parse_payloads
from ..wire.payloads import Notification
from . import informational
from .child_sa import ChildSa
from .context import Context, Entropy, SystemEntropy
from .events import DatagramRefused, Event, ExchangeFailed, IkeSaDeleted, SaDeleted
from .ike_sa import IkeSa, NotAuthentic, Refused
from .main_mode import MainModeInitiator
from .main_mode_responder import MainModeResponder
from .policy import Connection
from .quick_mode import PolicyRefusal, QuickMode
from .quick_mode import State as QuickState
from .timers import Timers

MAX_HALF_OPEN = 1000
MAX_MESSAGE_IDS = 10_000  # per phase 1 SA; then the peer must begin a new one

MainMode = MainModeInitiator | MainModeResponder


class Endpoint:
    """All exchanges and SAs of one host. It never reads a clock, opens a socket or draws randomness by itself.

    `now` is seconds on any clock that does not go back.
    """

    def __init__(
        self, local: tuple[str, int], connections: Sequence[Connection], entropy: Entropy | None = None
    ) -> None:
        self.connections = {connection.name: connection for connection in connections}
        self._local = local
        self._out: list[tuple[bytes, Path]] = []
        self._events: deque[Event] = deque()
        self._timers = Timers()
        self._phase1: OrderedDict[tuple[bytes, Path], MainMode] = OrderedDict()
        self._quick: dict[tuple[IkeSa, int], QuickMode] = {}
        self._children: dict[int, tuple[IkeSa, ChildSa]] = {}  # by our inbound SPI
        self._confirmed: set[int] = set()  # inbound SPIs of the pairs that both ends may send on
        self._context = Context(
            entropy or SystemEntropy(),
            send=lambda data, path: self._out.append((data, path)),
            emit=self._events.append,
            timers=self._timers,
            spi_in_use=self._children.__contains__,
        )

    # what the caller does

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """Take an IKE datagram that came in on `path`. Whatever it holds, it raises nothing."""
        try:
            header = parse_header(data)
            if header.exchange == ExchangeType.MAIN:
                self._on_main_mode(header, data, path, now)
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

    def initiate(self, name: str, now: float) -> None:
        """Bring a connection up, unless it is or is about to be. ValueError when nobody knows where the peer is."""
        connection = self.connections[name]
        if connection.remote is None:
            raise ValueError(f"connection {name} has no remote address: only its peers can begin it")
        self._timers.cancel(("retry", name))
        mine = [m for m in self._phase1.values() if m.sa.connection.name == name]
        if any(child.connection == name for _, child in self._children.values()):
            return
        if any(q.connection.name == name and q.state == QuickState.WAITS_FOR_2 for q in self._quick.values()):
            return
        established = next((m for m in mine if m.sa.established), None)
        if established is not None:
            self._start_quick_mode(established.sa, connection, now)
        elif not any(isinstance(m, MainModeInitiator) for m in mine):
            path = Path(*self._local, connection.remote, connection.remote_port)
            exchange = MainModeInitiator(
                self._context, connection, path, now, done=self._phase1_done, failed=self._phase1_failed
            )
            self._phase1[(exchange.sa.initiator_cookie, path)] = exchange

    def terminate(self, name: str, now: float, reason: str = "taken down here") -> None:
        """Take a connection down: delete its SAs here and at the peer."""
        self._timers.cancel(("retry", name))
        for sa, child in list(self._children.values()):
            if child.connection == name:
                if sa.established:
                    informational.send_delete_child(self._context, sa, child)
                self._drop_child(child, reason)
        for exchange in [m for m in self._phase1.values() if m.sa.connection.name == name]:
            if exchange.sa.established:
                informational.send_delete_ike(self._context, exchange.sa)
            self._drop_phase1(exchange, reason)

    def shut_down(self, now: float) -> None:
        """Take everything down."""
        for name in self.connections:
            self.terminate(name, now, "shut down here")

    def ike_sas(self) -> list[IkeSa]:
        """Phase 1 SAs, established or on their way."""
        return [exchange.sa for exchange in self._phase1.values()]

    def children(self) -> list[ChildSa]:
        """ESP SA pairs, those included that a responder accepts traffic on but has no confirmation of."""
        return [child for _, child in self._children.values()]

    def usable_children(self) -> list[ChildSa]:
        """ESP SA pairs that traffic may be sent on."""
        return [child for spi, (_, child) in self._children.items() if spi in self._confirmed]

    # what datagrams do

    def _on_main_mode(self, header: Header, data: bytes, path: Path, now: float) -> None:
        if header.message_id:
            raise ParseError("header", 20, "Main Mode has a message ID other than 0")
        exchange = self._phase1.get((header.initiator_cookie, path))
        if exchange is None:
            if any(header.responder_cookie):
                raise Refused("no such phase 1 SA")
            self._make_room()
            exchange = MainModeResponder(
                self._context,
                tuple(self.connections.values()),
                header,
                data,
                path,
                now,
                done=self._phase1_done,
                failed=self._phase1_failed,
            )
            self._phase1[(header.initiator_cookie, path)] = exchange
            return
        known = exchange.sa.responder_cookie
        if any(known) and any(header.responder_cookie) and header.responder_cookie != known:
            raise Refused("no such phase 1 SA")
        exchange.receive(header, data, now)

    def _on_quick_mode(self, header: Header, data: bytes, path: Path, now: float) -> None:
        sa = self._established(header, path).sa
        if not header.message_id:
            raise ParseError("header", 20, "Quick Mode has message ID 0")
        exchange = self._quick.get((sa, header.message_id))
        if exchange is not None:
            exchange.receive(header, data, now)
            return
        self._refuse_used(sa, header.message_id)
        exchange = QuickMode(
            self._context,
            sa,
            sa.connection,
            header.message_id,
            now,
            finished=self._quick_finished,
            failed=self._quick_failed,
        )
        try:
            exchange.respond(header, data, now)
        except PolicyRefusal as refusal:
            sa.used_message_ids.add(header.message_id)
            informational.send_refusal(self._context, sa, refusal.notify, refusal.spi)
            self._context.emit(ExchangeFailed(exchange.connection.name, path, str(refusal)))
            return
        sa.used_message_ids.add(header.message_id)
        self._quick[(sa, header.message_id)] = exchange
        self._keep_child(exchange)

    def _on_informational(self, header: Header, data: bytes, path: Path, now: float) -> None:
        if not header.encrypted:
            self._take_hint(header, data, path)
            return
        exchange = self._established(header, path)
        sa = exchange.sa
        self._refuse_used(sa, header.message_id)
        message = informational.open_protected(sa, header, data)
        sa.used_message_ids.add(header.message_id)
        informational.handle(
            message,
            sa,
            delete_child=lambda spi: self._peer_deleted(sa, spi, now),
            delete_ike=lambda: self._peer_deleted_phase1(exchange, now),
            refused=lambda spi, label: self._peer_refused(sa, spi, label, now),
        )

    def _take_hint(self, header: Header, data: bytes, path: Path) -> None:
        exchange = self._phase1.get((header.initiator_cookie, path))
        if not isinstance(exchange, MainModeInitiator) or exchange.sa.established:
            raise Refused("an unprotected notification about nothing that is under way")
        message = parse_payloads(header.next_payload, data[HEADER_OCTETS:])
        exchange.hint(message.one(Notification).notify_type)

    def _established(self, header: Header, path: Path) -> MainMode:
        exchange = self._phase1.get((header.initiator_cookie, path))
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

    def _make_room(self) -> None:
        half_open = [m for m in self._phase1.values() if isinstance(m, MainModeResponder) and not m.sa.established]
        if len(half_open) >= MAX_HALF_OPEN:
            self._drop_phase1(half_open[0], "")

    # what exchanges do

    def _start_quick_mode(self, sa: IkeSa, connection: Connection, now: float) -> None:
        message_id = self._context.message_id()
        exchange = QuickMode(
            self._context,
            sa,
            connection,
            message_id,
            now,
            finished=self._quick_finished,
            failed=self._quick_failed,
        )
        sa.used_message_ids.add(message_id)
        try:
            exchange.start(now)
        except PolicyRefusal as refusal:
            self._failed(connection, sa.path, str(refusal), now)
            return
        self._quick[(sa, message_id)] = exchange

    def _phase1_done(self, exchange: MainMode, now: float) -> None:
        sa = exchange.sa
        self._timers.set(("phase 1", sa), sa.expires, lambda later: self._phase1_expired(exchange, later))
        if sa.initiator:
            self._start_quick_mode(sa, sa.connection, now)

    def _phase1_failed(self, exchange: MainMode, reason: str, now: float) -> None:
        sa = exchange.sa
        self._drop_phase1(exchange, "")
        if sa.initiator:
            self._failed(sa.connection, sa.path, reason, now)
        else:
            self._context.emit(ExchangeFailed("", sa.path, reason))

    def _failed(self, connection: Connection, path: Path, reason: str, now: float) -> None:
        self._context.emit(ExchangeFailed(connection.name, path, reason))
        self._retry_later(connection, now)

    def _retry_later(self, connection: Connection, now: float) -> None:
        if connection.start and connection.remote is not None:
            name = connection.name
            self._timers.set(("retry", name), now + connection.retry, lambda later: self.initiate(name, later))

    def _phase1_expired(self, exchange: MainMode, now: float) -> None:
        informational.send_delete_ike(self._context, exchange.sa)
        self._drop_phase1(exchange, "lifetime ended")

    def _quick_finished(self, exchange: QuickMode, now: float) -> None:
        self._keep_child(exchange)
        self._confirmed.add(exchange.inbound_spi)

    def _keep_child(self, exchange: QuickMode) -> None:
        child = exchange.child
        assert child is not None
        self._children[child.inbound_spi] = (exchange.sa, child)
        self._timers.set(child, child.expires, lambda later: self._child_expired(child, later))

    def _quick_failed(self, exchange: QuickMode, reason: str, now: float) -> None:
        self._quick.pop((exchange.sa, exchange.message_id), None)
        exchange.abandon()
        if not reason:
            return  # it had done its work and is forgotten
        if exchange.child is not None:
            self._drop_child(exchange.child, reason)
        self._failed(exchange.connection, exchange.sa.path, reason, now)

    def _child_expired(self, child: ChildSa, now: float) -> None:
        sa, _ = self._children[child.inbound_spi]
        if sa.established:
            informational.send_delete_child(self._context, sa, child)
        self._drop_child(child, "lifetime ended")
        connection = self.connections[child.connection]
        if sa.initiator and connection.start:
            self.initiate(connection.name, now)

    # what the peer wants gone

    def _peer_deleted(self, sa: IkeSa, spi: int, now: float) -> None:
        """The peer names the SPI that it receives on, which is the one that we send with."""
        for owner, child in list(self._children.values()):
            same_peer = owner.identity == sa.identity and owner.path == sa.path  # phase 1 may have been renewed
            if same_peer and child.outbound_spi == spi:
                self._drop_child(child, "deleted by the peer")
                self._retry_later(self.connections[child.connection], now)

    def _peer_deleted_phase1(self, exchange: MainMode, now: float) -> None:
        self._drop_phase1(exchange, "deleted by the peer")

    def _peer_refused(self, sa: IkeSa, spi: bytes, label: str, now: float) -> None:
        mine = [q for (owner, _), q in self._quick.items() if owner is sa and q.state == QuickState.WAITS_FOR_2]
        named = [q for q in mine if q.inbound_spi.to_bytes(4, "big") == spi]
        if named or len(mine) == 1:
            (named or mine)[0].fail(f"the peer refused Quick Mode: {label}", now)

    def _drop_child(self, child: ChildSa, reason: str) -> None:
        self._timers.cancel(child)
        self._confirmed.discard(child.inbound_spi)
        if self._children.pop(child.inbound_spi, None) is not None:
            self._context.emit(SaDeleted(child, reason))

    def _drop_phase1(self, exchange: MainMode, reason: str) -> None:
        sa = exchange.sa
        self._phase1.pop((sa.initiator_cookie, sa.path), None)
        exchange.abandon()
        self._timers.cancel(("phase 1", sa))
        for key, quick in list(self._quick.items()):
            if quick.sa is sa:
                quick.abandon()
                del self._quick[key]
                if quick.child is not None and quick.state == QuickState.WAITS_FOR_3:
                    self._drop_child(quick.child, reason)  # never confirmed
        if sa.established:
            sa.established = False
            self._context.emit(IkeSaDeleted(sa.connection.name, sa.path, reason))

    def _refuse(self, kind: str, path: Path, reason: str) -> None:
        self._context.emit(DatagramRefused(kind, path, reason))
