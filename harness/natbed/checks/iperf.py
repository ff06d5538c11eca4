"""Runs iperf3 between two nodes, and tells a path that does not carry TCP from an iperf3 that died."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from natbed.isolation import isolated, runtime_directory
from natbed.node_like import NodeLike
from natbed.process import await_exit

_START_DEADLINE = 5.0  # seconds until the server listens
_SLACK = 10.0  # seconds beyond the test's own time
_CONNECT_TIMEOUT = 3000  # milliseconds
_LAST_MOMENT = 0.5  # seconds: the sockets of a killed server are closed a little before it is gone
# What iperf3's client says when a signal that iperf3 catches has ended it, or the server.
_ENDED_BY_SIGNAL = ("interrupt", "the server has terminated")


class IperfError(Exception):
    """iperf3 could not measure; the text is its own reason, in one line."""


class IperfDied(IperfError):  # noqa: N818 - reads as what happened
    """It was iperf3 itself that ended or could not begin, whatever the path is like."""


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
    options = ["-t", str(duration), "--connect-timeout", str(_CONNECT_TIMEOUT)] + ["-R"] * reverse
    return parse_iperf(*run_iperf(path, options, duration + _SLACK))


def run_iperf(path: IperfPath, options: Sequence[str], timeout: float) -> tuple[str, str]:
    """One iperf3 test, client with `options`: what the client printed, and its complaint.

    Raises `IperfError` when it has not ended after `timeout` seconds, `IperfDied` when one end was killed.
    """
    address = path.dialed or path.server_address
    argv = ["iperf3", "--json", "-c", address, "-B", path.client_address, "-p", str(path.port), *options]
    with _environment() as environment, _server(path, environment) as server:
        try:
            client = path.client.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        except OSError as error:
            raise IperfDied(f"cannot start iperf3: {error}") from error
        with client:
            try:
                printed, complaint = client.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                client.kill()
                _server_not_ended(server)
                raise IperfError(f"iperf3 did not end within {timeout:g} s") from None
            except BaseException:
                client.kill()
                raise
        _not_killed(client, "client")
        if client.returncode or '"error"' in printed:
            await_exit(server.pid, time.monotonic() + _LAST_MOMENT)
            _server_not_ended(server)
        return printed, complaint


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    """An iperf3's environment: with a folder of its own for the file that it may leave when it is killed."""
    # a probe of `natbed doctor` has another /run
    place = runtime_directory() if isolated() and runtime_directory().is_dir() else None
    with tempfile.TemporaryDirectory(prefix="iperf3-", dir=place) as folder:
        yield {**os.environ, "TMPDIR": folder}


def _not_killed(process: subprocess.Popen[Any], end: str) -> None:
    """Raises `IperfDied` when it was; it may run still."""
    code = process.poll()
    if code is not None and code < 0:
        raise IperfDied(f"the iperf3 {end} was killed by {signal.Signals(-code).name}")


def _server_not_ended(server: subprocess.Popen[bytes]) -> None:
    """Raises `IperfDied` when a signal did that: of a server that is gone its client may know no more than a reset."""
    _not_killed(server, "server")
    said = server.stdout.read() if server.stdout is not None and server.poll() is not None else b""
    if b"interrupt - " in said:
        raise IperfDied("iperf3: the server has terminated")


def parse_iperf(printed: str, complaint: str = "") -> Rate:
    """The rate in iperf3's JSON. Raises `IperfError` for an `error` in it, which iperf3 may report with exit code 0."""
    report = read_report(printed, complaint)
    try:
        received, sent = report["end"]["sum_received"], report["end"]["sum_sent"]
        rate = Rate(
            megabits_per_second=round(received["bits_per_second"] / 1e6, 3),
            retransmits=int(sent.get("retransmits", 0)),
            seconds=round(received["seconds"], 3),
        )
    except (KeyError, TypeError) as error:
        raise IperfDied(f"iperf3's report lacks {error}") from error
    if rate.megabits_per_second == 0:
        raise IperfError("iperf3: nothing arrived at the receiver")
    return rate


def read_report(printed: str, complaint: str) -> dict[str, Any]:
    """iperf3's JSON. Raises `IperfError` where it says what went wrong, `IperfDied` where there is none."""
    try:
        report: dict[str, Any] = json.loads(printed)
    except ValueError as error:
        raise IperfDied(f"iperf3 printed no JSON: {(complaint or printed).strip() or 'nothing at all'}") from error
    if "error" in report:
        problem = str(report["error"])
        raise (IperfDied if problem.startswith(_ENDED_BY_SIGNAL) else IperfError)(f"iperf3: {problem}")
    return report


@contextmanager
def _server(path: IperfPath, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """An iperf3 server for one test, from when it listens until after the block. Raises `IperfDied`."""
    argv = ["iperf3", "-s", "-1", "--forceflush", "-B", path.server_address, "-p", str(path.port)]
    try:
        server = path.server.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    except OSError as error:
        raise IperfDied(f"cannot start iperf3: {error}") from error
    with server:
        try:
            _await_listening(server)
            yield server
        finally:
            server.kill()


def _await_listening(server: subprocess.Popen[bytes]) -> None:
    if server.stdout is None:
        raise IperfDied("iperf3's output is not piped")
    until = time.monotonic() + _START_DEADLINE
    output = b""
    while b"listening" not in output:
        readable, _, _ = select.select([server.stdout], [], [], max(until - time.monotonic(), 0))
        part = os.read(server.stdout.fileno(), 4096) if readable else b""
        output += part
        if not part:
            said = output.decode(errors="replace").strip().replace("\n", " / ") or "nothing"
            raise IperfDied(f"the iperf3 server does not listen; it said: {said}")
