"""The SAs and policies of a plane, and how a packet finds its own (the draft, 4.4 and 5; RFC 2401, 4.4)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from ..esp.policy import PolicyTable, Selectors, parse_network
from ..esp.sa import InboundSa, OutboundSa
from ..esp.suites import SUITES
from ..messages import AddSa, DeleteSa, Direction, Encapsulation, Mode, Path, SaStats
from ..wire.ip import IPV4, MAX_OCTETS, IpHeader
from .flows import Flows
from .mapping import Mapping

Address = tuple[str, int]  # IPv4 address and UDP port, as sockets give them; port 0 for bare ESP
InboundKey = tuple[int, Address, Address]  # SPI, remote, local
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Limits:
    """After how many octets of inner packets an SA must be replaced, and when it ends; 0 for never."""

    soft: int
    hard: int


@dataclass(eq=False)
class Inbound:
    """An inbound SA, with the path that its packets must come by and the traffic that they may carry."""

    sa: InboundSa
    path: Path
    encapsulation: Encapsulation
    mode: Mode
    selectors: Selectors
    policy: str
    limits: Limits
    rebinding: bool
    mapping: Mapping | None = None  # of the inner packets' sources, after they were checked
    old_path: Path | None = None  # before the peer moved, which the daemon may not know yet
    told_used: bool = False
    told_soft: bool = False
    is_limited: bool = field(init=False)  # its octets are to be watched
    # Transport mode: the addresses of the host's own packets. They stay when the peer moves, as its connections do.
    remote_address: bytes = field(init=False)
    local_address: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.is_limited = bool(self.limits.soft or self.limits.hard)
        self.remote_address = socket.inet_aton(self.path.remote)
        self.local_address = socket.inet_aton(self.path.local)


@dataclass(eq=False)
class Outbound:
    """An outbound SA, with where its packets go and the traffic that they may carry."""

    sa: OutboundSa
    path: Path
    encapsulation: Encapsulation
    mode: Mode
    selectors: Selectors
    policy: str
    limits: Limits
    mapping: Mapping | None = None  # of the inner packets' destinations; the selectors are those before it
    old_path: Path | None = None
    told_soft: bool = False  # the daemon knows that this SA must be replaced
    path_mtu: int = MAX_OCTETS
    room: int = MAX_OCTETS  # octets of the largest inner packet that the path carries
    remote: Address = field(init=False)
    is_unlimited: bool = field(init=False)  # sends in UDP, and its octets need not be watched

    def __post_init__(self) -> None:
        self.remote = self._remote()
        self.is_unlimited = self.encapsulation is Encapsulation.UDP and not self.limits.soft and not self.limits.hard

    @property
    def is_free(self) -> bool:
        """Whether it sends in UDP with no end in sight: neither octets nor sequence numbers are to be watched."""
        return self.is_unlimited and not self.sa.needs_replacement

    def move(self, path: Path) -> None:
        """Send to where `path` leads from now on."""
        self.old_path, self.path = self.path, path
        self.remote = self._remote()

    def _remote(self) -> Address:
        return self.path.remote, self.path.remote_port if self.encapsulation is Encapsulation.UDP else 0


def _inbound_key(spi: int, path: Path, encapsulation: Encapsulation) -> InboundKey:
    if encapsulation is Encapsulation.UDP:
        return spi, (path.remote, path.remote_port), (path.local, path.local_port)
    return spi, (path.remote, 0), (path.local, 0)


class SaDatabase:
    """Inbound SAs by SPI, remote and local end; outbound SAs by policy, the newest first to be used.

    `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.routes: dict[bytes, Outbound] = {}
        """Empty whenever a packet may find another outbound SA than before; for who keeps what was found."""
        self.accepted: dict[bytes, Inbound] = {}
        """Empty whenever an inbound SA has gone; for who keeps what flows it has let in. No keys outlive their SA."""
        self.policies = PolicyTable(self.routes.clear)
        self.flows = Flows(self._leads_to, clock)  # of transport mode
        self._inbound: dict[InboundKey, Inbound] = {}
        self._by_spi: dict[int, list[Inbound]] = {}
        self._outbound: dict[str, list[Outbound]] = {}  # of a policy, oldest first
        self._on_path: dict[Path, list[Outbound]] = {}  # those of transport mode, of any policy

    def add(self, message: AddSa) -> Outbound | None:
        """Use an SA from now on; an outbound one is returned. Raises ValueError that names what is wrong with it."""
        suite = SUITES.get(message.suite)
        if suite is None:
            raise ValueError(f"unknown ESP suite {message.suite!r}")
        selectors = Selectors.of(message.selector)
        mapping: Mapping | None = None
        if message.mapped:
            if message.mode is not Mode.TUNNEL:
                raise ValueError("inner addresses are translated in tunnel mode only")
            mapping = Mapping(message.selector.remote, message.mapped)
        limits = Limits(message.soft_octets, message.hard_octets)
        path, encapsulation, mode, policy = message.path, message.encapsulation, message.mode, message.policy
        for address in (path.remote, path.local):
            parse_network(address)
        if message.direction is Direction.INBOUND:
            next_header = IPV4 if mode is Mode.TUNNEL else None
            sa = InboundSa(message.spi, suite, message.keymat, next_header=next_header)
            key = _inbound_key(message.spi, path, encapsulation)
            self._remove_key(key)
            self._inbound[key] = inbound = Inbound(
                sa, path, encapsulation, mode, selectors, policy, limits, message.rebinding, mapping
            )
            self._by_spi.setdefault(message.spi, []).append(inbound)
            return None
        self.routes.clear()
        out = OutboundSa(message.spi, suite, message.keymat)
        if mapping is not None:
            selectors = Selectors.of(msgspec.structs.replace(message.selector, remote=message.mapped))
        outbound = Outbound(out, path, encapsulation, mode, selectors, policy, limits, mapping)
        self._outbound.setdefault(policy, []).append(outbound)
        if mode is Mode.TRANSPORT:
            self._on_path.setdefault(path, []).append(outbound)
        return outbound

    def delete(self, message: DeleteSa) -> None:
        """Forget an SA, if it is there. Of a policy's outbound SAs the newest that is left is used."""
        if message.direction is Direction.INBOUND:
            for inbound in self._by_spi.get(message.spi, ()):
                if message.path in (inbound.path, inbound.old_path):
                    self.remove_inbound(inbound)
        else:
            for outbound in list(self.outbound()):
                if outbound.sa.spi == message.spi and message.path in (outbound.path, outbound.old_path):
                    self.remove(outbound)

    def remove(self, outbound: Outbound) -> None:
        """Forget an outbound SA, if it is there."""
        self.routes.clear()
        _remove(self._outbound, outbound.policy, outbound)
        _remove(self._on_path, outbound.path, outbound)

    def remove_inbound(self, inbound: Inbound) -> None:
        """Forget an inbound SA, if it is there."""
        self._remove_key(_inbound_key(inbound.sa.spi, inbound.path, inbound.encapsulation))

    def move(self, inbound: Inbound, new: Path) -> None:
        """The peer of `inbound` is at `new` now: it, and the outbound SAs to where it was, have that path."""
        old = inbound.path
        self.remove_inbound(inbound)
        inbound.old_path, inbound.path = old, new
        self._inbound[_inbound_key(inbound.sa.spi, new, inbound.encapsulation)] = inbound
        self._by_spi.setdefault(inbound.sa.spi, []).append(inbound)
        for outbounds in self._outbound.values():
            for outbound in outbounds:
                if outbound.path == old:
                    outbound.move(new)
        moved = self._on_path.pop(old, [])
        if moved:
            self._on_path.setdefault(new, []).extend(moved)
        self.flows.moved(old, new)

    def move_from(self, spi: int, old: Path, new: Path) -> bool:
        """Move the inbound SA with that SPI which is at `old`, if there is one; whether there was."""
        found = [inbound for inbound in self._by_spi.get(spi, ()) if inbound.path == old]
        for inbound in found:
            self.move(inbound, new)
        return bool(found)

    def find_inbound(self, spi: int, remote: Address, local: Address) -> Inbound | None:
        """The SA of an ESP packet that came from `remote` to `local`: an SA does not move with forged outer headers."""
        return self._inbound.get((spi, remote, local))

    @property
    def receives(self) -> bool:
        """Whether there is any inbound SA."""
        return bool(self._inbound)

    def knows_inbound_spi(self, spi: int) -> bool:
        """Whether some inbound SA has the SPI, whatever its path."""
        return spi in self._by_spi

    def rebinding(self, spi: int, local: Address) -> list[Inbound]:
        """The inbound SAs that an ESP packet from an unexpected remote end could belong to."""
        return [
            inbound
            for inbound in self._by_spi.get(spi, ())
            if inbound.rebinding
            and inbound.encapsulation is Encapsulation.UDP
            and local == (inbound.path.local, inbound.path.local_port)
        ]

    def find_outbound(self, policy: str, header: IpHeader) -> Outbound | None:
        """The newest SA of `policy` that may carry the packet."""
        return _newest(self._outbound.get(policy, ()), header)

    def expects(self, policy: str, header: IpHeader) -> bool:
        """Whether an inbound SA of `policy` is there whose traffic the packet would answer."""
        return any(
            inbound.policy == policy and (inbound.mapping is not None or inbound.selectors.matches_outbound(header))
            for inbound in self._inbound.values()
        )

    def find_on_path(self, path: Path, header: IpHeader) -> Outbound | None:
        """The newest SA of transport mode on `path`, of whatever policy, that may carry the packet."""
        return _newest(self._on_path.get(path, ()), header)

    def _leads_to(self, path: Path) -> bool:
        return path in self._on_path

    def outbound(self) -> Iterator[Outbound]:
        """All outbound SAs."""
        for outbounds in self._outbound.values():
            yield from outbounds

    def stats(self) -> list[SaStats]:
        """The counters of all SAs."""
        halves: list[tuple[Direction, Inbound | Outbound]] = [
            *((Direction.INBOUND, inbound) for inbound in self._inbound.values()),
            *((Direction.OUTBOUND, outbound) for outbound in self.outbound()),
        ]
        return [
            SaStats(
                half.sa.spi,
                direction,
                half.path,
                half.sa.suite.name,
                half.sa.packets,
                half.sa.octets,
                dict(half.sa.dropped),
            )
            for direction, half in halves
        ]

    def _remove_key(self, key: InboundKey) -> None:
        inbound = self._inbound.pop(key, None)
        if inbound is not None:
            self.accepted.clear()
            _remove(self._by_spi, inbound.sa.spi, inbound)


def _newest(outbounds: Sequence[Outbound], header: IpHeader) -> Outbound | None:
    return next((outbound for outbound in reversed(outbounds) if outbound.selectors.matches_outbound(header)), None)


def _remove(lists: dict[K, list[V]], key: K, value: V) -> None:
    """Take `value` out of the list at `key`, if it is there; no list stays empty."""
    rest = [other for other in lists.get(key, ()) if other is not value]
    if rest:
        lists[key] = rest
    else:
        lists.pop(key, None)
