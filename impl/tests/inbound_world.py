"""A way in whose kernel keeps what it gets, the peer that seals for it, and datagrams as a socket gives them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from plain_segments import ACK, cut, ip_packet, tcp, udp

from espthrunat.esp.sa import OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import (
    AddSa,
    Direction,
    Encapsulation,
    FromPlane,
    Mode,
    Path,
    Selector,
)
from espthrunat.plane.arrivals import Arrival, Slots
from espthrunat.plane.counters import Counters
from espthrunat.plane.inbound import InboundFlow
from espthrunat.plane.keepalive import Keepalives
from espthrunat.plane.sadb import SaDatabase
from espthrunat.wire.ip import TCP, UDP
from espthrunat.wire.udp import ESP_MARKER

LOCAL, PEER, ELSEWHERE = ("203.0.113.18", 500), ("203.0.113.2", 1024), ("203.0.113.66", 4500)
TUNNEL, ROAMING, TRANSPORT, ENDING = 0x1001, 0x1002, 0x1003, 0x1004
SPIS = {TUNNEL: "aes128gcm16", ROAMING: "aes128-sha256", TRANSPORT: "3des-sha1", ENDING: "null-sha256"}
SLOTS = Slots()


def keymat(spi: int) -> bytes:
    return bytes([spi & 0xFF]) * SUITES[SPIS[spi]].keymat_octets


@dataclass
class Way:
    """A way in whose kernel cuts super-packets as a real one does, and keeps all packets."""

    kernel: list[bytes] = field(default_factory=list)
    supers: int = 0
    takes_supers: bool = True
    selector: Selector | None = None  # of transport mode
    ike: list[bytes] = field(default_factory=list)
    said: list[FromPlane] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counters = Counters(lambda: 0.0)
        self.sadb = SaDatabase(lambda: 0.0)
        keepalives = Keepalives(lambda: 0.0)
        self.flow = InboundFlow(self.sadb, self, self, self.counters, keepalives)  # type: ignore[arg-type]
        for spi, suite in SPIS.items():
            transport = spi == TRANSPORT
            self.sadb.add(
                AddSa(
                    spi,
                    Direction.INBOUND,
                    suite,
                    keymat(spi),
                    Path(*LOCAL, *PEER),
                    Encapsulation.UDP,
                    self.selector or Selector(f"{LOCAL[0]}/32", f"{PEER[0]}/32")
                    if transport
                    else Selector("10.99.0.1/32", "10.1.0.1/32"),
                    f"policy{spi}",
                    Mode.TRANSPORT if transport else Mode.TUNNEL,
                    soft_octets=2000 if spi == ENDING else 0,
                    hard_octets=4000 if spi == ENDING else 0,
                    rebinding=spi == ROAMING,
                )
            )

    def write_one(self, packet: bytes) -> None:
        self.write([packet])

    def write(self, packets: list[bytes], header: bytes = b"") -> None:
        self.kernel += packets

    def write_super(self, parts: Sequence[bytes], count: int) -> bool:
        if not self.takes_supers:
            return False
        whole = b"".join(bytes(part) for part in parts)
        segment = int.from_bytes(whole[4:6], "little")
        packets = cut(whole[10:], segment)
        assert len(packets) == count
        self.kernel += packets
        self.supers += 1
        return True

    def send(self, message: FromPlane) -> None:
        self.said.append(message)

    def send_datagrams(self, items: list[tuple[Path, bytes]]) -> None:
        self.ike += [datagram for _, datagram in items]

    def flows(self) -> dict[bytes, list[bytes]]:
        """What the kernel got, by addresses and ports, in order."""
        flows: dict[bytes, list[bytes]] = defaultdict(list)
        for packet in self.kernel:
            transport = packet[12:16] != bytes((10, 1, 0, 1))
            at = {TCP: 36, UDP: 26}.get(packet[9], 0)
            if transport:  # the kernel checks no checksum of these, and an atomic packet's identification means nothing
                packet = packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:at] + b"\0\0" + packet[at + 2 :]
            flows[packet[9:10] + packet[12:24]].append(packet)
        return flows

    def dropped(self) -> dict[str, int]:
        return {name: value for name, value in self.counters.values.items() if value}


def arrivals(datagrams: list[tuple[bytes, tuple[str, int]]], *, in_slots: bool) -> Iterator[Arrival]:
    """As the kernel joins them: equally long ones of one remote, and a shorter one behind them.

    Each is valid until the next, as with a real socket.
    """
    groups: list[list[tuple[bytes, tuple[str, int]]]] = []
    for datagram, remote in datagrams:
        group = groups[-1] if groups else []
        fits = group and group[0][1] == remote and len(group[-1][0]) == len(group[0][0]) and len(group) < 40
        shorter_ok = not in_slots and len(datagram) > 0
        if fits and (len(datagram) == len(group[0][0]) or (shorter_ok and len(datagram) < len(group[0][0]))):
            group.append((datagram, remote))
        else:
            groups.append([(datagram, remote)])
    for group in groups:
        segment, remote = len(group[0][0]), group[0][1]
        octets = sum(len(datagram) for datagram, _ in group)
        if in_slots and len(group) > 1:
            for slot, (datagram, _) in enumerate(group, 3):
                SLOTS.views[slot][:segment] = datagram
            arrival = Arrival(SLOTS, remote, 3, len(group), octets, segment)
        else:
            SLOTS.views[1][:octets] = b"".join(datagram for datagram, _ in group)
            arrival = Arrival(SLOTS, remote, 1, 1, octets, segment)
        assert arrival.datagrams() == [datagram for datagram, _ in group]
        yield arrival


class Sender:
    """The peer: seals streams whose numbers go on."""

    def __init__(self) -> None:
        self.sas = {spi: OutboundSa(spi, SUITES[suite], keymat(spi)) for spi, suite in SPIS.items()}
        self.sequence = 0xFFFFFF00
        self.identification = 0xFFF0

    def tcp(self, spi: int, octets: int, flags: int = ACK) -> bytes:
        inner = tcp(bytes([self.sequence & 0xFF]) * octets, self.sequence, flags)
        self.sequence = (self.sequence + octets) % (1 << 32)
        return self._seal(spi, TCP, inner)

    def udp(self, spi: int, octets: int) -> bytes:
        return self._seal(spi, UDP, udp(bytes([self.identification & 0xFF]) * octets))

    def other(self, spi: int, octets: int) -> bytes:
        return self._seal(spi, 1, b"\x03\x03" + bytes(octets))

    def wrong(self, spi: int, octets: int) -> bytes:
        """An inner packet of somebody else."""
        return ESP_MARKER + self.sas[spi].seal([ip_packet(TCP, bytes(octets)).replace(b"\x0a\x01", b"\x0a\x07", 1)])[0]

    def _seal(self, spi: int, protocol: int, inner: bytes) -> bytes:
        packet = ip_packet(protocol, inner, self.identification)
        self.identification = (self.identification + 1) % (1 << 16)
        content, next_header = (inner, protocol) if spi == TRANSPORT else (packet, 4)
        return ESP_MARKER + self.sas[spi].seal([content], next_header)[0]
