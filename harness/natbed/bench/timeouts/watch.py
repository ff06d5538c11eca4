"""What passed a NAT's inside interface, by its capture: whose packets, when, and of what kind."""

from __future__ import annotations

import pathlib
import socket
from dataclasses import dataclass

from natbed.capture import read_pcap

_ETHERNET, _UDP, _ESP = 14, 17, 50
_IKE_PORT = 500
KEEPALIVE, ESP_IN_UDP, PLAIN_ESP, IKE = "keepalive", "ESP in UDP", "ESP", "IKE"


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet of a tunnel. `octets` has the IP header; `zeros` are those that a datagram begins with, up to 8."""

    seconds: float  # since the epoch
    source: str
    destination: str
    kind: str
    octets: int
    zeros: int = 0


def packets(pcap: pathlib.Path) -> list[Packet]:
    """The IKE, ESP and keepalives in a capture of an Ethernet. Raises CaptureError."""
    found = (_packet(frame.nanoseconds / 1e9, frame.data) for frame in read_pcap(pcap))
    return [packet for packet in found if packet is not None]


def of(address: str, all_packets: list[Packet]) -> list[Packet]:
    """Those to or from a host."""
    return [packet for packet in all_packets if address in (packet.source, packet.destination)]


def _packet(seconds: float, frame: bytes) -> Packet | None:
    ip = frame[_ETHERNET:]
    if frame[12:14] != b"\x08\x00" or len(ip) < 20:
        return None
    header, octets = (ip[0] & 0xF) * 4, int.from_bytes(ip[2:4], "big")
    ends = socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20])
    if ip[9] == _ESP:
        return Packet(seconds, *ends, PLAIN_ESP, octets)
    udp = ip[header:octets]
    if ip[9] != _UDP or _IKE_PORT not in (int.from_bytes(udp[:2], "big"), int.from_bytes(udp[2:4], "big")):
        return None
    data = udp[8:]
    if data == b"\xff":
        return Packet(seconds, *ends, KEEPALIVE, octets)
    zeros = len(data[:8]) - len(data[:8].lstrip(b"\0"))
    return Packet(seconds, *ends, ESP_IN_UDP if zeros == 8 else IKE, octets, zeros)
