"""What a capture of a lab's wire has seen, packet by packet."""

from __future__ import annotations

import pathlib
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from natbed.capture import read_pcap

ICMP, TCP, UDP, ESP = 1, 6, 17, 50
KEEPALIVE, MARKER = b"\xff", bytes(8)


@dataclass(frozen=True, slots=True)
class Packet:
    """One captured IPv4 packet; ports are 0 where there are none. `payload` is UDP's, of others the IP packet's."""

    moment: float  # seconds since the epoch
    protocol: int
    source: tuple[str, int]
    destination: tuple[str, int]
    payload: bytes
    ip: bytes  # the whole packet
    fragment: bool
    number: int  # in the capture, from 1

    @property
    def kind(self) -> str:
        """What the draft's demultiplexer makes of it (3.2, 4.3): esp, keepalive or ike; "" for no UDP."""
        if self.protocol != UDP or self.fragment:
            return ""
        if self.payload == KEEPALIVE:
            return "keepalive"
        return "esp" if self.payload[:8] == MARKER else "ike"

    @property
    def spi(self) -> str:
        """The SPI of ESP, in UDP or not, as status shows it."""
        start = 8 if self.protocol == UDP else 0
        return f"0x{self.payload[start : start + 4].hex()}"


class Wire:
    """What a capture has seen, once it has ended."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.packets: list[Packet] = []

    def read(self) -> None:
        for frame in read_pcap(self.path):
            if frame.data[12:14] == b"\x08\x00":
                self.packets.append(_packet(frame.data[14:], frame.nanoseconds / 1e9, frame.number))

    def of(self, kind: str, source: str = "") -> list[Packet]:
        """The packets of a kind, from one address where it is given."""
        return [p for p in self.packets if p.kind == kind and source in ("", p.source[0])]

    def tshark(self, *fields: str, options: Sequence[str] = ()) -> list[list[str]]:
        """Fields of every frame, as tshark sees them."""
        command = [
            "tshark",
            "-n",
            "-r",
            str(self.path),
            *options,
            "-T",
            "fields",
            *(w for f in fields for w in ("-e", f)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return [line.split("\t") for line in done.stdout.splitlines()]


def _packet(ip: bytes, moment: float, number: int) -> Packet:
    start, total = (ip[0] & 15) * 4, int.from_bytes(ip[2:4], "big")
    offset = int.from_bytes(ip[6:8], "big")
    fragment = bool(offset & 0x3FFF)
    protocol, body = ip[9], ip[start:total]
    with_ports = protocol in (TCP, UDP) and not offset & 0x1FFF
    ports = (int.from_bytes(body[0:2], "big"), int.from_bytes(body[2:4], "big")) if with_ports else (0, 0)
    return Packet(
        moment,
        protocol,
        (socket.inet_ntoa(ip[12:16]), ports[0]),
        (socket.inet_ntoa(ip[16:20]), ports[1]),
        body[8:] if protocol == UDP and with_ports else body,
        ip[:total],
        fragment,
        number,
    )
