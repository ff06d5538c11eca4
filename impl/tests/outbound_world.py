"""A way out with a wire that keeps what is sent, and the peer's end of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from plain_segments import ACK, PSH, ip_packet, tcp, udp

from espthrunat.esp.policy import Selectors
from espthrunat.esp.sa import Drop, InboundSa
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
from espthrunat.plane import bulk
from espthrunat.plane.counters import Counters
from espthrunat.plane.keepalive import Keepalives
from espthrunat.plane.outbound import OutboundFlow
from espthrunat.plane.sadb import SaDatabase
from espthrunat.plane.super_packet import SuperPacket
from espthrunat.plane.udp_socket import TooLongError
from espthrunat.wire.ip import TCP
from espthrunat.wire.udp import ESP_MARKER

SYN = 0x02

bulk.load()

LOCAL = ("203.0.113.18", 500)


@dataclass
class Wire:
    """A socket that keeps the datagrams of each train as a real one sends them."""

    local: tuple[str, int] = LOCAL
    datagrams: list[bytes] = field(default_factory=list)
    trains: int = 0
    sent: list[tuple[tuple[str, int], int]] = field(default_factory=list)  # to whom, and how many, by call
    most: int = 65507  # octets that the path carries

    def send(self, datagrams: Sequence[bytes], remote: tuple[str, int]) -> int:
        if any(len(datagram) > self.most for datagram in datagrams):
            raise TooLongError
        self.sent.append((remote, len(datagrams)))
        self.datagrams += datagrams
        return len(datagrams)

    def sendto(self, datagram: bytes, remote: tuple[str, int]) -> int:
        return self.send([datagram], remote)

    def send_train(self, parts: Sequence[bytes], segment: int, count: int, remote: tuple[str, int]) -> int:
        whole = b"".join(bytes(part) for part in parts)
        assert len(whole) <= 65507
        assert count <= 64
        self.datagrams += (made := [whole[at : at + segment] for at in range(0, len(whole), segment)])
        assert len(made) == count
        self.trains += 1
        return count


class WayOut:
    """A way out with one SA for all traffic, and the peer's end of it."""

    def __init__(self, suite: str, mode: Mode = Mode.TUNNEL, hard_octets: int = 0) -> None:
        self.wire = Wire()
        self.said: list[FromPlane] = []
        self.counters = Counters(lambda: 0.0)
        self.sadb = SaDatabase(lambda: 0.0)
        keys = bytes(SUITES[suite].keymat_octets)
        selector = Selector("10.1.0.1/32", "10.99.0.1/32")
        path = Path("10.1.0.1", 500, "10.99.0.1", 500)
        udp_encapsulation = Encapsulation.UDP
        self.sa = AddSa(
            7, Direction.OUTBOUND, suite, keys, path, udp_encapsulation, selector, "p", mode, 0, hard_octets
        )
        self.sadb.add(self.sa)
        self.sadb.policies.add("p", Selectors.of(selector))
        self.now = 0.0
        self.keepalives = Keepalives(lambda: self.now)
        self.flow = OutboundFlow(self.sadb, self.wire, self, self.counters, self.keepalives)  # type: ignore[arg-type]
        self.receiver = self.new_receiver()

    def new_receiver(self) -> InboundSa:
        return InboundSa(7, SUITES[self.sa.suite], self.sa.keymat, next_header=None)

    def send(self, message: FromPlane) -> None:
        self.said.append(message)

    def dropped(self) -> dict[str, int]:
        return {name: value for name, value in self.counters.values.items() if name.startswith("drop")}

    def arrived(self) -> list[bytes]:
        """What the peer finds in all datagrams."""
        assert all(datagram.startswith(ESP_MARKER) for datagram in self.wire.datagrams)
        opened = self.receiver.open_any([datagram[8:] for datagram in self.wire.datagrams])
        return [inner if isinstance(inner, Drop) else inner[1] for inner in opened]  # type: ignore[misc]


def super_packet(octets: int, segment: int, protocol: int = TCP, flags: int = ACK | PSH) -> SuperPacket:
    payload = random.Random(octets).randbytes(octets)
    packet = ip_packet(protocol, tcp(payload, 5, flags) if protocol == TCP else udp(payload), 9)
    made = SuperPacket.of(packet, segment)
    assert made is not None
    return made
