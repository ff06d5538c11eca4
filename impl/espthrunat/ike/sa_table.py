"""The SAs of an endpoint, and every way in which they are looked up. Nothing is sent or timed here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import msgspec

from ..messages import Mode, Path, Selector
from ..wire.isakmp import Header
from .child_sa import ChildSa
from .identity import Identity
from .ike_sa import IkeSa

K = TypeVar("K")


class Phase1(Protocol):
    """A Main or Aggressive Mode, under way or done; it stands for its SA."""

    sa: IkeSa

    def receive(self, header: Header, datagram: bytes, now: float) -> None:
        """Take a message of this exchange."""

    def abandon(self) -> None:
        """Stop without a word."""


@dataclass(eq=False, slots=True)
class Pair:
    """A pair of ESP SAs in its life: made under `sa`, which may be gone before it."""

    child: ChildSa
    sa: IkeSa
    since: float
    confirmed: bool = False  # both ends may send
    retired: bool = False  # replaced: nothing is sent on it any more
    replacing: bool = False  # an exchange that shall replace it is under way

    @property
    def usable(self) -> bool:
        """Whether traffic may be sent on it."""
        return self.confirmed and not self.retired

    @property
    def spi(self) -> int:
        """The inbound SPI, which is ours alone."""
        return self.child.inbound_spi

    @property
    def traffic(self) -> tuple[str, Path, Selector, Mode]:
        """What it is for: pairs with one peer that agree in this could stand in for each other."""
        return self.child.connection, self.child.path, self.child.selector, self.child.mode


class Phase1Table:
    """Phase 1 exchanges by initiator cookie and path, established ones by the peer's identity too."""

    def __init__(self) -> None:
        self._all: OrderedDict[tuple[bytes, Path], Phase1] = OrderedDict()
        self._half_open: OrderedDict[IkeSa, Phase1] = OrderedDict()  # a peer's, oldest first
        self._by_identity: dict[Identity, list[Phase1]] = {}
        self._since: dict[IkeSa, float] = {}

    def __iter__(self) -> Iterator[Phase1]:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def add(self, exchange: Phase1) -> None:
        """Keep an exchange that has begun."""
        sa = exchange.sa
        self._all[(sa.initiator_cookie, sa.path)] = exchange
        if not sa.initiator and not sa.established:
            self._half_open[sa] = exchange

    def established(self, exchange: Phase1, now: float) -> None:
        """The peer has proven who it is."""
        sa = exchange.sa
        self._since[sa] = now
        assert sa.identity is not None
        self._half_open.pop(sa, None)
        self._by_identity.setdefault(sa.identity, []).append(exchange)

    def since(self, exchange: Phase1) -> float:
        """When it was established, on the caller's clock."""
        return self._since[exchange.sa]

    def remove(self, exchange: Phase1) -> bool:
        """Forget an exchange; whether it was there."""
        sa = exchange.sa
        self._since.pop(sa, None)
        self._half_open.pop(sa, None)
        if sa.identity is not None:
            rest = [e for e in self._by_identity.get(sa.identity, ()) if e is not exchange]
            if rest:
                self._by_identity[sa.identity] = rest
            else:
                self._by_identity.pop(sa.identity, None)
        key = (sa.initiator_cookie, sa.path)
        return self._all.get(key) is exchange and self._all.pop(key) is exchange

    def find(self, cookie: bytes, path: Path) -> Phase1 | None:
        """The exchange of a message."""
        return self._all.get((cookie, path))

    def find_by_cookies(self, initiator: bytes, responder: bytes) -> Phase1 | None:
        """The established SA with these cookies, wherever its peer is; slow, for peers that may move."""
        for exchange in self._all.values():
            sa = exchange.sa
            if sa.established and (sa.initiator_cookie, sa.responder_cookie) == (initiator, responder):
                return exchange
        return None

    def oldest_half_open(self, limit: int) -> Phase1 | None:
        """What must go before there is room for another, if anything."""
        return next(iter(self._half_open.values())) if len(self._half_open) >= limit else None

    def of(self, identity: Identity | None, path: Path | None = None) -> list[Phase1]:
        """Established SAs with this peer, oldest first; on one path only if one is given."""
        mine = self._by_identity.get(identity, []) if identity is not None else []
        return [e for e in mine if e.sa.established and path in (None, e.sa.path)]

    def replaced(self, sa: IkeSa) -> bool:
        """Whether a phase 1 that began when this one was up is up too: then this one will soon be gone."""
        since = self._since.get(sa)
        return since is not None and any(other.sa.started > since for other in self.of(sa.identity, sa.path))

    def move(self, exchange: Phase1, path: Path) -> None:
        """The peer has gone elsewhere."""
        sa = exchange.sa
        if self._all.pop((sa.initiator_cookie, sa.path), None) is not None:
            sa.path = path
            self._all[(sa.initiator_cookie, path)] = exchange


