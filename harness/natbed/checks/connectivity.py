"""Does traffic pass between protected addresses: ping, TCP and UDP, begun from either end, all clients at once.

Every flow carries `PATTERN`, so that a capture of the public wire shows whether any of it went in clear, and random
octets that come back as an echo and are compared by digest. Sockets are made in the nodes' namespaces and bound to the
protected addresses; a socket keeps its namespace, so this process can use it from any thread.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from natbed.checks import PATTERN, CheckResult, Verdict
from natbed.node_like import NodeLike

_PING_DATA = 120  # octets; ping puts a time stamp in front, and a whole PATTERN must fit behind it
_PING_INTERVAL = 0.05  # seconds
_NO_PROGRAM = 127  # exit code
_DATAGRAM_SIZES = (64, 512, 1200)  # octets


@dataclass(frozen=True, slots=True)
class Pair:
    """A client and a server node, and the addresses that traffic between them must carry."""

    client: NodeLike
    server: NodeLike
    client_address: str
    server_address: str


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """How one flow went: `kind` is ping, tcp or udp, `path` names where it began; times in milliseconds."""

    kind: str
    path: str
    passed: bool
    lab_broken: bool = False
    problem: str = ""
    milliseconds: float = 0.0
    octets: int = 0
    loss_percent: float = 0.0
    rtt: dict[str, float] = {}


class FlowError(Exception):
    """A flow did not do what it should; the text says what was last seen."""


@dataclass(frozen=True, slots=True)
class _End:
    node: NodeLike
    address: str

    def __str__(self) -> str:
        return f"{self.node.name} ({self.address})"

    def open(self, kind: socket.SocketKind) -> socket.socket:
        """A socket of the node's namespace, bound to this end's address and any port. Raises `OSError`."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, kind)
            try:
                made.bind((self.address, 0))
            except OSError as error:
                made.close()
                raise _LabError(f"{self} cannot bind its own address: {error.strerror}") from error
            return made

        return self.node.call(make)


class _LabError(Exception):
    """The flow could not be tried."""


def check_connectivity(
    pairs: Sequence[Pair],
    *,
    name: str = "connectivity",
    deadline: float = 10.0,
    pings: int = 10,
    tcp_octets: int = 256 << 10,
    datagrams: int = 12,
    allowed_loss_percent: float = 0.0,
) -> CheckResult:
    """Judge all pairs at once; each flow must end within `deadline` seconds.

    A pair has six flows: ping, a TCP connection with an echo of `tcp_octets` and `datagrams` UDP echoes, each begun by
    the client and by the server. LAB_BROKEN when a flow could not be tried at all (address not there, no ping program).
    """
    jobs: list[Callable[[], Flow]] = []
    for pair in pairs:
        client, server = _End(pair.client, pair.client_address), _End(pair.server, pair.server_address)
        for begin, end in ((client, server), (server, client)):
            jobs.append(functools.partial(_ping, begin, end, pings, deadline, allowed_loss_percent))
            jobs.append(functools.partial(_tcp, begin, end, tcp_octets, deadline))
            jobs.append(functools.partial(_udp, begin, end, datagrams, deadline, allowed_loss_percent))
    if not jobs:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason="there is no pair to check")
    with ThreadPoolExecutor(len(jobs), thread_name_prefix=name) as pool:
        flows = [future.result() for future in [pool.submit(job) for job in jobs]]
    return _conclude(name, flows)


def _conclude(name: str, flows: list[Flow]) -> CheckResult:
    details = {"flows": msgspec.to_builtins(flows)}
    bad = [flow for flow in flows if not flow.passed]
    if not bad:
        slowest = max(flow.rtt.get("max", 0.0) for flow in flows)
        reason = f"{len(flows)} flows passed; longest round trip of a ping {slowest:.1f} ms"
        return CheckResult(name=name, verdict=Verdict.PASSED, reason=reason, details=details)
    broken = [flow for flow in bad if flow.lab_broken]
    first = (broken or bad)[0]
    verdict = Verdict.LAB_BROKEN if broken else Verdict.FAILED
    more = f" ({len(bad)} of {len(flows)} flows failed)" if len(bad) > 1 else ""
    reason = f"{first.kind} {first.path}: {first.problem}{more}"
    return CheckResult(name=name, verdict=verdict, reason=reason, details=details)


