"""Traffic of the lab's hosts: pings that never stop, connections and datagrams, and the server that echoes them."""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

from natbed.node import Node

SECONDS = 10.0  # that an answer may take


@dataclass(frozen=True, slots=True)
class Echo:
    """One answered ping: its number, and when request and reply passed, in seconds since the epoch."""

    number: int
    sent: float
    received: float


class Pings:
    """Context manager: ping all the time, and know when answers came."""

    def __init__(self, node: Node, target: str, source: str = "", interval: float = 0.02) -> None:
        self._command = ["ping", "-n", "-D", "-i", str(interval), "-W", "1"]
        self._command += [*(["-I", source] if source else []), target]
        self._node = node
        self._answers: list[Echo] = []
        self._news = threading.Condition()
        self.sent = self.received = 0  # at the end

    def __enter__(self) -> Self:
        self._process = self._node.popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()  # type: ignore[union-attr]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            echo = re.match(r"\[([\d.]+)\] \d+ bytes from .*icmp_seq=(\d+) .*time=([\d.]+) ms", line)
            if echo and "DUP" not in line:
                received, took = float(echo[1]), float(echo[3]) / 1000
                with self._news:
                    self._answers.append(Echo(int(echo[2]), received - took, received))
                    self._news.notify_all()
            elif total := re.match(r"(\d+) packets transmitted, (\d+) received", line):
                self.sent, self.received = int(total[1]), int(total[2])

    def answer_after(self, moment: float, seconds: float = SECONDS, more: int = 1) -> Echo:
        """Wait for the answer to the first, or `more`-th, request sent after `moment` that has one."""
        with self._news:
            late: list[Echo] = []

            def found() -> bool:
                late[:] = [echo for echo in self._answers if echo.sent > moment]
                return len(late) >= more

            assert self._news.wait_for(found, seconds), f"{len(late)} answers within {seconds} s"
            return late[more - 1]


def ping(node: Node, target: str, source: str = "", seconds: float = SECONDS) -> None:
    """Ping until an answer comes."""
    with Pings(node, target, source, 0.1) as pings:
        pings.answer_after(0.0, seconds)


class EchoServer:
    """TCP and UDP echo at the server, for as long as the block lasts; who came."""

    def __init__(self, node: Node, tcp: int = 0, udp: int = 0) -> None:
        self.peers: set[tuple[str, int]] = set()
        self._stack = ExitStack()
        self._udp = self._stack.enter_context(udp_socket(node, port=udp)) if udp else None
        self._listener = self._stack.enter_context(node.call(lambda: _listening(tcp))) if tcp else None

    @contextmanager
    def running(self) -> Iterator[EchoServer]:
        threads = [threading.Thread(target=self._datagrams)] if self._udp else []
        threads += [threading.Thread(target=self._connections)] if self._listener else []
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            for one in (self._udp, self._listener):
                if one is not None:
                    _wake(one)
            for thread in threads:
                thread.join()
            self._stack.close()

    def _datagrams(self) -> None:
        assert self._udp is not None
        self._udp.settimeout(None)
        while True:
            data, peer = self._udp.recvfrom(2048)
            if not data:
                return
            self.peers.add(peer)
            self._udp.sendto(data, peer)

    def _connections(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            self.peers.add(peer)
            self._stack.enter_context(connection)
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _listening(port: int) -> socket.socket:
    return socket.create_server(("0.0.0.0", port))


def _wake(waiting: socket.socket) -> None:
    if waiting.type == socket.SOCK_STREAM:
        waiting.shutdown(socket.SHUT_RDWR)
    else:
        waiting.sendto(b"", ("127.0.0.1", waiting.getsockname()[1]))


def _echo(connection: socket.socket) -> None:
    try:
        while data := connection.recv(2048):
            connection.sendall(data)
    except OSError:
        return


@contextmanager
def connected(node: Node, address: str, port: int, server: tuple[str, int]) -> Iterator[Callable[[bytes], bytes]]:
    """What asks the server over one TCP connection."""

    def make() -> socket.socket:
        made = socket.socket()
        made.bind((address, port))
        made.settimeout(SECONDS)
        # closed by a reset: no FIN is repeated where nothing is expected any more
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        return made

    with node.call(make) as connection:
        connection.connect(server)

        def ask(data: bytes) -> bytes:
            connection.sendall(data)
            answer = b""
            while len(answer) < len(data):
                part = connection.recv(2048)
                assert part, "the connection was closed"
                answer += part
            return answer

        yield ask


@contextmanager
def udp_flow(node: Node, address: str, server: tuple[str, int]) -> Iterator[Callable[[bytes], bytes]]:
    """What asks the server by UDP, from the same port to the same port; nothing is sent twice."""
    with udp_socket(node, address, server[1]) as sender:

        def ask(data: bytes) -> bytes:
            sender.sendto(data, server)
            return sender.recv(2048)

        yield ask


def send_raw(node: Node, packets: Sequence[bytes]) -> None:
    """Send whole IPv4 packets from a node, whatever addresses and checksums they have."""
    with node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as sender:
        for packet in packets:
            sender.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))


def udp_socket(node: Node, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
    """A UDP socket of a node, bound."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(SECONDS)
        return made

    return node.call(make)
