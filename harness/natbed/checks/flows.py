"""One flow between two nodes: ping, TCP or UDP. What the checks of connectivity are made of.

Every flow carries `PATTERN`, so that a capture of the public wire shows whether any of it went in clear, and random
octets that come back as an echo and are compared. Sockets are made in the nodes' namespaces and bound to the addresses
that IPsec protects; a socket keeps its namespace, so this process can use it from any thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from natbed.checks import PATTERN, CheckResult, Verdict
from natbed.node_like import NodeLike

PING_DATA = 120  # octets; ping puts a time stamp in front, and a whole PATTERN must fit behind it
_PING_INTERVAL = 0.05  # seconds
_PING_PATIENCE = 2  # seconds
_NO_PROGRAM = 127  # exit code


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """How one flow went: `kind` is ping, tcp, udp or one of the sizes', `path` names where it began; milliseconds.

    `mtu` is what a flow learned that the path takes in one packet, in octets, and `learned_from` who said so.
    """

    kind: str
    path: str
    passed: bool
    lab_broken: bool = False
    problem: str = ""
    milliseconds: float = 0.0
    octets: int = 0
    loss_percent: float = 0.0
    rtt: dict[str, float] = {}
    mtu: int = 0
    learned_from: str = ""


class FlowError(Exception):
    """A flow did not do what it should; the text says what was last seen."""


class LabError(Exception):
    """The flow could not be tried."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow: a node and its address, and the one by which the other end knows it where that is another."""

    node: NodeLike
    address: str
    seen_as: str = ""

    @property
    def seen(self) -> str:
        """The address that the other end dials, and that it sees."""
        return self.seen_as or self.address

    def __str__(self) -> str:
        return f"{self.node.name} ({self.address})"

    def open(self, kind: socket.SocketKind, port: int = 0, *, shared: bool = False) -> socket.socket:
        """A socket of the node's namespace, bound to this end's address and port; 0: any. Raises `LabError`.

        With `shared` other sockets may have the same port, each connected to another peer.
        """

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, kind)
            try:
                if shared or (port and kind is socket.SOCK_STREAM):  # an earlier connection may still be in TIME_WAIT
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((self.address, port))
            except OSError as error:
                made.close()
                raise LabError(f"{self} cannot bind its own address: {error.strerror}") from error
            return made

        return self.node.call(make)


def conclude(name: str, flows: list[Flow]) -> CheckResult:
    """The verdict on all flows together, with the first reason. A flow that could not be tried is the lab's fault."""
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


def run_flow(kind: str, begin: End, end: End, run: Callable[[], dict[str, object]]) -> Flow:
    """Run one flow, which returns fields of `Flow`, and time it; what goes wrong becomes its problem."""
    path = f"{begin} -> {end}"
    started = time.monotonic()
    result: dict[str, object] = {}
    problem, lab_broken = "", False
    try:
        result = run()
    except LabError as error:
        problem, lab_broken = str(error), True
    except (FlowError, OSError) as error:
        problem = str(error)
    took = round((time.monotonic() - started) * 1000, 2)
    problem = problem or str(result.pop("problem", ""))
    values = {"kind": kind, "path": path, "passed": not problem, "problem": problem, "milliseconds": took, **result}
    return msgspec.convert({**values, "lab_broken": lab_broken}, Flow)