def _flow(kind: str, begin: _End, end: _End, run: Callable[[], dict[str, object]]) -> Flow:
    path = f"{begin} -> {end}"
    started = time.monotonic()
    result: dict[str, object] = {}
    problem, lab_broken = "", False
    try:
        result = run()
    except _LabError as error:
        problem, lab_broken = str(error), True
    except (FlowError, OSError) as error:
        problem = str(error)
    took = round((time.monotonic() - started) * 1000, 2)
    problem = problem or str(result.pop("problem", ""))
    values = {"kind": kind, "path": path, "passed": not problem, "problem": problem, "milliseconds": took, **result}
    return msgspec.convert({**values, "lab_broken": lab_broken}, Flow)


def _ping(begin: _End, end: _End, count: int, deadline: float, allowed_loss: float) -> Flow:
    argv = ["ping", "-n", "-q", "-c", str(count), "-i", str(_PING_INTERVAL), "-W", "1", "-s", str(_PING_DATA)]
    argv += ["-p", PATTERN[:16].hex(), "-I", begin.address, end.address]

    def run() -> dict[str, object]:
        try:
            process = begin.node.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        except FileNotFoundError as error:
            raise _LabError(str(error)) from error
        with process:
            try:
                printed, complaint = process.communicate(timeout=deadline + count * _PING_INTERVAL)
            except subprocess.TimeoutExpired:
                process.kill()
                raise FlowError(f"ping did not end within {deadline} s") from None
        if process.returncode == _NO_PROGRAM:  # what starts it in the namespace could not find it
            raise _LabError(f"no ping program: {complaint.strip()}")
        return parse_ping(printed, complaint, allowed_loss)

    return _flow("ping", begin, end, run)


def parse_ping(printed: str, complaint: str, allowed_loss: float = 0.0) -> dict[str, object]:
    """Loss (per cent) and round-trip times (milliseconds) of ping's summary; `problem` when the loss is too much.

    Raises `FlowError` when there is no summary.
    """
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", printed)
    if counts is None:
        if "annot assign requested address" in complaint or "bind" in complaint:
            raise _LabError(f"ping: {complaint.strip()}")
        raise FlowError(f"ping printed no summary: {(complaint or printed).strip() or 'nothing at all'}")
    sent, received = int(counts[1]), int(counts[2])
    loss = 100.0 * (sent - received) / sent if sent else 100.0
    times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)", printed)
    rtt = dict(zip(("min", "average", "max"), map(float, times.groups()), strict=True)) if times else {}
    problem = f"{received} of {sent} pings were answered" if loss > allowed_loss else ""
    return {"loss_percent": loss, "rtt": rtt, "problem": problem}


def _random_with_pattern(octets: int) -> bytes:
    return (PATTERN * 4 + os.urandom(max(octets - 4 * len(PATTERN), 0)))[:octets]


def _remaining(until: float, last_seen: str) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise FlowError(f"deadline passed; {last_seen}")
    return left


def _tcp(begin: _End, end: _End, octets: int, deadline: float) -> Flow:
    return _flow("tcp", begin, end, lambda: _tcp_echo(begin, end, octets, time.monotonic() + deadline))


