"""How fast TCP runs through a tunnel and, beside it, on the plain path: iperf3 forward and reverse.

The plain path is the lab's own measure: if iperf3 cannot run there, the lab is broken; on the tunnel's path it is the
implementation that failed.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from natbed.checks import CheckResult, Verdict
from natbed.node_like import NodeLike

_START_DEADLINE = 5.0  # seconds until the server listens
_SLACK = 10.0  # seconds beyond the test's own time
_CONNECT_TIMEOUT = 3000  # milliseconds


class IperfError(Exception):
    """iperf3 could not measure; the text is its own reason, in one line."""


@dataclass(frozen=True, slots=True)
class IperfPath:
    """Where to measure: between which nodes and which of their addresses, and the server's TCP port.

    `dialed` is the address by which the client knows the server, where it is another.
    """

    client: NodeLike
    server: NodeLike
    client_address: str
    server_address: str
    port: int = 5201
    dialed: str = ""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """What arrived at the receiver, and how often the sender repeated a segment."""

    megabits_per_second: float
    retransmits: int
    seconds: float


class PathRates(msgspec.Struct, frozen=True):
    """Forward is client to server; reverse is server to client, over a connection that the client still begins."""

    forward: Rate
    reverse: Rate


def measure_path(path: IperfPath, *, duration: int = 2) -> PathRates:
    """Measure both directions, one after the other, `duration` whole seconds each. Raises `IperfError`."""
    return PathRates(
        forward=measure_direction(path, duration=duration),
        reverse=measure_direction(path, duration=duration, reverse=True),
    )


def measure_direction(path: IperfPath, *, duration: int = 2, reverse: bool = False) -> Rate:
    """One iperf3 TCP test of `duration` whole seconds. Raises `IperfError` with the reason."""
    argv = [
        "iperf3",
        "--json",
        "-c",
        path.dialed or path.server_address,
        "-B",
        path.client_address,
        "-p",
        str(path.port),
    ]
    argv += ["-t", str(duration), "--connect-timeout", str(_CONNECT_TIMEOUT)] + ["-R"] * reverse
    with _server(path):
        try:
            client = path.client.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        except OSError as error:
            raise IperfError(f"cannot start iperf3: {error}") from error
        with client:
            try:
                printed, complaint = client.communicate(timeout=duration + _SLACK)
            except subprocess.TimeoutExpired:
                client.kill()
                raise IperfError(f"iperf3 did not end within {duration + _SLACK} s") from None
    return parse_iperf(printed, complaint)


def parse_iperf(printed: str, complaint: str = "") -> Rate:
    """The rate in iperf3's JSON. Raises `IperfError` for an `error` in it, which iperf3 may report with exit code 0."""
    try:
        report: dict[str, Any] = json.loads(printed)
    except ValueError as error:
        raise IperfError(f"iperf3 printed no JSON: {(complaint or printed).strip() or 'nothing at all'}") from error
    if "error" in report:
        raise IperfError(f"iperf3: {report['error']}")
    try:
        received, sent = report["end"]["sum_received"], report["end"]["sum_sent"]
        rate = Rate(
            megabits_per_second=round(received["bits_per_second"] / 1e6, 3),
            retransmits=int(sent.get("retransmits", 0)),
            seconds=round(received["seconds"], 3),
        )
    except (KeyError, TypeError) as error:
        raise IperfError(f"iperf3's report lacks {error}") from error
    if rate.megabits_per_second == 0:
        raise IperfError("iperf3: nothing arrived at the receiver")
    return rate


@contextmanager
def _server(path: IperfPath) -> Iterator[None]:
    """An iperf3 server for one test, from when it listens until after the block."""
    argv = ["iperf3", "-s", "-1", "--forceflush", "-B", path.server_address, "-p", str(path.port)]
    try:
        server = path.server.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise IperfError(f"cannot start iperf3: {error}") from error
    with server:
        try:
            _await_listening(server)
            yield
        finally:
            server.kill()


def _await_listening(server: subprocess.Popen[bytes]) -> None:
    if server.stdout is None:
        raise IperfError("iperf3's output is not piped")
    until = time.monotonic() + _START_DEADLINE
    output = b""
    while b"listening" not in output:
        readable, _, _ = select.select([server.stdout], [], [], max(until - time.monotonic(), 0))
        part = os.read(server.stdout.fileno(), 4096) if readable else b""
        output += part
        if not part:
            said = output.decode(errors="replace").strip().replace("\n", " / ") or "nothing"
            raise IperfError(f"the iperf3 server does not listen; it said: {said}")


def measure(
    tunnel: IperfPath,
    plain: IperfPath | PathRates,
    *,
    name: str = "throughput",
    duration: int = 2,
    minimum_ratio: float = 0.0,
) -> CheckResult:
    """Measure both paths and set the tunnel against the plain one; `plain` may have been measured before.

    `details` hold the rates and `ratio` (tunnel / plain) of each direction. LAB_BROKEN when the plain path cannot be
    measured; FAILED when the tunnel cannot, or when it keeps less than `minimum_ratio` of the plain rate.
    """
    try:
        reference = plain if isinstance(plain, PathRates) else measure_path(plain, duration=duration)
    except IperfError as error:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason=f"plain path: {error}")
    details = {"plain": msgspec.to_builtins(reference)}
    try:
        rates = measure_path(tunnel, duration=duration)
    except IperfError as error:
        return CheckResult(name=name, verdict=Verdict.FAILED, reason=f"tunnel: {error}", details=details)
    ratio = {
        "forward": round(rates.forward.megabits_per_second / reference.forward.megabits_per_second, 4),
        "reverse": round(rates.reverse.megabits_per_second / reference.reverse.megabits_per_second, 4),
    }
    details |= {"tunnel": msgspec.to_builtins(rates), "ratio": ratio}
    passed = min(ratio.values()) >= minimum_ratio
    reason = (
        f"tunnel {rates.forward.megabits_per_second:.0f} / {rates.reverse.megabits_per_second:.0f} Mbit/s, "
        f"plain {reference.forward.megabits_per_second:.0f} / {reference.reverse.megabits_per_second:.0f} Mbit/s"
    )
    if not passed:
        reason += f": less than {minimum_ratio:.0%} of the plain path"
    return CheckResult(name=name, verdict=Verdict.PASSED if passed else Verdict.FAILED, reason=reason, details=details)
