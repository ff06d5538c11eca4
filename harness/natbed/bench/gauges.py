"""Measurements of one path: TCP with the processor time that it costs, UDP without loss, round trips."""

from __future__ import annotations

import pathlib
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from natbed.checks.iperf import IperfDied, IperfError, IperfPath, Rate, measure_direction, read_report, run_iperf
from natbed.node_like import NodeLike
from natbed.process import CommandFailed
from natbed.stacks.usage import processor_seconds

from .ladder import RUNGS, highest_rung

LOSS = 0.001  # of the datagrams, above which a rate is too high
TRIES, HOPELESS = 2, 0.05  # a little lost once may be a hiccup of the machine, not the path's limit
PAYLOAD = 1300  # octets of a datagram: with all headers it fits on every path
_ARRIVED = 0.9  # of the rate asked for, at least: a sender may not keep it, and the last ones are not counted
_BUFFER = 1 << 20  # octets: what is lost is to be lost on the way, not by a receiver that waits for a processor
_SLACK = 15.0  # seconds beyond an iperf3 test's own
PINGS, PING_INTERVAL = 100, 0.002  # seconds
_ROUND_TRIP = re.compile(r"time=([0-9.]+) ms")


class GaugeError(Exception):
    """Something could not be measured; the message says why in one line."""


@dataclass(frozen=True, slots=True)
class Tcp:
    """Both directions, and the processor seconds that the implementation took at each end for all of it."""

    forward: Rate
    reverse: Rate
    client_seconds: float
    server_seconds: float

    @property
    def gigabytes(self) -> float:
        """10^9 octets that have arrived."""
        return sum(rate.megabits_per_second * rate.seconds for rate in (self.forward, self.reverse)) / 8000

    @property
    def repeated(self) -> int:
        """Segments that were sent again."""
        return self.forward.retransmits + self.reverse.retransmits


def measure_tcp(path: IperfPath, seconds: int, client: Sequence[int] = (), server: Sequence[int] = ()) -> Tcp:
    """TCP forward and reverse for `seconds` each; `client` and `server` are the implementation's processes there.

    Raises IperfError, and GaugeError where such a process has ended.
    """
    before = _ran(client), _ran(server)
    forward = measure_direction(path, duration=seconds)
    reverse = measure_direction(path, duration=seconds, reverse=True)
    return Tcp(forward, reverse, _ran(client) - before[0], _ran(server) - before[1])


def _ran(pids: Sequence[int]) -> float:
    try:
        return processor_seconds(pids)
    except OSError as error:
        raise GaugeError("a process of the implementation has ended") from error


@dataclass(frozen=True, slots=True)
class Datagrams:
    """What became of a stream of datagrams: Mbit/s sent and arrived, and the part of them that was lost."""

    sent: float
    arrived: float
    loss: float


def measure_udp(path: IperfPath, seconds: float, start: float) -> float:
    """The highest rate in Mbit/s of which no more than `LOSS` is lost; `start` is a guess, `seconds` a rung's time.

    Raises IperfError, and GaugeError where even the lowest rung is too high.
    """
    arrived: dict[float, float] = {}
    last = ""

    def holds(rung: float) -> bool:
        nonlocal last
        for _ in range(TRIES):
            found = send_datagrams(path, rung, seconds)
            if found.loss <= LOSS and found.arrived >= _ARRIVED * rung:
                arrived[rung] = found.arrived
                return True
            last = f"of {found.sent:.0f} Mbit/s {found.arrived:.0f} arrived"
            if found.loss > HOPELESS:
                break
        return False

    rung = highest_rung(holds, start)
    if rung < 0:
        raise GaugeError(f"no rate without loss: {last}")
    return arrived[RUNGS[rung]]


def send_datagrams(path: IperfPath, rate: float, seconds: float) -> Datagrams:
    """Send at `rate` Mbit/s for about `seconds`. Raises IperfError."""
    octets = max(int(rate * seconds * 1e6 / 8), PAYLOAD)  # not seconds: iperf3 knows whole ones only
    options = ["-u", "-b", f"{rate}M", "-l", str(PAYLOAD), "-n", str(octets), "-w", str(_buffer(path.client))]
    try:
        return parse_datagrams(*run_iperf(path, options, seconds + _SLACK))
    except IperfError as error:
        raise type(error)(f"UDP at {rate:g} Mbit/s: {error}") from error


def parse_datagrams(printed: str, complaint: str = "") -> Datagrams:
    """From iperf3's JSON. Lost is what is missing between others: the last ones come when the receiver has ended."""
    end = read_report(printed, complaint).get("end", {})
    try:
        sent, received = end["sum_sent"], end["sum_received"]
        return Datagrams(
            sent=sent["bits_per_second"] / 1e6,
            arrived=received["bits_per_second"] / 1e6,
            loss=received["lost_packets"] / received["packets"],
        )
    except ZeroDivisionError:
        raise IperfError("iperf3: nothing arrived at the receiver") from None
    except (KeyError, TypeError) as error:
        raise IperfDied(f"iperf3's report lacks {error}") from error


def _buffer(node: NodeLike) -> int:
    """What a socket may ask for, at most."""

    def limit() -> int:
        return min(int(pathlib.Path(f"/proc/sys/net/core/{name}").read_text()) for name in ("rmem_max", "wmem_max"))

    try:
        return min(node.call(limit), _BUFFER)
    except FileNotFoundError:  # the machine's own, which is not shown inside a namespace by older kernels
        return 208 << 10


def measure_ping(path: IperfPath) -> float:
    """The median round trip of a ping in microseconds. Raises GaugeError where one is lost."""
    address = path.dialed or path.server_address
    argv = ["ping", "-n", "-c", str(PINGS), "-i", str(PING_INTERVAL), "-W", "1", "-I", path.client_address, address]
    try:
        said = path.client.run(argv, timeout=PINGS * PING_INTERVAL + _SLACK, check=False).stdout
    except CommandFailed as error:
        raise GaugeError(str(error)) from error
    times = [float(found) * 1000 for found in _ROUND_TRIP.findall(said)]
    if len(times) < PINGS:
        raise GaugeError(f"ping: {len(times)} of {PINGS} answered")
    return statistics.median(times)
