"""Two IKE endpoints, a NAT between them and a clock, all without network: what tests of exchanges run in."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from espthrunat.esp.suites import SUITES
from espthrunat.ike import events, groups
from espthrunat.ike.child_sa import ChildSa
from espthrunat.ike.endpoint import Endpoint
from espthrunat.ike.groups import Group, PrivateKey
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.policy import Connection, IkeSuite, Retransmission, Secret
from espthrunat.messages import Direction, Path, Selector

CLIENT = "192.168.1.11"
SERVER = "203.0.113.18"
PUBLIC = "203.0.113.2"
DELAY = 0.01  # seconds, one way


class RepeatableEntropy:
    """Randomness that is the same in every run."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def private_key(self, group: Group) -> PrivateKey:
        return groups.from_private_value(group, self._random.getrandbits(255) | 1)


INITIATOR = Connection(
    name="server",
    remote=SERVER,
    local_identity=Identity.from_text("client1.example"),
    remote_identity=IdentityPattern("server.example"),
    secret=Secret(b"a key for tests"),
    ike_suites=(IkeSuite.from_name("aes128-sha256-ecp256"),),
    esp_suites=(SUITES["aes128gcm16"],),
    selector=Selector(f"{CLIENT}/32", "10.99.0.1/32"),
    retransmission=Retransmission(first=0.5, factor=2.0, tries=5),
)
RESPONDER = replace(
    INITIATOR,
    name="client1",
    remote=None,
    local_identity=Identity.from_text("server.example"),
    remote_identity=IdentityPattern("client1.example"),
    selector=Selector("10.99.0.1/32", f"{CLIENT}/32"),
)


@dataclass
class Nat:
    """Address and port translation of everything that leaves `inside`; None for a plain router."""

    public: str | None = PUBLIC
    first_port: int = 1024
    ports: dict[tuple[str, int], int] = field(default_factory=dict)
    _inside: dict[int, tuple[str, int]] = field(default_factory=dict)  # the same, by port

    def outbound(self, address: str, port: int) -> tuple[str, int]:
        if self.public is None:
            return address, port
        mapped = self.ports.setdefault((address, port), self.first_port + len(self.ports))
        self._inside[mapped] = (address, port)
        return self.public, mapped

    def inbound(self, address: str, port: int) -> tuple[str, int] | None:
        if self.public is None:
            return address, port
        if address != self.public:
            return None
        return self._inside.get(port)

    def forget(self) -> None:
        """All mappings."""
        self.ports.clear()
        self._inside.clear()


# decides what becomes of the n-th datagram: the delays, in seconds, of each copy that arrives
Fate = Callable[[int, bytes, bool], list[tuple[float, bytes]]]


def intact(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
    return [(DELAY, data)]


class World:
    """A client and a server endpoint, joined through a NAT by a wire that does to datagrams what `fate` says."""

    def __init__(
        self,
        initiator: Connection = INITIATOR,
        responder: Connection = RESPONDER,
        *,
        nat: Nat | None = None,
        fate: Fate = intact,
        seed: int = 1,
    ) -> None:
        self.now = 0.0
        self.nat = nat or Nat()
        self.fate = fate
        self.client = Endpoint((CLIENT, 500), [initiator], RepeatableEntropy(seed))
        self.server = Endpoint((SERVER, 500), [responder], RepeatableEntropy(seed + 1))
        self.client_events: list[events.Event] = []
        self.server_events: list[events.Event] = []
        self.wire: list[tuple[bytes, bool]] = []  # everything that was sent, and whether to the server
        self._count = itertools.count()
        self._order = itertools.count()
        self._arrivals: list[tuple[float, int, bytes, Path, bool]] = []

    def connect(self, seconds: float = 60.0) -> World:
        self.client.initiate("server", self.now)
        return self.run(seconds)

    def run(self, seconds: float) -> World:
        """Let time pass until nothing is left to do, or `seconds` have gone by."""
        end = self.now + seconds
        while True:
            self._collect()
            due = [t for t in (self.client.timer(), self.server.timer()) if t is not None]
            if self._arrivals:
                due.append(self._arrivals[0][0])
            if not due or min(due) > end:
                self.now = end
                return self
            self.now = max(self.now, min(due))
            while self._arrivals and self._arrivals[0][0] <= self.now:
                _, _, data, path, to_server = heapq.heappop(self._arrivals)
                (self.server if to_server else self.client).receive_datagram(data, path, self.now)
                self._collect()
            self.client.handle_timer(self.now)
            self.server.handle_timer(self.now)

    def inject(self, data: bytes, *, to_server: bool) -> None:
        """Let a datagram arrive as if it came on the flow of the exchange."""
        outside = self.nat.outbound(CLIENT, 500)
        path = Path(SERVER, 500, *outside) if to_server else Path(CLIENT, 500, SERVER, 500)
        (self.server if to_server else self.client).receive_datagram(data, path, self.now)
        self._collect()

    def _collect(self) -> None:
        for endpoint, log, to_server in (
            (self.client, self.client_events, True),
            (self.server, self.server_events, False),
        ):
            while (event := endpoint.next_event()) is not None:
                log.append(event)
            for data, path in endpoint.datagrams_to_send():
                self.wire.append((data, to_server))
                arriving = self._translate(path, to_server)
                if arriving is None:
                    continue
                for delay, copy in self.fate(next(self._count), data, to_server):
                    heapq.heappush(self._arrivals, (self.now + delay, next(self._order), copy, arriving, to_server))

    def _translate(self, path: Path, to_server: bool) -> Path | None:
        if to_server:
            return Path(path.remote, path.remote_port, *self.nat.outbound(path.local, path.local_port))
        inside = self.nat.inbound(path.remote, path.remote_port)
        return None if inside is None else Path(*inside, path.local, path.local_port)

    # what tests ask

    @property
    def up(self) -> bool:
        """Both ends have the same one pair of SAs, keys included, and both may send."""
        try:
            here, there = self.client_sa(), self.server_sa()
        except AssertionError:
            return False
        return (
            here.inbound_spi == there.outbound_spi
            and here.outbound_spi == there.inbound_spi
            and here.inbound_keymat == there.outbound_keymat
            and here.outbound_keymat == there.inbound_keymat
            and self.may_send(self.client_events, here)
            and self.may_send(self.server_events, there)
        )

    @staticmethod
    def may_send(log: list[events.Event], child: ChildSa) -> bool:
        return any(
            isinstance(e, events.SaEstablished) and e.child == child and Direction.OUTBOUND in e.directions for e in log
        )

    def client_sa(self) -> ChildSa:
        assert len(self.client.children()) == 1, f"client has {len(self.client.children())} SA pairs"
        return self.client.children()[0]

    def server_sa(self) -> ChildSa:
        assert len(self.server.children()) == 1, f"server has {len(self.server.children())} SA pairs"
        return self.server.children()[0]

    def reasons(self, log: list[events.Event]) -> str:
        failures = (events.AuthenticationFailed, events.ExchangeFailed, events.DatagramRefused)
        return "; ".join(e.reason for e in log if isinstance(e, failures))
