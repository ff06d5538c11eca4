"""Measures what an impaired link does, with packets of an IP protocol that nothing else uses, before it is relied on.

The probes are put on the link at its sending end, frame by frame, and read by a raw socket of the receiver: no route,
no ARP and no implementation has a part in it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import select
import socket
import statistics
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from natbed.link import Interface
from natbed.node_kinds import Segment

from .base import Impairment, ImpairmentError

_PROTOCOL = 253  # for experiments (RFC 3692)
_PROBES = 1000  # where shares are measured
_FEW = 40  # where time alone is
_GAP = 0.0005  # seconds between probes
_ETHERTYPE = struct.Struct("!6s6sH")
_HEADER = struct.Struct("!BBHHHBBH4s4s")
_NUMBER = struct.Struct("!Id")
_SMALL = 60  # octets of a probe
_ATTEMPTS = 3
_LATE_SECONDS = 0.3  # beyond all delays, for the last probes on a busy machine
_STEP = 0.01  # seconds that are waited for them at once
_SIGMAS = 5.0
_TIME_TOLERANCE = 0.02  # seconds by which a median delay may be off on a busy machine
_FASTEST = 200e6  # bit/s; faster, this process would be what is measured
_LARGE = 1400  # octets of a packet where rate is measured
_RATE_SECONDS = 0.4
_RATE_TOLERANCE = 0.15
_BURST = 16_000  # octets that pass a limited rate at once


@dataclass(slots=True)
class Probes:
    """What became of numbered probes: (number, seconds under way) as they came, and how many were damaged."""

    sent: int
    came: list[tuple[int, float]] = field(default_factory=list)
    damaged: int = 0
    octets: int = 0
    first: float = 0.0
    last: float = 0.0


def prove(sender: Interface, receiver: Interface, asked: Impairment) -> dict[str, float]:
    """See that the link does what is asked, as far as it can be measured; what was measured, by name.

    Raises `ImpairmentError` where it does something else.
    """
    if isinstance(receiver.node, Segment):
        return {}  # a bridge has no socket; what can be asked of its ports is rate, delay and loss by the kernel's own
    measured: dict[str, float] = {}
    shares = bool(asked.loss or asked.every_nth or asked.duplicate or asked.corrupt or asked.reorder)
    if shares or asked.delay:
        probes = _PROBES if shares else _FEW
        measured |= _once_more_if_late(lambda: _judge_probes(_send(sender, receiver, probes, asked), asked))
    if asked.rate and asked.rate <= _FASTEST:
        measured |= _once_more_if_late(lambda: _judge_rate(_send_much(sender, receiver, asked.rate), asked))
    if asked.drop_fragments:
        if _send(sender, receiver, _FEW, asked, fragments=True).came:
            raise ImpairmentError(f"{receiver.name}: a fragment has come through")
        measured["fragments"] = 0
    return measured


class _TooLateError(ImpairmentError):
    """Packets took longer than they should: by the impairment, or because the machine stood still."""


def _once_more_if_late(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """A machine that stood still makes one measurement late, a link that does something else each: three attempts."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return measure()
        except _TooLateError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


def _judge_probes(found: Probes, asked: Impairment) -> dict[str, float]:
    seen = {number for number, _ in found.came}
    arrived = len(seen) + found.damaged
    lost = max(found.sent - arrived, 0)
    delays = [seconds for _, seconds in found.came]
    if not delays:
        raise ImpairmentError(f"none of {found.sent} probes came through")
    late = sum(number < newest for (number, _), newest in zip(found.came, _newest(found.came), strict=True))
    measured = {
        "loss": lost / found.sent,
        "duplicate": (len(found.came) - len(seen)) / max(len(seen), 1),
        "corrupt": found.damaged / max(arrived, 1),
        "delay": statistics.median(delays),
        "shortest_delay": min(delays),
        "longest_delay": max(delays),
        "late": late / found.sent,
    }
    share = 1 / asked.every_nth if asked.every_nth else asked.loss
    if asked.every_nth:
        _near("every_nth", lost, found.sent * share, max(2.0, 0.02 * found.sent * share))
    else:
        _share("loss", lost, found.sent, share, more=asked.corrupt * found.sent / 2)  # a damaged IP header is a loss
    _share("duplicate", len(found.came) - len(seen), max(len(seen), 1), asked.duplicate)
    _share("corrupt", found.damaged, max(arrived, 1), asked.corrupt)
    least = asked.delay - asked.jitter
    delay = f"delay: {measured['delay'] * 1000:.1f} ms instead of {asked.delay * 1000:.1f} ms"
    if measured["delay"] < least - 0.0005:
        raise ImpairmentError(delay)
    if measured["delay"] > asked.delay + asked.jitter + _TIME_TOLERANCE:
        raise _TooLateError(delay)
    if asked.reorder:
        early = sum(seconds < least / 2 for seconds in delays)
        measured["reorder"] = early / len(delays)
        _share("reorder", early, len(delays), asked.reorder)
    if asked.jitter and max(delays) - min(delays) < asked.jitter:
        spread = (max(delays) - min(delays)) * 1000
        raise ImpairmentError(f"jitter: delays differ by {spread:.1f} ms only; {asked.jitter * 1000:.1f} ms were asked")
    return {name: round(value, 6) for name, value in measured.items()}


