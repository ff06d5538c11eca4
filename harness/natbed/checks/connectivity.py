"""Does traffic pass through tunnels: ping, TCP and UDP, begun from either end, all clients at once."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from natbed.checks import CheckResult, Verdict
from natbed.node_like import NodeLike

from .flows import End, Flow, FlowError, conclude, echo, ping, random_with_pattern, receive, remaining, run_flow
from .sizes import check_sizes

_DATAGRAM_SIZES = (64, 512, 1200)  # octets


@dataclass(frozen=True, slots=True)
class Pair:
    """A client and a server node, their addresses, and those by which each knows the other, if they are others."""

    client: NodeLike
    server: NodeLike
    client_address: str
    server_address: str
    client_seen: str = ""
    server_seen: str = ""


def check_connectivity(
    pairs: Sequence[Pair],
    *,
    name: str = "connectivity",
    deadline: float = 10.0,
    pings: int = 10,
    tcp_octets: int = 256 << 10,
    datagrams: int = 12,
    allowed_loss_percent: float = 0.0,
    protected: bool = True,
) -> CheckResult:
    """Judge all pairs at once; each flow must end within `deadline` seconds.

    Each end of a pair begins six flows: ping, a TCP connection with an echo of `tcp_octets`, `datagrams` UDP echoes,
    and UDP and pings of the sizes at which a path refuses or fragments (see `sizes`), pings twice. A `protected` path
    must have a smaller MTU than Ethernet. LAB_BROKEN when a flow could not be tried at all (address not there, no ping
    program).
    """
    jobs: list[Callable[[], Flow | list[Flow]]] = []
    for pair in pairs:
        client = End(pair.client, pair.client_address, pair.client_seen)
        server = End(pair.server, pair.server_address, pair.server_seen)
        for begin, end in ((client, server), (server, client)):
            jobs.append(functools.partial(ping, begin, end, pings, deadline, allowed_loss_percent))
            jobs.append(functools.partial(tcp, begin, end, tcp_octets, deadline))
            jobs.append(functools.partial(udp, begin, end, datagrams, deadline, allowed_loss_percent))
            jobs.append(functools.partial(check_sizes, begin, end, deadline, protected=protected))
    if not jobs:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason="there is no pair to check")
    return conclude(name, all_at_once(name, jobs))


def all_at_once(name: str, jobs: Sequence[Callable[[], Flow | list[Flow]]]) -> list[Flow]:
    """The flows of jobs that run at the same time, in the jobs' order; `name` is for the threads."""
    with ThreadPoolExecutor(len(jobs), thread_name_prefix=name) as pool:
        done = [future.result() for future in [pool.submit(job) for job in jobs]]
    return [flow for one in done for flow in (one if isinstance(one, list) else [one])]


def tcp(begin: End, end: End, octets: int, deadline: float) -> Flow:
    """A connection, and an echo of so many octets over it."""
    return run_flow("tcp", begin, end, lambda: _tcp_echo(begin, end, octets, time.monotonic() + deadline))


def _tcp_echo(begin: End, end: End, octets: int, until: float) -> dict[str, object]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(end.open(socket.SOCK_STREAM))
        listener.listen(1)
        connection = stack.enter_context(begin.open(socket.SOCK_STREAM))
        server = threading.Thread(target=_serve_tcp, args=(listener, begin.seen, until))
        stack.callback(server.join)
        server.start()
        stack.callback(listener.shutdown, socket.SHUT_RDWR)  # wakes an accept that nothing reached
        connection.settimeout(remaining(until, "not begun"))
        try:
            connection.connect((end.seen, listener.getsockname()[1]))
        except OSError as error:
            raise FlowError(f"no connection: {error}") from error
        with connection:  # closed before the server is waited for, which reads until then
            echo(connection, octets, until)
    return {"octets": octets}


def _serve_tcp(listener: socket.socket, expected_peer: str, until: float) -> None:
    """Echo one connection; one that comes from another address than `expected_peer` is closed unread."""
    with contextlib.suppress(OSError):
        listener.settimeout(max(until - time.monotonic(), 0.001))
        connection, peer = listener.accept()
        with connection:
            connection.settimeout(max(until - time.monotonic(), 0.001))
            while peer[0] == expected_peer and (part := connection.recv(1 << 16)):
                connection.sendall(part)


def udp(begin: End, end: End, datagrams: int, deadline: float, allowed_loss: float = 0.0) -> Flow:
    """So many datagrams of several sizes, one after the other, and their echoes; loss in per cent."""
    return run_flow(
        "udp", begin, end, lambda: _udp_echo(begin, end, datagrams, time.monotonic() + deadline, allowed_loss)
    )


def _udp_echo(begin: End, end: End, datagrams: int, until: float, allowed_loss: float) -> dict[str, object]:
    """Send datagrams one after the other, each once, and wait for each one's echo for a share of the time."""
    patience = min(1.0, max(until - time.monotonic(), 0.0) / (datagrams + 1))
    lost, octets, last_seen = 0, 0, "no datagram arrived at the far end"
    with end.open(socket.SOCK_DGRAM) as far, begin.open(socket.SOCK_DGRAM) as near:
        there, back = (end.seen, far.getsockname()[1]), (begin.seen, near.getsockname()[1])
        for number in range(datagrams):
            size = _DATAGRAM_SIZES[number % len(_DATAGRAM_SIZES)]
            data = (number.to_bytes(4, "big") + random_with_pattern(size))[:size]
            stage = "did not arrive"
            try:
                near.sendto(data, there)
                receive(far, data, back, patience)
                stage = "arrived, but not its echo"
                far.sendto(data, back)
                receive(near, data, there, patience)
            except OSError as error:
                lost += 1
                last_seen = f"datagram {number + 1} of {size} octets {stage} ({error})"
            else:
                octets += size
    loss = 100.0 * lost / datagrams
    problem = f"{lost} of {datagrams} datagrams were lost; the last: {last_seen}" if loss > allowed_loss else ""
    return {"octets": octets, "loss_percent": loss, "problem": problem}
