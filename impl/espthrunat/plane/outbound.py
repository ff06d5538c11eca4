"""The way out: inner packets from the kernel are sealed by their policy's newest SA and sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from ..esp.policy import Selectors
from ..esp.sa import SequenceExhaustedError
from ..messages import Acquire, Direction, Encapsulation, Expire, Mode
from ..wire.ip import ICMP, IPV4, UDP, IpHeader, parse_ipv4
from ..wire.udp import ESP_MARKER
from . import transport
from .channel import Channel
from .counters import Count, Counters
from .esp_socket import EspSocket
from .flows import Flow
from .held import HeldPackets
from .keepalive import Keepalives
from .reassembly import Reassembler
from .sadb import Outbound, SaDatabase
from .udp_socket import UdpSocket

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

    def packets(self, packets: Sequence[bytes]) -> None:
        """Seal and send inner packets. What no policy allows is dropped and counted; what no SA protects waits."""
        batches: dict[Outbound, list[bytes]] = {}
        payloads: dict[tuple[Outbound, int], tuple[list[bytes], list[bytes]]] = {}
        for packet in packets:
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
                outbound, flow = self._find_with_flow(header, packet)
            else:
                outbound = self._find(header, packet)
            if outbound is None:
                continue
            if outbound.mode is _TUNNEL:
                batches.setdefault(outbound, []).append(packet)
            else:
                whole_ones, contents = payloads.setdefault((outbound, header.protocol), ([], []))
                whole_ones.append(packet)
                contents.append(transport.leaving(header, packet, flow, outbound.encapsulation))
        for outbound, batch in batches.items():
            mapping = outbound.mapping
            contents = batch if mapping is None else [mapping.leaving(packet) for packet in batch]
            self._send(outbound, batch, contents, IPV4)
        for (outbound, protocol), (batch, contents) in payloads.items():
            self._send(outbound, batch, contents, protocol)

    def _must_be_whole(self, header: IpHeader) -> bool:
        """Whether a fragment may be of transport mode. Its ports may be in another one."""
        return any(selectors.may_match_fragment(header) for selectors in self._transport.values())

    def _find(self, header: IpHeader, packet: bytes) -> Outbound | None:
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

    def _find_with_flow(self, header: IpHeader, packet: bytes) -> tuple[Outbound | None, Flow | None]:
        """Which SA a packet goes by, and the flow of transport mode that it is part of, if there is one.

        Several policies may lead to one address: what their peers have behind it, only the flows know.
        """
        flow = transport.flow_of(header, packet, self._sadb.flows)
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

    def _acquire(self, policy: str, header: IpHeader, packet: bytes) -> None:
        if not self._last_chance and (policy in self._on_demand or self._sadb.expects(policy, header)):
            self.held.hold(policy, header, packet)
        else:
            self._counters.drop(Count.DROP_NO_SA, f"policy {policy}: {header}")
        now = self._clock()
        if now >= self._quiet_until.get(policy, now):
            self._quiet_until[policy] = now + _ACQUIRE_INTERVAL
            self._channel.send(Acquire(policy))

    def _send(self, outbound: Outbound, packets: list[bytes], contents: list[bytes], next_header: int) -> None:
        """Seal the `contents` of inner packets. Those that the SA cannot carry any more look for another one."""
        sa, limits = outbound.sa, outbound.limits
        rest: list[bytes] = []
        if limits.hard and sa.octets + sum(map(len, contents)) > limits.hard:
            fit = self._end(outbound, contents)
            contents, rest = contents[:fit], packets[fit:]
        try:
            sealed = sa.seal(contents, next_header)
        except SequenceExhaustedError:
            # An older SA of the policy may still be good.
            self._sadb.remove(outbound)
            self._channel.send(Expire(sa.spi, Direction.OUTBOUND, "sequence", hard=True))
            self.packets(packets)
            return
        if outbound.encapsulation is Encapsulation.UDP:
            self._udp.send([ESP_MARKER + packet for packet in sealed], outbound.remote)
            self._keepalives.sent(outbound.remote)
        elif self.raw is not None:
            self.raw.send(sealed, outbound.remote)
        if rest:
            self.packets(rest)
        elif not outbound.told_soft:
            if sa.needs_replacement:
                self._tell_soft(outbound, "sequence")
            elif limits.soft and sa.octets >= limits.soft:
                self._tell_soft(outbound, "octets")

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
