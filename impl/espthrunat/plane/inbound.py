"""The way in: datagrams from the wire become IKE for the daemon, or inner packets for the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..esp.sa import Drop
from ..messages import Direction, Expire, Mode, Path, Rebound, Used
from ..wire.ip import MAX_OCTETS, MIN_OCTETS, TCP, UDP, parse_ipv4
from ..wire.udp import ESP_MARKER, Kind, classify
from . import bulk, transport
from .arrivals import Arrival
from .channel import Channel
from .counters import Count, Counters
from .keepalive import Keepalives
from .lone import LoneReceiver
from .path_mtu import clamped
from .sadb import Address, Inbound, SaDatabase
from .super_packet import CHECKSUM_OFFSETS
from .tun import Tun
from .vnet import unverified

if TYPE_CHECKING:
    from .bulk_in import BulkOpener

_SPI_OCTETS = 4
_FEWEST = 4  # datagrams that may be worth a batch
_MARKER_OCTETS = len(ESP_MARKER)
_UNVERIFIED = {protocol: unverified(MIN_OCTETS, CHECKSUM_OFFSETS[protocol]) for protocol in (TCP, UDP)}


class InboundFlow:
    """Takes batches from the sockets. What is wrong with one packet costs that packet only."""

    def __init__(
        self, sadb: SaDatabase, tun: Tun, channel: Channel, counters: Counters, keepalives: Keepalives
    ) -> None:
        self._sadb = sadb
        self._tun = tun
        self._channel = channel
        self._counters = counters
        self._keepalives = keepalives
        self.mtu = MAX_OCTETS  # of what goes the other way: opened connections are told
        self._lone = LoneReceiver(sadb, tun, self.refuse, self._allowed)
        self._bulk: BulkOpener | None = None

    def arrivals(self, arrivals: Sequence[Arrival], local: Address) -> None:
        """Deal with what a UDP socket received at `local`."""
        if len(arrivals) == 1 and arrivals[0].count == 1:
            (datagram,) = arrivals[0].datagrams()
            self.lone(datagram, arrivals[0].remote, local)
            return
        few: list[tuple[bytes, Address]] = []
        for arrival in arrivals:
            if arrival.count < _FEWEST or not self._sadb.receives or not bulk.is_ready():
                few += [(datagram, arrival.remote) for datagram in arrival.datagrams()]
                continue
            if few:
                self.datagrams(few, local)
                few = []
            self._opener().arrival(arrival, local)
        if few:
            self.datagrams(few, local)

    def lone(self, datagram: bytes, remote: Address, local: Address) -> None:
        """Deal with a datagram that came alone, as far as is known."""
        if not self._lone.take(datagram, remote, local):
            self.datagrams([(datagram, remote)], local)

    def _opener(self) -> BulkOpener:
        if self._bulk is None:
            # Not imported above: see bulk.py.
            from .bulk_in import BulkOpener

            self._bulk = BulkOpener(self._sadb, self._tun, self)
        return self._bulk

    def datagrams(self, received: Sequence[tuple[bytes, Address]], local: Address) -> None:
        """Deal with UDP datagrams that arrived at `local`, by the rules of the draft, 3.2 and 4.3."""
        ike: list[tuple[Path, bytes]] = []
        esp: list[tuple[bytes, Address]] = []
        for datagram, remote in received:
            kind = classify(datagram)
            if kind is Kind.ESP:
                esp.append((datagram[_MARKER_OCTETS:], remote))
            elif kind is Kind.IKE:
                ike.append((Path(*local, *remote), datagram))
            elif kind is Kind.KEEPALIVE:
                self._counters.add(Count.KEEPALIVE_IN)
            else:
                self._counters.drop(Count.DROP_JUNK, f"{len(datagram)} octets from {remote[0]} port {remote[1]}")
        if esp:
            self.esp_packets(esp, local)
        if ike:
            self._channel.send_datagrams(ike)

    def esp_packets(self, received: Sequence[tuple[bytes, Address]], local: Address) -> None:
        """Open ESP packets and hand what is in them to the kernel.

        No packet makes an SA (SA-4). Only an authentic and fresh one moves an SA, and only one that may move (SEC-4).
        """
        batches: dict[Inbound, list[bytes]] = {}
        for packet, remote in received:
            inbound = self._find(packet, remote, local)
            if inbound is not None:
                batches.setdefault(inbound, []).append(packet)
        for inbound, packets in batches.items():
            self._take(inbound, packets)

    def _find(self, packet: bytes, remote: Address, local: Address) -> Inbound | None:
        """The SA of a packet that came by the SA's path. Others are dealt with here."""
        if len(packet) < _SPI_OCTETS:
            self._counters.drop(Count.DROP_JUNK, f"ESP without an SPI from {remote[0]} port {remote[1]}")
            return None
        spi = int.from_bytes(packet[:_SPI_OCTETS], "big")
        inbound = self._sadb.find_inbound(spi, remote, local)
        if inbound is None and not self._rebind(packet, spi, remote, local):
            known = self._sadb.knows_inbound_spi(spi)
            count = Count.DROP_WRONG_PATH if known else Count.DROP_UNKNOWN_SPI
            self._counters.drop(count, f"SPI 0x{spi:08x} from {remote[0]} port {remote[1]} to port {local[1]}")
        return inbound

    def _rebind(self, packet: bytes, spi: int, remote: Address, local: Address) -> bool:
        """Follow the peer if the packet proves that it has moved: authentic, and newer than all that came before.

        An old packet proves nothing, even if it was never received: somebody may have kept it.
        """
        for inbound in self._sadb.rebinding(spi, local):
            sa, old = inbound.sa, inbound.path
            before = sa.sequence
            if not sa.is_ahead(packet):
                continue
            deliver = self._opened(inbound, [packet])
            if sa.sequence == before:
                continue
            new = Path(*local, *remote)
            self._sadb.move(inbound, new)
            self._keepalives.moved(old, new)
            self._counters.add(Count.REBOUND)
            self._channel.send(Rebound(spi, old, new))
            deliver()
            self.account(inbound)
            return True
        return False

    def _take(self, inbound: Inbound, packets: list[bytes]) -> None:
        """Open packets and deliver them, within the SA's limits."""
        sa, hard = inbound.sa, inbound.limits.hard
        if hard and len(packets) > 1 and sa.octets + sum(map(len, packets)) >= hard:
            for packet in packets:  # the SA may end among them
                self._take(inbound, [packet])
            return
        if hard and sa.octets >= hard:
            self._counters.drop(Count.DROP_UNKNOWN_SPI, f"SPI 0x{sa.spi:08x} has ended", len(packets))
            return
        if inbound.mode is Mode.TUNNEL:
            self._tun.write(self._allowed(inbound, sa.open(packets)))
        else:
            self._deliver_payloads(inbound, sa.open_any(packets))
        self.account(inbound)

    def deliver(self, inbound: Inbound, opened: Sequence[tuple[int, bytes] | Drop]) -> None:
        """Hand what came out of ESP packets, with its next headers, to the kernel as far as it is allowed."""
        if inbound.mode is Mode.TUNNEL:
            inner = [packet if isinstance(packet, Drop) else packet[1] for packet in opened]
            self._tun.write(self._allowed(inbound, inner))
        else:
            self._deliver_payloads(inbound, opened)

    def _opened(self, inbound: Inbound, packets: list[bytes]) -> Callable[[], None]:
        """Open packets; what to call to deliver them, once their SA is where it belongs."""
        if inbound.mode is Mode.TUNNEL:
            opened = inbound.sa.open(packets)
            return lambda: self._tun.write(self._allowed(inbound, opened))
        payloads = inbound.sa.open_any(packets)
        return lambda: self._deliver_payloads(inbound, payloads)

    def account(self, inbound: Inbound) -> None:
        """Tell the daemon what it must know of an SA that was used."""
        sa, limits = inbound.sa, inbound.limits
        if inbound.told_used and not limits.hard and not limits.soft:
            return
        if not inbound.told_used and sa.sequence:
            inbound.told_used = True
            self._channel.send(Used(sa.spi, inbound.path))
        if limits.soft and not inbound.told_soft and sa.octets >= limits.soft:
            inbound.told_soft = True
            self._channel.send(Expire(sa.spi, Direction.INBOUND, "octets", hard=False))
        if limits.hard and sa.octets >= limits.hard:
            self._sadb.remove_inbound(inbound)
            self._channel.send(Expire(sa.spi, Direction.INBOUND, "octets", hard=True))

    def _allowed(self, inbound: Inbound, opened: list[bytes | Drop]) -> list[bytes]:
        """The inner packets of tunnel mode that may go on."""
        allowed: list[bytes] = []
        matches = inbound.selectors.matches_inbound
        for inner in opened:
            if isinstance(inner, Drop):
                self.refuse(inbound, inner)
            elif (header := parse_ipv4(inner)) is None:
                self._count(inbound, Count.DROP_INNER_MALFORMED, f"{len(inner)} octets")
            elif not matches(header):
                self._count(inbound, Count.DROP_INNER_SELECTOR, f"{header}")
            else:
                allowed.append(inner)
        if inbound.mapping is not None:
            allowed = [inbound.mapping.arrived(inner) for inner in allowed]
        return [clamped(inner, self.mtu) for inner in allowed]

    def _deliver_payloads(self, inbound: Inbound, opened: Sequence[tuple[int, bytes] | Drop]) -> None:
        flows = self._sadb.flows
        plain: list[bytes] = []
        unchecked: dict[int, list[bytes]] = {}
        for inner in opened:
            if isinstance(inner, Drop):
                self.refuse(inbound, inner)
                continue
            protocol, payload = inner
            try:
                packet, no_check = transport.arrived(inbound, protocol, payload, flows)
            except transport.Refused as refused:
                self._count(inbound, refused.count, str(refused))
                continue
            (unchecked.setdefault(protocol, []) if no_check else plain).append(packet)
        self._tun.write(plain)
        for protocol, packets in unchecked.items():
            self._tun.write(packets, _UNVERIFIED[protocol])

    def refuse(self, inbound: Inbound, drop: Drop, number: int = 1) -> None:
        """Count ESP packets that gave no inner packet."""
        count = f"drop_esp_{drop.value}"
        if drop is Drop.DUMMY:
            self._counters.add(count, number)
        else:
            self._counters.drop(count, f"SPI 0x{inbound.sa.spi:08x} from {inbound.path.remote}", number)

    def cannot_join(self) -> None:
        """Note that the kernel takes no super-packets of some kind."""
        self._counters.fall_back("tun_super_write", "super-packets are refused")

    def _count(self, inbound: Inbound, count: Count, detail: str) -> None:
        inbound.sa.dropped[count.removeprefix("drop_")] += 1
        self._counters.drop(count, f"SPI 0x{inbound.sa.spi:08x} from {inbound.path.remote}: {detail}")