def ping(
    begin: End,
    end: End,
    count: int,
    deadline: float,
    allowed_loss: float = 0.0,
    *,
    octets: int = PING_DATA,
    identifier: int | None = None,
    fragment: bool | None = None,
) -> Flow:
    """`count` echo requests of `octets` data each, all with one `identifier` where it is given.

    DF is set with `fragment` False, and not with True; else the kernel sets it in what fits the MTU that it knows.
    """
    # With -w it waits for `count` answers, and may send more than that meanwhile; else only for two round trips after
    # the last request, and a busy machine would look like one that loses packets.
    wait = max(min(math.ceil(count * _PING_INTERVAL) + _PING_PATIENCE, math.floor(deadline)), 1)
    argv = ["ping", "-n", "-c", str(count), "-w", str(wait), "-i", str(_PING_INTERVAL), "-s", str(octets)]
    argv += [] if identifier is None else ["-e", str(identifier)]
    argv += [] if fragment is None else ["-M", "dont" if fragment else "do"]
    argv += ["-p", PATTERN[:16].hex(), "-I", begin.address, end.seen]

    def run() -> dict[str, object]:
        try:
            process = begin.node.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        except FileNotFoundError as error:
            raise LabError(str(error)) from error
        with process:
            try:
                printed, complaint = process.communicate(timeout=deadline + count * _PING_INTERVAL + 1)
            except subprocess.TimeoutExpired:
                process.kill()
                raise FlowError(f"ping did not end within {deadline} s") from None
        if process.returncode == _NO_PROGRAM:  # what starts it in the namespace could not find it
            raise LabError(f"no ping program: {complaint.strip()}")
        return parse_ping(printed, complaint, allowed_loss, count)

    return run_flow("ping", begin, end, run)


def parse_ping(printed: str, complaint: str, allowed_loss: float = 0.0, wanted: int = 0) -> dict[str, object]:
    """Loss (per cent) and round-trip times (milliseconds) of ping's summary; `problem` when the loss is too much.

    Raises `FlowError` when there is no summary.
    """
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", printed)
    if counts is None:
        if "annot assign requested address" in complaint or "bind" in complaint:
            raise LabError(f"ping: {complaint.strip()}")
        raise FlowError(f"ping printed no summary: {(complaint or printed).strip() or 'nothing at all'}")
    sent, received = int(counts[1]), int(counts[2])
    if wanted:  # the first so many, whatever was sent while they were awaited
        answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", printed)}
        sent, received = wanted, len(answered & set(range(1, wanted + 1)))
    loss = 100.0 * (sent - received) / sent if sent else 100.0
    times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)", printed)
    rtt = dict(zip(("min", "average", "max"), map(float, times.groups()), strict=True)) if times else {}
    problem = f"{received} of {sent} pings were answered" if loss > allowed_loss else ""
    return {"loss_percent": loss, "rtt": rtt, "problem": problem}


def random_with_pattern(octets: int) -> bytes:
    """So many octets, all that fits of four patterns first, then random."""
    return (PATTERN * 4 + os.urandom(max(octets - 4 * len(PATTERN), 0)))[:octets]


def remaining(until: float, last_seen: str) -> float:
    """Seconds left until a deadline of time.monotonic(). Raises `FlowError` when it has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise FlowError(f"deadline passed; {last_seen}")
    return left


def receive(receiver: socket.socket, expected: bytes, sender: tuple[str, int], patience: float) -> None:
    """Wait until exactly this datagram comes from this sender; late ones before it are passed over."""
    until = time.monotonic() + patience
    while (left := until - time.monotonic()) > 0:
        receiver.settimeout(left)
        data, source = receiver.recvfrom(1 << 16)
        if source == sender and data == expected:
            return
    raise TimeoutError("only others came")


def echo(connection: socket.socket, octets: int, until: float) -> None:
    """Send so many octets over TCP and read them back. Raises `FlowError` that says how far it came."""
    sent = random_with_pattern(octets)
    received = bytearray()
    sender = threading.Thread(target=_send_all, args=(connection, sent))
    sender.start()
    try:
        while len(received) < octets:
            last_seen = f"{len(received)} of {octets} octets came back"
            connection.settimeout(remaining(until, last_seen))
            try:
                part = connection.recv(1 << 16)
            except OSError as error:
                raise FlowError(f"{last_seen}, then {error}") from error
            if not part:
                raise FlowError(f"{last_seen}, then the connection was closed")
            received += part
    except BaseException:
        _stop_sending(connection)  # wakes a sender that waits for a window
        raise
    finally:
        sender.join()
    if hashlib.sha256(received).digest() != hashlib.sha256(sent).digest():
        raise FlowError(f"{octets} octets came back, but not those that were sent")


def _send_all(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the reader sees and tells what went wrong
        connection.sendall(data)


def _stop_sending(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
