"""Many IKE endpoints behind one NAT and a server, on a virtual clock, each with a model of its data plane."""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ike_world import DELAY, INITIATOR, RESPONDER, SERVER, Nat, RepeatableEntropy

from espthrunat.ike import events
from espthrunat.ike.endpoint import Endpoint
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.policy import Connection
from espthrunat.messages import Direction, Path, Selector

E = TypeVar("E")

# decides what becomes of a datagram: the delays, in seconds, of each copy that arrives
Weather = Callable[[random.Random], list[float]]


def fair(_: random.Random) -> list[float]:
    return [DELAY]


def foul(chance: random.Random) -> list[float]:
    """20 % loss, duplication and reordering."""
    copies = 0 if chance.random() < 0.2 else 2 if chance.random() < 0.2 else 1
    return [DELAY * (1 + 10 * chance.random()) for _ in range(copies)]


@dataclass
class PlaneModel:
    """What a data plane would accept and send, by what its daemon was told."""

    inbound: dict[int, Path] = field(default_factory=dict)  # SPI -> path
    outbound: dict[str, list[tuple[int, Path]]] = field(default_factory=dict)  # connection -> (SPI, path), oldest first
    keepalives: dict[Path, float] = field(default_factory=dict)

    def take(self, event: events.Event) -> None:
        match event:
            case events.SaEstablished(child, directions):
                if Direction.INBOUND in directions:
                    self.inbound[child.inbound_spi] = child.path
                if Direction.OUTBOUND in directions:
                    self.outbound.setdefault(child.connection, []).append((child.outbound_spi, child.path))
            case events.SaRetired(child):
                self._no_more(child.connection, child.outbound_spi)
            case events.SaDeleted(child):
                del self.inbound[child.inbound_spi]
                self._no_more(child.connection, child.outbound_spi)
            case events.KeepaliveWanted(path, interval):
                self.keepalives[path] = interval
                if not interval:
                    del self.keepalives[path]

    def _no_more(self, connection: str, spi: int) -> None:
        rest = [sa for sa in self.outbound.get(connection, []) if sa[0] != spi]
        self.outbound[connection] = rest
        if not rest:
            del self.outbound[connection]

    def sends_with(self, connection: str) -> tuple[int, Path] | None:
        return self.outbound[connection][-1] if connection in self.outbound else None