class PairTable:
    """Pairs of ESP SAs by inbound SPI, and by the peer's identity."""

    def __init__(self) -> None:
        self._all: dict[int, Pair] = {}
        self._by_identity: dict[Identity | None, dict[int, Pair]] = {}
        self._by_path: dict[Path, int] = {}
        self._tunnels: dict[str, dict[int, Pair]] = {}  # by remote network

    def __iter__(self) -> Iterator[Pair]:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, spi: object) -> bool:
        return spi in self._all

    def add(self, pair: Pair) -> None:
        """Keep a pair."""
        self._all[pair.spi] = pair
        self._by_identity.setdefault(pair.sa.identity, {})[pair.spi] = pair
        if _takes_its_network(pair):
            self._tunnels.setdefault(pair.child.selector.remote, {})[pair.spi] = pair
        self._count(pair.child.path, 1)

    def remove(self, pair: Pair) -> bool:
        """Forget a pair; whether it was there."""
        if self._all.pop(pair.spi, None) is None:
            return False
        _forget(self._by_identity, pair.sa.identity, pair)
        if _takes_its_network(pair):
            _forget(self._tunnels, pair.child.selector.remote, pair)
        self._count(pair.child.path, -1)
        return True

    def get(self, spi: int) -> Pair | None:
        """By inbound SPI."""
        return self._all.get(spi)

    def find_outbound(self, spi: int) -> Pair | None:
        """By the SPI that we send with, which is the peer's choice and so need not be unique; slow."""
        return next((pair for pair in self._all.values() if pair.child.outbound_spi == spi), None)

    def of(self, identity: Identity | None, path: Path | None = None) -> list[Pair]:
        """Pairs with this peer, oldest first; on one path only if one is given."""
        mine = self._by_identity.get(identity, {})
        return [pair for pair in mine.values() if path in (None, pair.child.path)]

    def named(self, connection: str) -> list[Pair]:
        """Pairs of a connection."""
        return [pair for pair in self._all.values() if pair.child.connection == connection]

    def holder(self, identity: Identity, selector: Selector) -> str:
        """Which other peer has a tunnel that this traffic could go into; empty if none has (the draft, 7)."""
        for pair in self._tunnels.get(selector.remote, {}).values():
            peer = pair.sa.identity
            if peer is not None and peer != identity and _meet(pair.child.selector, selector):
                return peer.text
        return ""

    def on_path(self, path: Path) -> bool:
        """Whether any pair runs over the path."""
        return path in self._by_path

    def move(self, pair: Pair, path: Path) -> None:
        """The peer has gone elsewhere."""
        child = pair.child
        self._count(child.path, -1)
        selector = child.selector
        if child.mode == Mode.TRANSPORT:  # the traffic's addresses are those of the path
            selector = msgspec.structs.replace(selector, remote=f"{path.remote}/32")
        pair.child = replace(child, path=path, selector=selector)
        self._count(path, 1)

    def _count(self, path: Path, change: int) -> None:
        count = self._by_path.get(path, 0) + change
        if count:
            self._by_path[path] = count
        else:
            del self._by_path[path]


def _takes_its_network(pair: Pair) -> bool:
    """Whether nobody else can have the remote network, as packets are sent to it from here."""
    return pair.child.mode == Mode.TUNNEL and not pair.child.mapped


def _forget(index: dict[K, dict[int, Pair]], key: K, pair: Pair) -> None:
    mine = index[key]
    del mine[pair.spi]
    if not mine:
        del index[key]


def _meet(one: Selector, other: Selector) -> bool:
    """Whether a packet to the same remote network can belong to both; local networks are taken to overlap."""
    pairs = (
        (one.protocol, other.protocol),
        (one.local_port, other.local_port),
        (one.remote_port, other.remote_port),
    )
    return all(a == b or not a or not b for a, b in pairs)
