"""The way out: inner packets from the kernel are sealed by their policy's newest SA and sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..esp.sa import SequenceExhaustedError
from ..messages import Acquire, Direction, Encapsulation, Expire
from ..wire.ip import UDP, IpHeader, parse_ipv4
from ..wire.udp import ESP_MARKER
from .channel import Channel
from .counters import Count, Counters
from .esp_socket import EspSocket
from .sadb import Outbound, SaDatabase
from .udp_socket import UdpSocket

_ACQUIRE_INTERVAL = 1.0  # seconds


class OutboundFlow:
    """Takes batches from the TUN device. `clock` gives seconds; `raw` is set once bare ESP is in use."""

    def __init__(
        self,
        sadb: SaDatabase,
        udp: UdpSocket,
        channel: Channel,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.raw: EspSocket | None = None
        self._sadb = sadb
        self._udp = udp
        self._channel = channel
        self._counters = counters
        self._clock = clock
        self._quiet_until: dict[str, float] = {}  # by policy, for Acquire
        address, port = udp.local
        self._own_source = (UDP, int.from_bytes(bytes(map(int, address.split("."))), "big"), port)

    def forget_policy(self, policy: str) -> None:
        """A policy is gone: keep no more of it."""
        self._quiet_until.pop(policy, None)

    def packets(self, packets: Sequence[bytes]) -> None:
        """Seal and send inner packets. What no policy allows, or no SA protects, is dropped and counted."""
        batches: dict[Outbound, list[bytes]] = {}
        for packet in packets:
            outbound = self._find(packet)
            if outbound is not None:
                batches.setdefault(outbound, []).append(packet)
        for outbound, batch in batches.items():
            self._send(outbound, batch)

    def _find(self, packet: bytes) -> Outbound | None:
        header = parse_ipv4(packet)
        if header is None:
            self._counters.drop(Count.DROP_NOT_IPV4, f"{len(packet)} octets from the TUN device")
            return None
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
            self._acquire(policy, header)
        return outbound

    def _acquire(self, policy: str, header: IpHeader) -> None:
        self._counters.drop(Count.DROP_NO_SA, f"policy {policy}: {header}")
        now = self._clock()
        if now >= self._quiet_until.get(policy, now):
            self._quiet_until[policy] = now + _ACQUIRE_INTERVAL
            self._channel.send(Acquire(policy))

    def _send(self, outbound: Outbound, packets: list[bytes]) -> None:
        sa = outbound.sa
        try:
            sealed = sa.seal(packets)
        except SequenceExhaustedError as error:
            # An older SA of the policy may still be good; without one, the next packet makes an Acquire.
            self._sadb.remove(outbound)
            self._channel.send(Expire(sa.spi, Direction.OUTBOUND, "sequence", hard=True))
            self._counters.drop(Count.DROP_NO_SA, str(error), len(packets))
            return
        if outbound.encapsulation is Encapsulation.UDP:
            self._udp.send([ESP_MARKER + packet for packet in sealed], outbound.remote)
        elif self.raw is not None:
            self.raw.send(sealed, outbound.remote)
        if sa.needs_replacement and not outbound.told_soft:
            outbound.told_soft = True
            self._channel.send(Expire(sa.spi, Direction.OUTBOUND, "sequence", hard=False))
