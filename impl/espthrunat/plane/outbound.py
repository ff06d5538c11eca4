"""The way out: inner packets from the kernel are sealed by their policy's newest SA and sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeGuard

from ..esp.policy import Selectors
from ..messages import Acquire, Direction, Encapsulation, Expire, Mode
from ..wire.ip import ICMP, IPV4, UDP, WITHOUT_OPTIONS, IpHeader, parse_ipv4
from ..wire.udp import ESP_MARKER
from . import bulk, transport
from .channel import Channel
from .counters import Count, Counters
from .esp_socket import EspSocket
from .flows import Flow
from .held import HeldPackets
from .keepalive import Keepalives
from .lone import LoneSender, flow_of
from .path_mtu import clamped
from .reassembly import Reassembler
from .sadb import Address, Outbound, SaDatabase
from .super_packet import SuperPacket, inner_count, inner_octets, singly
from .udp_socket import TooLongError, UdpSocket

if TYPE_CHECKING:
    from .bulk_out import BulkSealer

_MOST_TOLD = 8  # packets whose senders are told of one failure
_DONT_FRAGMENT = 0x40
_FRAGMENT = 0x3F  # in its seventh octet
_MOST_ROUTES = 4096
_FEWEST = 6  # packets that are worth the fixed cost of a batch
_ACQUIRE_INTERVAL = 1.0  # seconds
_TUNNEL = Mode.TUNNEL  # a look-up of the enum's attribute costs, for each packet


class OutboundFlow:
    """Takes batches from the TUN device. `clock` gives seconds; `raw` is set once bare ESP is in use."""

    def __init__(
        self,
        sadb: SaDatabase,
        udp: UdpSocket,
        channel: Channel,
        counters: Counters,
        keepalives: Keepalives,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.raw: EspSocket | None = None
        self.held = HeldPackets(counters, clock)
        self.tell_sender: Callable[[bytes, int], None] = lambda packet, most: None
        """Called with a packet that its path does not carry, and how many octets may come instead."""
        self.learn_path: Callable[[Outbound], None] = lambda outbound: None
        """Called when an SA's path turns out to carry less than its `room`, to make that right."""
        self._sadb = sadb
        self._udp = udp
        self._channel = channel
        self._counters = counters
        self._keepalives = keepalives
        self._clock = clock
        self._quiet_until: dict[str, float] = {}  # by policy, for Acquire
        self._on_demand: set[str] = set()  # the policies that traffic may bring an SA for
        self._last_chance = False  # what finds no SA now has waited before
        self._transport: dict[str, Selectors] = {}  # the policies of transport mode
        self._reassembler = Reassembler(self._lost_fragments, clock)
        address, port = udp.local
        self._bulk: BulkSealer | None = None
        self._lone = LoneSender(sadb.routes, udp, counters, keepalives)
        self._own_source = (UDP, int.from_bytes(bytes(map(int, address.split("."))), "big"), port)

    def add_transport_policy(self, policy: str, selectors: Selectors) -> None:
        """A policy of transport mode: fragments are put together, and packets go where their flows came from."""
        self._transport[policy] = selectors

    def add_on_demand_policy(self, policy: str) -> None:
        """A policy of a peer that can be reached: traffic waits until it has an SA."""
        self._on_demand.add(policy)

    def forget_policy(self, policy: str) -> None:
        """A policy is gone: keep no more of it."""
        self._quiet_until.pop(policy, None)
        self._transport.pop(policy, None)
        self._on_demand.discard(policy)

    def release(self, policy: str) -> None:
        """An SA of the policy is there: send what has waited for it."""
        sadb = self._sadb
        waited = self.held.take(policy, lambda header: sadb.find_outbound(policy, header) is not None)
        if waited:
            self._last_chance = True
            self.packets(waited)
            self._last_chance = False

    def packets(self, packets: Sequence[bytes | SuperPacket]) -> None:
        """Seal and send inner packets. What no policy allows is dropped and counted; what no SA protects waits."""
        if len(packets) == 1 and not isinstance(packets[0], SuperPacket) and self._lone.send(packets[0]):
            return
        batches: dict[Outbound, list[bytes | SuperPacket]] = {}
        payloads: dict[tuple[Outbound, int, bool], tuple[list[bytes | SuperPacket], list[bytes | SuperPacket]]] = {}
        routes = self._sadb.routes
        for whole_or_super in packets:
            parts = whole_or_super if isinstance(whole_or_super, SuperPacket) else None
            packet = whole_or_super.octets if isinstance(whole_or_super, SuperPacket) else whole_or_super
            flow_key = flow_of(packet)
            known = routes.get(flow_key)
            if known is not None and packet[0] == WITHOUT_OPTIONS and not packet[6] & _FRAGMENT and not packet[7]:
                if parts is None and len(packet) <= known.room:
                    batches.setdefault(known, []).append(packet)
                    continue
                if parts is not None and parts.fitting(known.room) is parts:
                    batches.setdefault(known, []).append(parts)
                    continue
            header = parse_ipv4(packet)
            if header is None:
                self._counters.drop(Count.DROP_NOT_IPV4, f"{len(packet)} octets from the TUN device")
                continue
            if header.fragment and self._transport and self._must_be_whole(header):
                whole = self._reassembler.add(packet)
                header = parse_ipv4(whole) if whole is not None else None
                if whole is None or header is None:
                    continue
                packet = whole
            flow: Flow | None = None
            if self._transport:
                outbound, flow = self._find_with_flow(header, parts or packet)
            else:
                outbound = self._find(header, parts or packet)
            if outbound is None:
                continue
            if parts is not None:
                parts = parts.fitting(outbound.room)
            if len(packet) > outbound.room and parts is None and (outbound.mode is _TUNNEL or header.dont_fragment):
                lost = whole_or_super if isinstance(whole_or_super, SuperPacket) else packet
                self._too_long(outbound, [lost], inner_count(lost))
                continue
            if outbound.mode is _TUNNEL:
                if outbound.mapping is None and not self._transport:
                    self._remember(flow_key, header, packet, outbound)
                batches.setdefault(outbound, []).append(parts or packet)
            else:
                payload = transport.leaving(header, packet, flow, outbound.encapsulation)
                is_large = parts is None and len(packet) > outbound.room
                whole_ones, contents = payloads.setdefault((outbound, header.protocol, is_large), ([], []))
                whole_ones.append(parts or packet)
                # The draft, 5: the peer could not check a UDP checksum.
                bare = header.protocol != UDP or outbound.encapsulation is not Encapsulation.UDP
                contents.append(payload if parts is None else parts.without_ip(payload, checksums=bare))
        few: dict[Address, list[tuple[Outbound, list[bytes]]]] = {}
        for outbound, batch in batches.items():
            if len(batch) < _FEWEST and outbound.is_free and outbound.mapping is None and _are_single(batch):
                few.setdefault(outbound.remote, []).append((outbound, batch))
            else:
                self._send(outbound, batch, [_for_the_peer(packet, outbound) for packet in batch], IPV4)
        for remote, some in few.items():
            self._send_few(some, remote)
        for (outbound, protocol, is_large), (batch, contents) in payloads.items():
            self._send(outbound, batch, contents, protocol, in_fragments=is_large)

    def _send_few(self, batches: list[tuple[Outbound, list[bytes]]], remote: Address) -> None:
        """Seal packets of several SAs, each of which is free, and send them to the one remote together."""
        sealed = [
            ESP_MARKER + packet
            for outbound, batch in batches
            for packet in outbound.sa.seal([clamped(packet, outbound.room) for packet in batch])
        ]
        before = self._sent
        try:
            self._udp.send(sealed, remote)
        except TooLongError:
            for outbound, _ in batches:
                self.learn_path(outbound)
            unsent = len(sealed) - (self._sent - before)
            self._too_long(batches[0][0], [packet for _, batch in batches for packet in batch], unsent)
        self._keepalives.sent(remote)

    def _remember(self, flow: bytes, header: IpHeader, packet: bytes, outbound: Outbound) -> None:
        """The next packet of the same protocol, addresses and ports needs no look at policies."""
        if header.fragment or packet[0] != WITHOUT_OPTIONS:
            return
        routes = self._sadb.routes
        if len(routes) >= _MOST_ROUTES:
            routes.clear()
        routes[flow] = outbound

    def _must_be_whole(self, header: IpHeader) -> bool:
        """Whether a fragment may be of transport mode. Its ports may be in another one."""
        return any(selectors.may_match_fragment(header) for selectors in self._transport.values())

    def _find(self, header: IpHeader, packet: bytes | SuperPacket) -> Outbound | None:
        """Which SA a packet goes by that is part of no flow."""
        if (header.protocol, header.source, header.source_port) == self._own_source:
            detail = "our own datagrams are routed into the TUN device: a policy's remote network includes the peer"
            self._counters.drop(Count.DROP_LOOP, detail)
            return None
        policy = self._sadb.policies.lookup(header)
        if policy is None:
            self._counters.drop(Count.DROP_NO_POLICY, f"{header}")
            return None
        outbound = self._sadb.find_outbound(policy, header)
        if outbound is None:
            self._acquire(policy, header, packet)
        return outbound

    def _find_with_flow(self, header: IpHeader, packet: bytes | SuperPacket) -> tuple[Outbound | None, Flow | None]:
        """Which SA a packet goes by, and the flow of transport mode that it is part of, if there is one.

        Several policies may lead to one address: what their peers have behind it, only the flows know.
        """
        octets = packet.octets if isinstance(packet, SuperPacket) else packet
        flow = transport.flow_of(header, octets, self._sadb.flows)
        if flow is None:
            return self._find(header, packet), None
        if flow.port != flow.key.remote_port and header.protocol != ICMP:  # selectors have the peer's own port
            header = header._replace(destination_port=flow.port)
        # Never to another peer, even if this one has no SA any more.
        outbound = self._sadb.find_on_path(flow.path, header)
        if outbound is None and (policy := self._sadb.policies.lookup(header)) is not None:
            self._acquire(policy, header, packet)
        return outbound, flow

    def _lost_fragments(self, reason: str, number: int) -> None:
        self._counters.drop(Count.DROP_TRANSPORT_FRAGMENT, reason, number)

    def _acquire(self, policy: str, header: IpHeader, packet: bytes | SuperPacket) -> None:
        if not self._last_chance and (policy in self._on_demand or self._sadb.expects(policy, header)):
            for single in singly([packet]):
                self.held.hold(policy, header, single)
        else:
            self._counters.drop(Count.DROP_NO_SA, f"policy {policy}: {header}", inner_count(packet))
        now = self._clock()
        if now >= self._quiet_until.get(policy, now):
            self._quiet_until[policy] = now + _ACQUIRE_INTERVAL
            self._channel.send(Acquire(policy))

    def _send(
        self,
        outbound: Outbound,
        packets: list[bytes | SuperPacket],
        contents: list[bytes | SuperPacket],
        next_header: int,
        *,
        in_fragments: bool = False,
    ) -> None:
        """Seal the `contents` of inner packets. Those that the SA cannot carry any more look for another one."""
        sa, limits = outbound.sa, outbound.limits
        rest: list[bytes] = []
        if limits.hard and sa.octets + sum(map(inner_octets, contents)) > limits.hard:
            single = singly(contents)
            fit = self._end(outbound, single)
            contents, rest = [*single[:fit]], singly(packets)[fit:]
        if sa.needs_replacement and not sa.has_room_for(sum(map(inner_count, contents))):
            # An older SA of the policy may still be good.
            self._sadb.remove(outbound)
            self._channel.send(Expire(sa.spi, Direction.OUTBOUND, "sequence", hard=True))
            self.packets(packets)
            return
        before = self._sent
        try:
            if in_fragments:
                self._send_in_fragments(outbound, sa.seal(singly(contents), next_header))
            elif outbound.encapsulation is Encapsulation.UDP:
                self._send_udp(outbound, contents, next_header)
            elif self.raw is not None:
                self.raw.send(sa.seal(singly(contents), next_header), outbound.remote)
        except TooLongError:
            self.learn_path(outbound)
            self._too_long(outbound, packets, sum(map(inner_count, contents)) - (self._sent - before))
        if rest:
            self.packets(rest)
        elif not outbound.told_soft:
            if sa.needs_replacement:
                self._tell_soft(outbound, "sequence")
            elif limits.soft and sa.octets >= limits.soft:
                self._tell_soft(outbound, "octets")

    @property
    def _sent(self) -> int:
        return self._counters.values[Count.UDP_OUT] + self._counters.values[Count.RAW_OUT]

    def _too_long(self, outbound: Outbound, packets: Sequence[bytes | SuperPacket], number: int) -> None:
        """`number` of `packets` did not go. All senders are told: who was sent already will not mind."""
        detail = f"SPI 0x{outbound.sa.spi:08x}: the path to {outbound.path.remote} carries {outbound.room} octets"
        self._counters.drop(Count.DROP_TOO_LONG, detail, number)
        for packet in packets[:_MOST_TOLD]:
            octets = packet.octets if isinstance(packet, SuperPacket) else packet
            if octets[6] & _DONT_FRAGMENT:
                self.tell_sender(octets, outbound.room)

    def _send_in_fragments(self, outbound: Outbound, sealed: list[bytes]) -> None:
        """Transport mode protects whole datagrams (RFC 2406, 3.3.1): what a host itself sends in fragments goes so."""
        for packet in sealed:
            if outbound.encapsulation is Encapsulation.UDP:
                self._udp.send_in_fragments(ESP_MARKER + packet, outbound.remote)
            elif self.raw is not None:
                self.raw.send_in_fragments(packet, outbound.remote)
        self._keepalives.sent(outbound.remote)

    def _send_udp(self, outbound: Outbound, packets: list[bytes | SuperPacket], next_header: int) -> None:
        is_bulk = len(packets) >= _FEWEST or any(isinstance(packet, SuperPacket) for packet in packets)
        if not is_bulk or not bulk.is_ready():
            sealed = outbound.sa.seal(singly(packets), next_header)
            self._udp.send([ESP_MARKER + packet for packet in sealed], outbound.remote)
        else:
            for parts, segment, count in self._sealer().seal(outbound.sa, packets, next_header):
                self._udp.send_train(parts, segment, count, outbound.remote)
        self._keepalives.sent(outbound.remote)

    def _sealer(self) -> BulkSealer:
        if self._bulk is None:
            # Not imported above: see bulk.py.
            from .bulk_out import BulkSealer

            self._bulk = BulkSealer()
        return self._bulk

    def _tell_soft(self, outbound: Outbound, reason: Literal["octets", "sequence"]) -> None:
        outbound.told_soft = True
        self._channel.send(Expire(outbound.sa.spi, Direction.OUTBOUND, reason, hard=False))

    def _end(self, outbound: Outbound, contents: list[bytes]) -> int:
        """Use an SA no more that has carried all that it may, but for the first of `contents`: how many still fit."""
        room = outbound.limits.hard - outbound.sa.octets
        fit = 0
        while len(contents[fit]) <= room:
            room -= len(contents[fit])
            fit += 1
        self._sadb.remove(outbound)
        self._channel.send(Expire(outbound.sa.spi, Direction.OUTBOUND, "octets", hard=True))
        return fit


def _are_single(packets: list[bytes | SuperPacket]) -> TypeGuard[list[bytes]]:
    return not any(isinstance(packet, SuperPacket) for packet in packets)


def _for_the_peer(packet: bytes | SuperPacket, outbound: Outbound) -> bytes | SuperPacket:
    """What ESP carries of a packet in tunnel mode: its address translated, a new connection told what fits."""
    mapping = outbound.mapping
    if isinstance(packet, SuperPacket):
        return packet if mapping is None else packet.with_octets(mapping.leaving(packet.octets))
    return clamped(packet if mapping is None else mapping.leaving(packet), outbound.room)