def _tcp_echo(begin: _End, end: _End, octets: int, until: float) -> dict[str, object]:
    sent = _random_with_pattern(octets)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(end.open(socket.SOCK_STREAM))
        listener.listen(1)
        connection = stack.enter_context(begin.open(socket.SOCK_STREAM))
        echo = threading.Thread(target=_serve_tcp, args=(listener, begin.address, until))
        stack.callback(echo.join)
        echo.start()
        stack.callback(listener.shutdown, socket.SHUT_RDWR)  # wakes an accept that nothing reached
        connection.settimeout(_remaining(until, "not begun"))
        try:
            connection.connect(listener.getsockname())
        except OSError as error:
            raise FlowError(f"no connection: {error}") from error
        sender = threading.Thread(target=_send_all, args=(connection, sent))
        stack.callback(sender.join)
        sender.start()
        stack.callback(_shut, connection)  # wakes a sender that waits for a window
        received = bytearray()
        while len(received) < octets:
            last_seen = f"{len(received)} of {octets} octets came back"
            connection.settimeout(_remaining(until, last_seen))
            try:
                part = connection.recv(1 << 16)
            except OSError as error:
                raise FlowError(f"{last_seen}, then {error}") from error
            if not part:
                raise FlowError(f"{last_seen}, then the connection was closed")
            received += part
    if hashlib.sha256(received).digest() != hashlib.sha256(sent).digest():
        raise FlowError(f"{octets} octets came back, but not those that were sent")
    return {"octets": octets}


def _send_all(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the reader sees and tells what went wrong
        connection.sendall(data)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _serve_tcp(listener: socket.socket, expected_peer: str, until: float) -> None:
    """Echo one connection; one that comes from another address than `expected_peer` is closed unread."""
    with contextlib.suppress(OSError):
        listener.settimeout(max(until - time.monotonic(), 0.001))
        connection, peer = listener.accept()
        with connection:
            connection.settimeout(max(until - time.monotonic(), 0.001))
            while peer[0] == expected_peer and (part := connection.recv(1 << 16)):
                connection.sendall(part)


def _udp(begin: _End, end: _End, datagrams: int, deadline: float, allowed_loss: float) -> Flow:
    return _flow("udp", begin, end, lambda: _udp_echo(begin, end, datagrams, time.monotonic() + deadline, allowed_loss))


def _udp_echo(begin: _End, end: _End, datagrams: int, until: float, allowed_loss: float) -> dict[str, object]:
    """Send datagrams one after the other, each once, and wait for each one's echo for a share of the time."""
    patience = min(1.0, max(until - time.monotonic(), 0.0) / (datagrams + 1))
    lost, octets, last_seen = 0, 0, "no datagram arrived at the far end"
    with end.open(socket.SOCK_DGRAM) as far, begin.open(socket.SOCK_DGRAM) as near:
        for number in range(datagrams):
            size = _DATAGRAM_SIZES[number % len(_DATAGRAM_SIZES)]
            data = (number.to_bytes(4, "big") + _random_with_pattern(size))[:size]
            stage = "did not arrive"
            try:
                near.sendto(data, far.getsockname())
                _receive(far, data, near.getsockname(), patience)
                stage = "arrived, but not its echo"
                far.sendto(data, near.getsockname())
                _receive(near, data, far.getsockname(), patience)
            except OSError as error:
                lost += 1
                last_seen = f"datagram {number + 1} of {size} octets {stage} ({error})"
            else:
                octets += size
    loss = 100.0 * lost / datagrams
    problem = f"{lost} of {datagrams} datagrams were lost; the last: {last_seen}" if loss > allowed_loss else ""
    return {"octets": octets, "loss_percent": loss, "problem": problem}


def _receive(receiver: socket.socket, expected: bytes, sender: tuple[str, int], patience: float) -> None:
    """Wait until exactly this datagram comes from this sender; late ones before it are passed over."""
    until = time.monotonic() + patience
    while (left := until - time.monotonic()) > 0:
        receiver.settimeout(left)
        data, source = receiver.recvfrom(1 << 16)
        if source == sender and data == expected:
            return
    raise TimeoutError("only others came")
