"""Packet captures that miss nothing, or say that they did.

One thread reads a ring that the kernel copies packets into (capture_ring.py) and writes pcap with nanosecond time
stamps. The ring listens from the moment `bind` returns and is read until all that was accepted is in the file, so
neither edge needs a pause; the kernel counts what it had to drop. Packets that the kernel would leave to offloads are
written as they would appear on a real wire: UDP GSO trains cut into their datagrams, checksums filled in. TCP
super-packets stay whole (up to 64 kB).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from natbed.capture_ring import CaptureRing, Copied
from natbed.node_like import NodeLike

SNAPLEN = 262_144  # octets; more than the largest super-packet
_ARPHRD_LOOPBACK = 772
_LINK_TYPES = {1: 1, _ARPHRD_LOOPBACK: 1, 65534: 101, 519: 101}  # ARPHRD_* -> pcap: Ethernet; TUN devices raw IP
_VNET_HEADER = struct.Struct("=BBHHHH")  # flags, GSO type, header length, segment size, checksum start and offset
_FRAME_HEADER = struct.Struct("<IIII")  # seconds, nanoseconds, octets kept, octets that the frame had
_NEEDS_CSUM = 1
_GSO_UDP_L4 = 5
_MAGIC_NANOSECONDS = 0xA1B23C4D


class CaptureError(RuntimeError):
    """The capture could not be made or read: the lab's fault, never the implementation's."""


class CaptureSummary(msgspec.Struct, frozen=True):
    """What a capture holds: packets written, packets that the kernel dropped, and whether its limit ended it early."""

    path: str
    packets: int
    dropped: int
    limit_reached: bool

    @property
    def complete(self) -> bool:
        """Whether every packet of the capture's time is in the file."""
        return self.dropped == 0 and not self.limit_reached


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured packet: its number as Wireshark counts (from 1), time in nanoseconds, and octets."""

    number: int
    nanoseconds: int
    data: bytes
    truncated: bool


class Capture:
    """Context manager: capture all packets of `interface` in `node` to the pcap file `path`.

    With `limit` the capture ends by itself after so many packets: use it where bulk traffic flows, since a full
    capture of it costs more than it proves. `summary` is there once the capture has ended. On loopback devices, where
    the kernel shows each packet twice, only the received one is written.
    """

    def __init__(self, node: NodeLike, interface: str, path: Path, *, limit: int | None = None) -> None:
        self.node = node
        self.interface = interface
        self.path = path
        self.limit = limit
        self._summary: CaptureSummary | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:  # what went wrong inside must not be hidden by what goes wrong here
            with contextlib.suppress(CaptureError):
                self.stop()

    @property
    def summary(self) -> CaptureSummary:
        """What was captured. Raises `CaptureError` while the capture still runs."""
        if self._summary is None:
            raise CaptureError(f"capture of {self.node.name}:{self.interface} has not ended yet")
        return self._summary

    def start(self) -> None:
        """Begin; every packet that passes after the return is caught. Raises `CaptureError` with the reason.

        It takes some 10 ms, in which the kernel waits until no processor can see the socket without its ring.
        """
        try:
            self._ring = self.node.call(lambda: CaptureRing(self.interface))
        except OSError as error:
            raise CaptureError(f"cannot capture on {self.node.name}:{self.interface}: {error}") from error
        try:
            device_type = self._ring.device_type
            if device_type not in _LINK_TYPES:
                raise CaptureError(f"cannot capture on {self.interface}: device type {device_type} is not known")
            self._skip_outgoing = device_type == _ARPHRD_LOOPBACK
            self._file = self.path.open("wb")
        except BaseException:
            self._ring.close()
            raise
        self._file.write(_file_header(_LINK_TYPES[device_type]))
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._record, name=f"capture {self.node.name}:{self.interface}")
        self._thread.daemon = True
        self._thread.start()

    def stop(self) -> CaptureSummary:
        """End the capture once everything that passed before this call is in the file. Stopping twice is no error."""
        if self._summary is None:
            os.close(self._stop_write)
            self._ended.wait()
            os.close(self._stop_read)
            if self._error is not None or self._summary is None:
                raise CaptureError(f"capture of {self.node.name}:{self.interface} broke: {self._error!r}")
        return self._summary

    def _record(self) -> None:
        try:
            packets = self._write_all()
            self._summary = CaptureSummary(
                path=str(self.path),
                packets=packets,
                dropped=self._ring.count().dropped,
                limit_reached=packets == self.limit,
            )
        except BaseException as error:
            self._error = error
        finally:
            self._file.close()
            self._ended.set()
            self._ring.close()  # takes time that nobody has to wait for

    def _write_all(self) -> int:
        """Write what passes until the capture is stopped or its limit reached; the number of packets written."""
        packets = 0
        for copies in self._blocks():
            for copy in copies:
                if self._skip_outgoing and copy.outgoing:
                    continue
                for frame, length in _as_written(copy):
                    _write_frame(self._file, copy.seconds, copy.nanoseconds, frame, length)
                    packets += 1
                    if packets == self.limit:
                        return packets
            self._file.flush()
        return packets

    def _blocks(self) -> Iterator[list[Copied]]:
        poll = select.poll()
        poll.register(self._ring, select.POLLIN)
        poll.register(self._stop_read, select.POLLHUP)
        try:
            while not any(fd == self._stop_read for fd, _ in poll.poll()):
                yield self._ring.take()
            yield from self._ring.rest()
        except OSError as error:
            raise CaptureError(f"{self.interface}: {error}") from error


def _file_header(link_type: int) -> bytes:
    return struct.pack("<IHHiIII", _MAGIC_NANOSECONDS, 2, 4, 0, 0, SNAPLEN, link_type)


def _write_frame(file: BinaryIO, seconds: int, nanoseconds: int, frame: bytes, length: int) -> None:
    file.write(_FRAME_HEADER.pack(seconds, nanoseconds, len(frame), length) + frame)


def _as_written(copy: Copied) -> list[tuple[bytes, int]]:
    """The frames of a packet, and how long they were: one that no block holds whole is written as it is."""
    if len(copy.frame) < copy.length:
        return [(copy.frame, copy.length)]
    return [(frame, len(frame)) for frame in as_on_the_wire(copy.header, copy.frame)]


def as_on_the_wire(header: bytes, frame: bytes) -> list[bytes]:
    """The frames that one with a virtio header becomes on a real wire: GSO of UDP cut up, checksums filled in."""
    flags, gso, _, segment, start, offset = _VNET_HEADER.unpack(header)
    if not flags & _NEEDS_CSUM:
        return [frame]
    if gso & 0x7F == _GSO_UDP_L4 and segment:
        return _cut_udp_train(frame, start, segment)
    return [_with_checksum(frame, start, offset)]


def _with_checksum(frame: bytes, start: int, offset: int) -> bytes:
    """Complete a partial checksum: the field holds the pseudo-header's sum (Linux, CHECKSUM_PARTIAL)."""
    field = start + offset
    if start >= len(frame) or field + 2 > len(frame):
        return frame
    body = frame[start:]
    checksum = 0xFFFF - _ones_complement_sum(body)
    return frame[:field] + struct.pack("!H", checksum or 0xFFFF) + frame[field + 2 :]