class Host:
    """An endpoint, its address, and everything that it said."""

    def __init__(self, address: str, connections: list[Connection], seed: int, pool: str = "") -> None:
        self.address = address
        self.connections = connections
        self.seed = seed
        self.pool = pool
        self.restart()

    def restart(self) -> None:
        """As after kill -9: nothing is remembered and nobody was told."""
        self.endpoint = Endpoint((self.address, 500), self.connections, RepeatableEntropy(self.seed), pool=self.pool)
        self.seed += 100_000
        self.plane = PlaneModel()
        self.awaited: float | None = None  # what its timer was set to the last time
        self.events: list[events.Event] = []
        self.alive = True

    def collect(self) -> list[tuple[bytes, Path]]:
        while (event := self.endpoint.next_event()) is not None:
            self.events.append(event)
            self.plane.take(event)
        return self.endpoint.datagrams_to_send() if self.alive else []

    def said(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


class Fleet:
    """Clients behind one NAT, and a server. Datagrams are counted and may be watched."""

    def __init__(
        self,
        clients: int = 1,
        *,
        weather: Weather = fair,
        seed: int = 1,
        nat: Nat | None = None,
        change: Callable[[Connection], Connection] = lambda connection: connection,
        serve: Callable[[Connection], Connection] = lambda connection: connection,
        pool: str = "",
    ) -> None:
        self.now = 0.0
        self.nat = nat or Nat()
        self.weather = weather
        self.chance = random.Random(seed)
        self.clients = [
            Host(f"192.168.{n >> 8}.{n & 255}", [change(client_connection(n))], seed * 7919 + n) for n in range(clients)
        ]
        self.server = Host(SERVER, [serve(server_connection(n)) for n in range(clients)], -1 - seed, pool)
        self.by_address = {host.address: host for host in [*self.clients, self.server]}
        self.sent: list[tuple[float, Path, bytes]] = []
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something at that time."""
        heapq.heappush(self._queue, (when, next(self._order), what))

    def connect(self, seconds: float = 5.0) -> Fleet:
        for number, client in enumerate(self.clients):
            client.endpoint.initiate(f"server{number}", self.now)
            self.flush(client)
        return self.run(seconds)

    def run(self, seconds: float) -> Fleet:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = end
        return self

    def flush(self, host: Host) -> None:
        """Send what a host has to send, and see to its next timer."""
        for data, path in host.collect():
            self.sent.append((self.now, path, data))
            for delay in self.weather(self.chance):
                self.carry(path, delay, functools.partial(self._deliver, data))
        due = host.endpoint.timer()
        if due is not None and due != host.awaited:
            host.awaited = due
            self.at(max(due, self.now), lambda: self._tick(host, due))

    def carry(self, path: Path, delay: float, arrive: Callable[[Host, Path], None]) -> None:
        """Through the NAT, `delay` seconds long."""
        to_server = path.remote == SERVER
        if to_server:
            outside = self.nat.outbound(path.local, path.local_port)
            arriving: Path | None = Path(path.remote, path.remote_port, *outside)
            self.at(self.now + delay, lambda: arrive(self.server, arriving))  # type: ignore[arg-type]
            return

        def inward() -> None:
            inside = self.nat.inbound(path.remote, path.remote_port)
            if inside is not None and inside[0] in self.by_address:
                arrive(self.by_address[inside[0]], Path(*inside, path.local, path.local_port))

        self.at(self.now + delay, inward)

    def _deliver(self, data: bytes, host: Host, path: Path) -> None:
        if host.alive:
            host.endpoint.receive_datagram(data, path, self.now)
            self.flush(host)

    def _tick(self, host: Host, due: float) -> None:
        if due == host.awaited:
            host.awaited = None
        now_due = host.endpoint.timer()
        if host.alive and now_due is not None and now_due <= self.now:
            host.endpoint.handle_timer(self.now)
            self.flush(host)

    def reboot_nat(self) -> None:
        """All mappings are forgotten; new ones get ports that were never used before."""
        self.nat.first_port += len(self.nat.ports) + 1000
        self.nat.forget()

    # what tests ask

    @property
    def up(self) -> int:
        """How many clients can talk to the server, both ways, by what both data planes were told."""
        return sum(self.passes(number, True) and self.passes(number, False) for number in range(len(self.clients)))

    def passes(self, number: int, to_server: bool) -> bool:
        """Whether a packet that is sent now would be accepted if it arrived at once."""
        client, server = self.clients[number], self.server
        here, there = (client, server) if to_server else (server, client)
        sa = here.plane.sends_with(f"server{number}" if to_server else f"client{number}")
        if sa is None:
            return False
        spi, path = sa
        if to_server:
            arriving: Path | None = Path(path.remote, path.remote_port, *self.nat.outbound(path.local, path.local_port))
        else:
            inside = self.nat.inbound(path.remote, path.remote_port)
            arriving = Path(*inside, path.local, path.local_port) if inside else None
        return arriving is not None and there.plane.inbound.get(spi) == arriving


@dataclass
class Stream:
    """Numbered packets in both directions of a client's connection: what was sent, and what was not accepted."""

    fleet: Fleet
    number: int = 0
    interval: float = 0.002
    sent: int = 0
    lost: list[tuple[float, str]] = field(default_factory=list)

    def start(self, seconds: float) -> Stream:
        end = self.fleet.now + seconds
        self._step(end)
        return self

    def _step(self, end: float) -> None:
        client, server = self.fleet.clients[self.number], self.fleet.server
        for sender, receiver, name in (
            (client, server, f"server{self.number}"),
            (server, client, f"client{self.number}"),
        ):
            self.sent += 1
            sa = sender.plane.sends_with(name)
            if sa is None:
                self.lost.append((self.fleet.now, f"{name}: nothing to send with"))
                continue
            spi, path = sa

            def arrive(host: Host, arriving: Path, spi: int = spi, name: str = name, who: Host = receiver) -> None:
                if host.plane.inbound.get(spi) != arriving:
                    self.lost.append((self.fleet.now, f"{name}: 0x{spi:08x} from {arriving} is not accepted"))
                else:
                    host.endpoint.sa_used(spi, self.fleet.now)
                    self.fleet.flush(host)

            self.fleet.carry(path, DELAY, arrive)
        if self.fleet.now + self.interval < end:
            self.fleet.at(self.fleet.now + self.interval, lambda: self._step(end))


def client_connection(number: int) -> Connection:
    return replace(
        INITIATOR,
        name=f"server{number}",
        local_identity=Identity.from_text(f"client{number}.example"),
        selector=Selector(f"10.1.{number >> 8}.{number & 255}/32", "10.99.0.1/32"),
    )


def server_connection(number: int) -> Connection:
    return replace(
        RESPONDER,
        name=f"client{number}",
        remote_identity=IdentityPattern(f"client{number}.example"),
        selector=Selector("10.99.0.1/32", f"10.1.{number >> 8}.{number & 255}/32"),
    )
