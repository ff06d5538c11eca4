"""The SAs and policies of a plane, and how a packet finds its own (the draft, 4.4 and 5; RFC 2401, 4.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..esp.policy import PolicyTable, Selectors
from ..esp.sa import InboundSa, OutboundSa
from ..esp.suites import SUITES
from ..messages import AddSa, DeleteSa, Direction, Encapsulation, Path, SaStats
from ..wire.ip import IpHeader

Address = tuple[str, int]  # IPv4 address and UDP port, as sockets give them; port 0 for bare ESP
InboundKey = tuple[int, Address, Address]  # SPI, remote, local


@dataclass(eq=False)
class Inbound:
    """An inbound SA, with the path that its packets must come by and the traffic that they may carry."""

    sa: InboundSa
    path: Path
    selectors: Selectors


@dataclass(eq=False)
class Outbound:
    """An outbound SA, with where its packets go and the traffic that they may carry."""

    sa: OutboundSa
    path: Path
    encapsulation: Encapsulation
    selectors: Selectors
    policy: str
    told_soft: bool = False  # the daemon knows that this SA must be replaced
    remote: Address = field(init=False)

    def __post_init__(self) -> None:
        port = self.path.remote_port if self.encapsulation is Encapsulation.UDP else 0
        self.remote = (self.path.remote, port)


def _inbound_key(spi: int, path: Path, encapsulation: Encapsulation) -> InboundKey:
    if encapsulation is Encapsulation.UDP:
        return spi, (path.remote, path.remote_port), (path.local, path.local_port)
    return spi, (path.remote, 0), (path.local, 0)


class SaDatabase:
    """Inbound SAs by SPI, remote and local end; outbound SAs by policy, the newest first to be used."""

    def __init__(self) -> None:
        self.policies = PolicyTable()
        self._inbound: dict[InboundKey, Inbound] = {}
        self._inbound_spis: dict[int, int] = {}  # how many inbound SAs have the SPI
        self._outbound: dict[str, list[Outbound]] = {}  # of a policy, oldest first

    def add(self, message: AddSa) -> None:
        """Use an SA from now on. Raises ValueError that names what is wrong with it."""
        suite = SUITES.get(message.suite)
        if suite is None:
            raise ValueError(f"unknown ESP suite {message.suite!r}")
        selectors = Selectors.of(message.selector)
        if message.direction is Direction.INBOUND:
            key = _inbound_key(message.spi, message.path, message.encapsulation)
            sa = InboundSa(message.spi, suite, message.keymat)
            if key not in self._inbound:
                self._inbound_spis[message.spi] = self._inbound_spis.get(message.spi, 0) + 1
            self._inbound[key] = Inbound(sa, message.path, selectors)
        else:
            outbound = Outbound(
                OutboundSa(message.spi, suite, message.keymat),
                message.path,
                message.encapsulation,
                selectors,
                message.policy,
            )
            self._outbound.setdefault(message.policy, []).append(outbound)

    def delete(self, message: DeleteSa) -> None:
        """Forget an SA, if it is there. Of a policy's outbound SAs the newest that is left is used."""
        if message.direction is Direction.INBOUND:
            for encapsulation in Encapsulation:
                if self._inbound.pop(_inbound_key(message.spi, message.path, encapsulation), None) is None:
                    continue
                self._inbound_spis[message.spi] -= 1
                if not self._inbound_spis[message.spi]:
                    del self._inbound_spis[message.spi]
        else:
            for outbound in list(self.outbound()):
                if outbound.sa.spi == message.spi and outbound.path == message.path:
                    self.remove(outbound)

    def remove(self, outbound: Outbound) -> None:
        """Forget an outbound SA, if it is there."""
        rest = [other for other in self._outbound.get(outbound.policy, ()) if other is not outbound]
        if rest:
            self._outbound[outbound.policy] = rest
        else:
            self._outbound.pop(outbound.policy, None)

    def find_inbound(self, spi: int, remote: Address, local: Address) -> Inbound | None:
        """The SA of an ESP packet that came from `remote` to `local`: an SA does not move with forged outer headers."""
        return self._inbound.get((spi, remote, local))

    def knows_inbound_spi(self, spi: int) -> bool:
        """Whether some inbound SA has the SPI, whatever its path."""
        return spi in self._inbound_spis

    def find_outbound(self, policy: str, header: IpHeader) -> Outbound | None:
        """The newest SA of `policy` that may carry the packet."""
        for outbound in reversed(self._outbound.get(policy, ())):
            if outbound.selectors.matches_outbound(header):
                return outbound
        return None

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
