"""What a frame of a public wire is, by its outer headers and the draft's demultiplexer, and what may be there."""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass
from typing import Literal

from natbed.checks import PATTERN

_IP, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_UDP, _ESP = 17, 50
_LINK_ICMPV6 = {*range(130, 138), 143}
_ISAKMP_HEADER = 28  # octets


@dataclass(frozen=True, slots=True)
class WireExpectation:
    """What a wire may show.

    `server` and `peers` are (address, UDP port) as this wire sees them: behind a NAT, its public address and the mapped
    ports. `protected` pairs each peer-side network with the server-side network that its tunnels join ("a.b.c.d/n").
    """

    server: tuple[str, int]
    peers: frozenset[tuple[str, int]]
    protected: tuple[tuple[str, str], ...]
    encapsulation: Literal["udp", "none"] = "udp"
    mode: str = "tunnel"  # or transport, where `protected` does not count: packets have the hosts' own addresses
    pattern: bytes = PATTERN
    more_servers: frozenset[tuple[str, int]] = frozenset()  # where peers have tunnels with several

    @property
    def servers(self) -> frozenset[tuple[str, int]]:
        """All of them."""
        return self.more_servers | {self.server}


class Kind(enum.StrEnum):
    """What a frame of the wire is, by its outer headers and the draft's demultiplexer."""

    ARP = "arp"
    LINK_ICMPV6 = "link icmpv6"
    IKE = "ike"
    KEEPALIVE = "keepalive"
    ESP = "esp"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Outer:
    """One frame that holds no fragment."""

    kind: Kind
    what: str  # for people: "UDP 203.0.113.2:337 > 203.0.113.18:500"
    from_server: bool = False
    payload: bytes = b""


def classify(frame: bytes, expected: WireExpectation) -> Outer:
    """What an Ethernet frame is, by its outer headers and the draft's demultiplexer (clauses 3.2 and 4.3)."""
    if len(frame) < 14:
        return Outer(Kind.FOREIGN, f"frame of {len(frame)} octets")
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype == _ARP:
        return Outer(Kind.ARP, "ARP")
    if ethertype == _IPV6:
        return _classify_ipv6(frame[14:])
    packet = frame[14:]
    if ethertype != _IP or len(packet) < 20 or packet[0] >> 4 != 4:
        return Outer(Kind.FOREIGN, f"ethertype {ethertype:#06x}")
    return _classify_ipv4(packet, expected)


def _classify_ipv6(packet: bytes) -> Outer:
    if len(packet) < 48:
        return Outer(Kind.FOREIGN, "IPv6")
    header, body, source = packet[6], packet[40:], ipaddress.IPv6Address(packet[8:24])
    if header == 0:  # multicast listener reports come behind a hop-by-hop option, the router alert
        header, body = body[0], body[(body[1] + 1) * 8 :]
    link_only = source.is_link_local or source.is_unspecified
    if header == 58 and body and body[0] in _LINK_ICMPV6 and link_only:
        return Outer(Kind.LINK_ICMPV6, f"ICMPv6 type {body[0]} from {source}")
    return Outer(Kind.FOREIGN, f"IPv6, next header {header}, from {source}")


def _classify_ipv4(packet: bytes, expected: WireExpectation) -> Outer:
    length = (packet[0] & 15) * 4
    (total,) = struct.unpack_from("!H", packet, 2)
    protocol, source, destination = packet[9], dotted(packet[12:16]), dotted(packet[16:20])
    body = packet[length:total]
    servers = {address for address, _ in expected.servers}
    from_server = source in servers
    if protocol == _ESP:
        what = f"bare ESP {source} > {destination}"
        peers = {address for address, _ in expected.peers}
        inward = source in peers and destination in servers
        allowed = expected.encapsulation == "none" and (inward or (from_server and destination in peers))
        return Outer(Kind.ESP if allowed else Kind.FOREIGN, what, from_server)
    if protocol != _UDP or len(body) < 8:
        name = {1: "ICMP", 6: "TCP", 17: "short UDP"}.get(protocol, f"IP protocol {protocol}")
        return Outer(Kind.FOREIGN, f"{name} {source} > {destination}")
    source_port, destination_port = struct.unpack_from("!HH", body)
    what = f"UDP {source}:{source_port} > {destination}:{destination_port}"
    ends = (source, source_port), (destination, destination_port)
    from_server = ends[0] in expected.servers
    server, peer = ends if from_server else ends[::-1]
    if server not in expected.servers or peer not in expected.peers:
        return Outer(Kind.FOREIGN, f"{what}, which is no expected flow")
    kind, note = _demultiplex(body[8:], expected)
    return Outer(kind, what + note, from_server, body[8:])


def _demultiplex(payload: bytes, expected: WireExpectation) -> tuple[Kind, str]:
    if payload == b"\xff":
        return Kind.KEEPALIVE, ""
    if len(payload) > 8 and payload[:8] == bytes(8):
        if expected.encapsulation == "udp":
            return Kind.ESP, ""
        return Kind.FOREIGN, ": ESP in UDP, where bare ESP was expected"
    stated = int.from_bytes(payload[24:28], "big")
    if len(payload) < _ISAKMP_HEADER or payload[17] >> 4 != 1 or stated != len(payload):
        return Kind.FOREIGN, ": neither ESP behind its marker, nor an IKE message, nor a keepalive"
    return Kind.IKE, ""


def dotted(address: bytes) -> str:
    """An IPv4 address as people write it."""
    return ".".join(map(str, address))