def _newest(came: Sequence[tuple[int, float]]) -> list[int]:
    """The largest number that had come before each."""
    newest, found = -1, []
    for number, _ in came:
        found.append(newest)
        newest = max(newest, number)
    return found


def _share(name: str, number: int, of: int, asked: float, more: float = 0.0) -> None:
    tolerance = _SIGMAS * (of * asked * (1 - asked)) ** 0.5 + (0 if asked in (0, 1) else 1)
    _near(name, number, of * asked, tolerance + more)


def _near(name: str, number: float, asked: float, tolerance: float) -> None:
    if abs(number - asked) > tolerance:
        raise ImpairmentError(f"{name}: {number:g} packets instead of {asked:.0f}, give or take {tolerance:.0f}")


def _judge_rate(found: Probes, asked: Impairment) -> dict[str, float]:
    seconds = found.last - found.first
    if seconds <= 0:
        raise ImpairmentError("rate: nothing came through")
    rate = max(found.octets - _BURST, 0) * 8 / seconds
    if abs(rate - asked.rate) > _RATE_TOLERANCE * asked.rate:
        error = _TooLateError if rate < asked.rate else ImpairmentError
        raise error(f"rate: {rate / 1e6:.2f} Mbit/s instead of {asked.rate / 1e6:.2f} Mbit/s")
    return {"rate": round(rate)}


# probes


def _send(sender: Interface, receiver: Interface, count: int, asked: Impairment, *, fragments: bool = False) -> Probes:
    found = Probes(count)
    reader, wire = _sockets(sender, receiver)
    with reader, wire:
        begin = time.monotonic()
        for number in range(count):
            while (left := begin + number * _GAP - time.monotonic()) > 0:
                _read(reader, found, left)
            wire.send(_frame(sender, receiver, _probe(number), fragments=fragments))
            _read(reader, found, 0)
        _read_the_last(reader, found, asked.delay + asked.jitter + _LATE_SECONDS)
    return found


def _send_much(sender: Interface, receiver: Interface, rate: float) -> Probes:
    """Somewhat more than the rate for a while."""
    found = Probes(0)
    reader, wire = _sockets(sender, receiver)
    with reader, wire:
        begin = time.monotonic()
        gap = _LARGE * 8 / rate / 1.5
        count = max(round(_RATE_SECONDS / gap), 60)
        for number in range(count):
            while (left := begin + number * gap - time.monotonic()) > 0:
                _read(reader, found, left)
            with contextlib.suppress(OSError):  # the queue before the limited rate is full
                wire.send(_frame(sender, receiver, _probe(number, _LARGE - 34)))
            _read(reader, found, 0)
        _read_the_last(reader, found, _LATE_SECONDS)
    return found


def _probe(number: int, octets: int = _SMALL) -> bytes:
    """Number, time and filling, and their CRC."""
    data = _NUMBER.pack(number, time.monotonic())
    data += bytes(octets - len(data) - 4)
    return data + zlib.crc32(data).to_bytes(4, "little")


def _sockets(sender: Interface, receiver: Interface) -> tuple[socket.socket, socket.socket]:
    reader = receiver.node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, _PROTOCOL))
    wire = sender.node.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    reader.setblocking(False)
    wire.bind((sender.name, 0))
    return reader, wire


def _read(reader: socket.socket, found: Probes, timeout: float) -> bool:
    """Take what has come, and wait for the first so long; whether anything came."""
    if not select.select([reader], [], [], timeout)[0]:
        return False
    with contextlib.suppress(BlockingIOError):
        while True:
            _take(reader.recv(2048), found)
    return True


def _read_the_last(reader: socket.socket, found: Probes, seconds: float) -> None:
    """Take what comes yet, until nothing has for so many seconds in all.

    They are waited for in steps, of which a machine that stands still meanwhile uses up one, not all.
    """
    steps = math.ceil(seconds / _STEP)
    while steps:
        if not _read(reader, found, _STEP):
            steps -= 1


def _take(packet: bytes, found: Probes) -> None:
    now = time.monotonic()
    data = packet[(packet[0] & 0x0F) * 4 :]
    found.octets += len(packet) + 14
    found.first, found.last = found.first or now, now
    if zlib.crc32(data[:-4]).to_bytes(4, "little") != data[-4:]:
        found.damaged += 1
        return
    number, sent = _NUMBER.unpack_from(data)
    found.came.append((number, now - sent))


def _frame(sender: Interface, receiver: Interface, data: bytes, *, fragments: bool = False) -> bytes:
    source, destination = _addresses(receiver)
    # the second half of what would be twice as long
    offset = 1 if fragments else 0
    fields = (0x45, 0, 20 + len(data), 1, offset, 64, _PROTOCOL, 0, source.packed, destination.packed)
    words = struct.unpack("!10H", _HEADER.pack(*fields))
    checksum = -sum(words) % 0xFFFF
    header = _HEADER.pack(*fields[:7], checksum, *fields[8:])
    return _ETHERTYPE.pack(_octets(receiver.mac), _octets(sender.mac), 0x0800) + header + data


def _addresses(receiver: Interface) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]:
    """A neighbour that there is not, and the receiver's own address."""
    own = ipaddress.IPv4Interface(receiver.node.addresses(receiver.name)[0])
    neighbour = own.network[-2] if own.ip != own.network[-2] else own.network[-3]
    return neighbour, own.ip


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
