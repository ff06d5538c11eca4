"""The way in: datagrams from the wire become IKE for the daemon, or inner packets for the kernel."""

from __future__ import annotations

from collections.abc import Sequence

from ..esp.sa import Drop
from ..messages import Path
from ..wire.ip import parse_ipv4
from ..wire.udp import ESP_MARKER, Kind, classify
from .channel import Channel
from .counters import Count, Counters
from .sadb import Address, Inbound, SaDatabase
from .tun import Tun

_SPI_OCTETS = 4
_MARKER_OCTETS = len(ESP_MARKER)


class InboundFlow:
    """Takes batches from the sockets. What is wrong with one packet costs that packet only."""

    def __init__(self, sadb: SaDatabase, tun: Tun, channel: Channel, counters: Counters) -> None:
        self._sadb = sadb
        self._tun = tun
        self._channel = channel
        self._counters = counters

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
        """Open ESP packets and hand what is in them to the kernel. No packet makes or moves an SA (SA-4, SEC-4)."""
        batches: dict[Inbound, list[bytes]] = {}
        for packet, remote in received:
            inbound = self._find(packet, remote, local)
            if inbound is not None:
                batches.setdefault(inbound, []).append(packet)
        for inbound, packets in batches.items():
            self._tun.write(self._open(inbound, packets))

    def _find(self, packet: bytes, remote: Address, local: Address) -> Inbound | None:
        if len(packet) < _SPI_OCTETS:
            self._counters.drop(Count.DROP_JUNK, f"ESP without an SPI from {remote[0]} port {remote[1]}")
            return None
        spi = int.from_bytes(packet[:_SPI_OCTETS], "big")
        inbound = self._sadb.find_inbound(spi, remote, local)
        if inbound is None:
            known = self._sadb.knows_inbound_spi(spi)
            count = Count.DROP_WRONG_PATH if known else Count.DROP_UNKNOWN_SPI
            self._counters.drop(count, f"SPI 0x{spi:08x} from {remote[0]} port {remote[1]} to port {local[1]}")
        return inbound

    def _open(self, inbound: Inbound, packets: list[bytes]) -> list[bytes]:
        """The inner packets that may go on."""
        allowed: list[bytes] = []
        matches = inbound.selectors.matches_inbound
        for inner in inbound.sa.open(packets):
            if isinstance(inner, Drop):
                self._refuse(inbound, inner)
            elif (header := parse_ipv4(inner)) is None:
                self._count(inbound, Count.DROP_INNER_MALFORMED, f"{len(inner)} octets")
            elif not matches(header):
                self._count(inbound, Count.DROP_INNER_SELECTOR, f"{header}")
            else:
                allowed.append(inner)
        return allowed

    def _refuse(self, inbound: Inbound, drop: Drop) -> None:
        count = f"drop_esp_{drop.value}"
        if drop is Drop.DUMMY:
            self._counters.add(count)
        else:
            self._counters.drop(count, f"SPI 0x{inbound.sa.spi:08x} from {inbound.path.remote}")

    def _count(self, inbound: Inbound, count: Count, detail: str) -> None:
        inbound.sa.dropped[count.removeprefix("drop_")] += 1
        self._counters.drop(count, f"SPI 0x{inbound.sa.spi:08x} from {inbound.path.remote}: {detail}")