def _ones_complement_sum(data: bytes) -> int:
    total = int.from_bytes(data + bytes(len(data) % 2), "big")
    return total % 0xFFFF or (0xFFFF if total else 0)


def _cut_udp_train(frame: bytes, start: int, segment: int) -> list[bytes]:
    """Cut a UDP GSO packet (UDP_SEGMENT) into the datagrams that the kernel or the card would send."""
    network = start - 20
    if network < 0 or frame[network] != 0x45:  # IPv6 or IP options: left whole, and the reader sees a long datagram
        return [_with_checksum(frame, start, 6)]
    link, header, payload = frame[:network], frame[network:start], frame[start + 8 :]
    ports = frame[start : start + 4]
    first_id = int.from_bytes(header[4:6], "big")
    frames = []
    for index, position in enumerate(range(0, len(payload), segment)):
        part = payload[position : position + segment]
        length = 8 + len(part)
        ip = bytearray(header)
        struct.pack_into("!HH", ip, 2, len(ip) + length, (first_id + index) & 0xFFFF)
        struct.pack_into("!H", ip, 10, 0)
        struct.pack_into("!H", ip, 10, 0xFFFF - _ones_complement_sum(bytes(ip)))
        pseudo = bytes(ip[12:20]) + struct.pack("!HH", socket.IPPROTO_UDP, length)
        udp = ports + struct.pack("!HH", length, 0) + part
        checksum = 0xFFFF - _ones_complement_sum(pseudo + udp)
        frames.append(link + bytes(ip) + udp[:6] + struct.pack("!H", checksum or 0xFFFF) + part)
    return frames


def write_pcap(path: Path, frames: list[Frame], *, link_type: int = 1) -> None:
    """Write frames as a pcap file with nanosecond time stamps (link type 1 is Ethernet)."""
    with path.open("wb") as file:
        file.write(_file_header(link_type))
        for frame in frames:
            _write_frame(file, frame.nanoseconds // 10**9, frame.nanoseconds % 10**9, frame.data, len(frame.data))


def read_pcap(path: Path) -> list[Frame]:
    """Every frame of a pcap file as this module writes them (little-endian, nanoseconds). Raises `CaptureError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CaptureError(f"capture {path}: {error.strerror}") from error
    if len(content) < 24 or content[:4] != struct.pack("<I", _MAGIC_NANOSECONDS):
        raise CaptureError(f"capture {path}: not a pcap file with nanosecond time stamps")
    frames: list[Frame] = []
    position = 24
    while position < len(content):
        if position + 16 > len(content):
            raise CaptureError(f"capture {path}: ends inside a frame header at octet {position}")
        seconds, nanoseconds, kept, length = struct.unpack_from("<IIII", content, position)
        position += 16
        data = content[position : position + kept]
        if len(data) < kept:
            raise CaptureError(f"capture {path}: ends inside frame {len(frames) + 1}")
        frames.append(Frame(len(frames) + 1, seconds * 10**9 + nanoseconds, data, kept < length))
        position += kept
    return frames
