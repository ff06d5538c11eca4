"""Packet captures that miss nothing, or say that they did.

One thread reads an AF_PACKET socket of the node's namespace and writes pcap with nanosecond time stamps. The socket
listens from the moment `bind` returns and is read until it is empty at the end, so neither edge needs a pause; the
kernel counts what it had to drop. Packets that the kernel would leave to offloads are written as they would appear on
a real wire: UDP GSO trains cut into their datagrams, checksums filled in. TCP super-packets stay whole (up to 64 kB).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from natbed.node_like import NodeLike

SNAPLEN = 262_144  # octets; more than the largest super-packet
_BUFFER = 64 << 20  # octets of kernel memory for what the thread has not read yet
_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_VNET_HDR = 15
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_ARPHRD_LOOPBACK = 772
_LINK_TYPES = {1: 1, _ARPHRD_LOOPBACK: 1, 65534: 101, 519: 101}  # ARPHRD_* -> pcap: Ethernet; TUN devices raw IP
_VNET_HEADER = struct.Struct("=BBHHHH")  # flags, GSO type, header length, segment size, checksum start and offset
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
        """Begin; every packet that passes after the return is caught. Raises `CaptureError` with the reason."""
        try:
            self._socket = self.node.call(self._open_socket)
        except OSError as error:
            raise CaptureError(f"cannot capture on {self.node.name}:{self.interface}: {error}") from error
        try:
            device_type = self._socket.getsockname()[3]
            if device_type not in _LINK_TYPES:
                raise CaptureError(f"cannot capture on {self.interface}: device type {device_type} is not known")
            self._skip_outgoing = device_type == _ARPHRD_LOOPBACK
            self._file = self.path.open("wb")
        except BaseException:
            self._socket.close()
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
            self._thread.join()
            os.close(self._stop_read)
            if self._error is not None or self._summary is None:
                raise CaptureError(f"capture of {self.node.name}:{self.interface} broke: {self._error!r}")
        return self._summary

    def _open_socket(self) -> socket.socket:
        # Protocol 0 receives nothing until bind names the interface: no packet of another interface slips in.
        receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            receiver.setblocking(False)
            receiver.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            try:
                receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            except PermissionError:  # in a user namespace the system's limit holds; drops are counted anyway
                receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            receiver.bind((self.interface, _ETH_P_ALL))
        except BaseException:
            receiver.close()
            raise
        return receiver

    def _record(self) -> None:
        packets = 0
        limit_reached = False
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.register(self._stop_read, select.POLLHUP)
            stopping = False
            while not stopping and not limit_reached:
                stopping = any(fd == self._stop_read for fd, _ in poll.poll())
                packets, limit_reached = self._drain(packets)
                self._file.flush()
            statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            _, dropped = struct.unpack("=II", statistics)
            self._summary = CaptureSummary(
                path=str(self.path),
                packets=packets,
                dropped=dropped,
                limit_reached=limit_reached,
            )
        except BaseException as error:
            self._error = error
        finally:
            self._socket.close()
            self._file.close()

    def _drain(self, packets: int) -> tuple[int, bool]:
        buffer = bytearray(SNAPLEN)
        view = memoryview(buffer)
        while True:
            try:
                size, ancillary, _, address = self._socket.recvmsg_into([buffer], 64)
            except BlockingIOError:
                return packets, False
            except OSError as error:
                raise CaptureError(f"{self.interface} went away during the capture: {error}") from error
            if self._skip_outgoing and address[2] == socket.PACKET_OUTGOING:
                continue
            seconds, nanoseconds = _kernel_time(ancillary)
            for frame in as_on_the_wire(bytes(view[:size])):
                _write_frame(self._file, seconds, nanoseconds, frame)
                packets += 1
                if packets == self.limit:
                    return packets, True


def _kernel_time(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("=qq", data[:16])
            return seconds, nanoseconds
    raise CaptureError("the kernel gave a packet without a time stamp")


def _file_header(link_type: int) -> bytes:
    return struct.pack("<IHHiIII", _MAGIC_NANOSECONDS, 2, 4, 0, 0, SNAPLEN, link_type)


def _write_frame(file: BinaryIO, seconds: int, nanoseconds: int, frame: bytes) -> None:
    file.write(struct.pack("<IIII", seconds, nanoseconds, len(frame), len(frame)) + frame)


def as_on_the_wire(packet: bytes) -> list[bytes]:
    """The frames that a packet with virtio header becomes on a real wire: GSO of UDP cut up, checksums filled in."""
    flags, gso, _, segment, start, offset = _VNET_HEADER.unpack_from(packet)
    frame = packet[_VNET_HEADER.size :]
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
            _write_frame(file, frame.nanoseconds // 10**9, frame.nanoseconds % 10**9, frame.data)


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
