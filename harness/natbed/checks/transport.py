"""Does traffic pass between hosts that protect their own addresses (transport mode), all clients at once.

Clients begin every flow through a NAT that gives many one address. The draft (1) promises no more: it works "if the
communications model is that the client initiates TCP connections & UDP sessions from itself out through the NAT".
Where each client has an address of its own for the server, the server begins, too. It knows a client by its NAT's
address, and all clients use one source port and one ICMP identifier, so that at the server their flows collide unless
its implementation keeps them apart.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import msgspec

from natbed.checks import PATTERN, CheckResult, Verdict
from natbed.node_like import NodeLike

from . import connectivity
from .connectivity import all_at_once
from .flows import (
    PING_DATA,
    End,
    Flow,
    FlowError,
    LabError,
    conclude,
    echo,
    ping,
    random_with_pattern,
    receive,
    run_flow,
)
from .sizes import check_sizes

TCP_CLIENT_PORT = 40_000
TCP_SERVER_PORT = 7
UDP_PORT = 1701  # at both ends, as L2TP has it
ICMP_IDENTIFIER = 1701
FULL_DATAGRAM = 1472  # octets of data in UDP or an echo request; with both headers what an Ethernet takes
_DATAGRAM_SIZES = (64, 512, 1200, FULL_DATAGRAM)  # octets

Peer = tuple[str, int]


@dataclass(frozen=True, slots=True)
class HostPair:
    """A client and a server, their addresses, and the client's address as the server sees it: its NAT's.

    `dialed` is the address by which the client knows the server, where a NAT stands before it. With `both_ways` the
    server may begin as well.
    """

    client: NodeLike
    server: NodeLike
    client_address: str
    server_address: str
    seen_address: str
    dialed: str = ""
    both_ways: bool = False


def check_transport(
    pairs: Sequence[HostPair],
    *,
    name: str = "connectivity",
    deadline: float = 10.0,
    pings: int = 5,
    tcp_octets: int = 256 << 10,
    datagrams: int = 12,
    protected: bool = True,
) -> CheckResult:
    """Judge all pairs at once; each flow must end within `deadline` seconds.

    A client begins seven flows: small pings and full-sized ones, a TCP connection with an echo of `tcp_octets`,
    `datagrams` UDP echoes of several sizes, and UDP and pings of the sizes at which a path refuses or fragments (see
    `sizes`), pings twice. Where it may, the server begins six, as in tunnel mode. A `protected` path must have a
    smaller MTU than Ethernet. LAB_BROKEN when a flow could not be tried at all. FAILED also when the server did not see
    each client as a peer of its own, at the address of its NAT.
    """
    if not pairs:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason="there is no pair to check")
    with contextlib.ExitStack() as stack:
        servers: dict[str, _EchoServer] = {}
        try:
            for pair in pairs:
                known_as = pair.dialed or pair.server_address
                if known_as not in servers:
                    server = _EchoServer(End(pair.server, pair.server_address), deadline)
                    servers[known_as] = stack.enter_context(server)
        except (OSError, LabError) as error:
            return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason=f"no echo server: {error}")
        jobs: list[Callable[[], Flow | list[Flow]]] = []
        numbers = {known_as: number for number, known_as in enumerate(servers)}
        for pair in pairs:
            number = numbers[pair.dialed or pair.server_address]
            ends = End(pair.client, pair.client_address), End(pair.server, pair.server_address, pair.dialed)
            for octets in (PING_DATA, FULL_DATAGRAM):
                jobs.append(functools.partial(_ping, *ends, pings, deadline, octets, number))
            jobs.append(functools.partial(_tcp, *ends, tcp_octets, deadline))
            jobs.append(functools.partial(_udp, *ends, datagrams, deadline))
            jobs.append(functools.partial(check_sizes, *ends, deadline, protected=protected, back=True))
            if pair.both_ways:
                jobs += _begun_by_server(pair, pings, tcp_octets, datagrams, deadline, protected)
        flows = all_at_once(name, jobs)
    return _with_peers(conclude(name, flows), pairs, servers)


def _begun_by_server(
    pair: HostPair, pings: int, tcp_octets: int, datagrams: int, deadline: float, protected: bool
) -> list[Callable[[], Flow | list[Flow]]]:
    """The flows of tunnel mode from server to client, from ports that no flow of a client uses."""
    client = End(pair.client, pair.client_address, pair.seen_address)
    ends = End(pair.server, pair.server_address, pair.dialed), client
    return [
        functools.partial(ping, *ends, pings, deadline),
        functools.partial(connectivity.tcp, *ends, tcp_octets, deadline),
        functools.partial(connectivity.udp, *ends, datagrams, deadline),
        functools.partial(check_sizes, *ends, deadline, protected=protected),
    ]


def _with_peers(result: CheckResult, pairs: Sequence[HostPair], servers: dict[str, _EchoServer]) -> CheckResult:
    """Add who the servers saw, and fail a result where that is not one peer a client."""
    seen = {
        address: {"tcp": sorted(set(server.tcp_peers)), "udp": sorted(set(server.udp_peers))}
        for address, server in servers.items()
    }
    details = {**result.details, "seen": msgspec.to_builtins(seen)}
    if result.passed:
        for address, kinds in seen.items():
            expected = sorted(pair.seen_address for pair in pairs if (pair.dialed or pair.server_address) == address)
            for kind, peers in kinds.items():
                if sorted(host for host, _ in peers) != expected:
                    listed = ", ".join(f"{host}:{port}" for host, port in peers) or "nobody"
                    reason = f"{kind}: the server saw {listed}; expected was one peer each at {', '.join(expected)}"
                    return msgspec.structs.replace(result, verdict=Verdict.FAILED, reason=reason, details=details)
    return msgspec.structs.replace(result, details=details)


def _ping(begin: End, end: End, count: int, deadline: float, octets: int, server: int) -> Flow:
    # Full-sized ones with an identifier of their own, and so each server: a client's pings must not answer for each
    # other.
    identifier = ICMP_IDENTIFIER + 2 * server + (octets != PING_DATA)
    return ping(begin, end, count, deadline, octets=octets, identifier=identifier)


def _tcp(begin: End, end: End, octets: int, deadline: float) -> Flow:
    def run() -> dict[str, object]:
        until = time.monotonic() + deadline
        with begin.open(socket.SOCK_STREAM, TCP_CLIENT_PORT) as connection:
            # closed by a reset, which leaves nothing in TIME_WAIT on the port that a next check uses
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            connection.settimeout(deadline)
            try:
                connection.connect((end.seen, TCP_SERVER_PORT))
            except OSError as error:
                raise FlowError(f"no connection: {error}") from error
            echo(connection, octets, until)
        return {"octets": octets}

    return run_flow("tcp", begin, end, run)


def _udp(begin: End, end: End, datagrams: int, deadline: float) -> Flow:
    """Datagrams one after the other, each sent once and awaited for a share of the time."""

    def run() -> dict[str, object]:
        patience = min(1.0, deadline / (datagrams + 1))
        server = end.seen, UDP_PORT
        lost, octets, last = 0, 0, ""
        with begin.open(socket.SOCK_DGRAM, UDP_PORT, shared=True) as near:
            near.connect(server)  # another socket with the same port may be for another server
            for number in range(datagrams):
                size = _DATAGRAM_SIZES[number % len(_DATAGRAM_SIZES)]
                # text first: in random octets Wireshark may find L2TP or RTCP, and then shows no more of the packet
                data = (PATTERN + os.urandom(8) + random_with_pattern(size))[:size]
                try:
                    near.send(data)
                    receive(near, data, server, patience)
                except OSError as error:
                    lost += 1
                    last = f"the echo of datagram {number + 1} of {size} octets did not come ({error})"
                else:
                    octets += size
        problem = f"{lost} of {datagrams} datagrams were lost; the last: {last}" if lost else ""
        return {"octets": octets, "loss_percent": 100.0 * lost / datagrams, "problem": problem}

    return run_flow("udp", begin, end, run)


@dataclass
class _EchoServer:
    """TCP and UDP echo on one address for as long as the block lasts, and who came."""

    end: End
    deadline: float  # seconds that it may be needed
    tcp_peers: list[Peer] = field(default_factory=list)
    udp_peers: list[Peer] = field(default_factory=list)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._listener = stack.enter_context(self.end.open(socket.SOCK_STREAM, TCP_SERVER_PORT))
            self._udp = stack.enter_context(self.end.open(socket.SOCK_DGRAM, UDP_PORT))
            self._listener.listen(64)
            self._stop = os.eventfd(0)
            stack.callback(os.close, self._stop)
            self._until = time.monotonic() + 2 * self.deadline
            self._threads = [threading.Thread(target=self._accept), threading.Thread(target=self._echo_datagrams)]
            for thread in self._threads:
                thread.start()
            self._resources = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.eventfd_write(self._stop, 1)
        for thread in self._threads:  # the list grows no more once the first of them has ended
            thread.join()
        self._resources.close()

    def _ready(self, waiting: socket.socket) -> Iterator[None]:
        """Once for each time that the socket can be read, until the server stops."""
        while True:
            left = max(self._until - time.monotonic(), 0)
            readable, _, _ = select.select([waiting.fileno(), self._stop], [], [], left)
            if waiting.fileno() not in readable:
                return
            yield

    def _accept(self) -> None:
        for _ in self._ready(self._listener):
            connection, peer = self._listener.accept()
            self.tcp_peers.append(peer)
            thread = threading.Thread(target=self._echo_stream, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _echo_stream(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the client sees and tells what went wrong
            connection.settimeout(max(self._until - time.monotonic(), 0.001))
            for _ in self._ready(connection):
                part = connection.recv(1 << 16)
                if not part:
                    return
                connection.sendall(part)

    def _echo_datagrams(self) -> None:
        for _ in self._ready(self._udp):
            data, peer = self._udp.recvfrom(1 << 16)
            self.udp_peers.append(peer)
            with contextlib.suppress(OSError):
                self._udp.sendto(data, peer)
