"""Two private network namespaces joined by a veth, and planes in them that a test drives as their daemon would."""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TypeVar

from forked_plane import ForkedPlane, enter

from espthrunat.esp.suites import SUITES
from espthrunat.messages import (
    MAX_MESSAGE,
    AddPolicy,
    AddSa,
    Configure,
    Direction,
    Encapsulation,
    FromPlane,
    GetStats,
    Mode,
    Path,
    Ready,
    Selector,
    Stats,
    ToPlane,
    decode_from_plane,
    encode,
)
from espthrunat.stats_parts import StatsParts

T = TypeVar("T")

DEADLINE = 10.0  # seconds; generous, since only failing tests wait for it
POLL = 0.005  # seconds between questions, which take processors from what is waited for
OUTER = ("192.0.2.1", "192.0.2.2")
INNER = ("10.1.0.1", "10.2.0.1")


def what_is_missing() -> str:
    """What this machine lacks for these tests; "" if nothing."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "a /dev/net/tun that may be opened"
    missing = [
        program
        for program in ("unshare", "nsenter", "ip", "ping", "iptables", "sysctl")
        if shutil.which(program) is None
    ]
    if missing:
        return ", ".join(missing)
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"network namespaces ({probe.stderr.strip()})" if probe.returncode else ""


class Namespace:
    """A network namespace; it lives as long as the process that holds it."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self.pid = holder.pid

    @property
    def enter(self) -> list[str]:
        """What to put before a command."""
        return ["nsenter", "--target", str(self.pid), "--net", "--"]

    def run(self, *command: str) -> str:
        """Run a command that must succeed and give its output."""
        run = subprocess.run([*self.enter, *command], capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert run.returncode == 0, f"{command}: {run.stdout}{run.stderr}"
        return run.stdout

    def await_up(self, device: str) -> None:
        """Wait until packets can leave by a device, which is a moment after both ends of a veth were set up."""
        end = time.monotonic() + DEADLINE
        while " state UP " not in (shown := self.run("ip", "link", "show", "dev", device)):
            assert time.monotonic() < end, f"last seen: {shown}"
            time.sleep(0.002)

    def udp(self, address: str, port: int) -> socket.socket:
        """A bound UDP socket of this namespace, with a timeout."""
        return self.bound(socket.SOCK_DGRAM, address, port)

    def tcp(self, address: str, port: int) -> socket.socket:
        """A bound TCP socket of this namespace, with a timeout."""
        return self.bound(socket.SOCK_STREAM, address, port)

    def raw_esp(self, address: str) -> socket.socket:
        """A bound raw socket of IP protocol 50 in this namespace, with a timeout."""
        return self.bound(socket.SOCK_RAW, address, 0, 50)

    def bound(self, kind: socket.SocketKind, address: str, port: int, protocol: int = 0) -> socket.socket:
        """A bound socket of this namespace, with a timeout."""
        made: list[socket.socket] = []

        def make() -> None:
            enter(self.pid)  # only this thread moves, and it ends at once; the socket stays where it was made
            made.append(socket.socket(socket.AF_INET, kind, protocol))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        (sock,) = made
        sock.settimeout(DEADLINE)
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        return sock


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A new network namespace with its loopback device up."""
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        holder.stdout.readline()  # now it is in its namespace
        made = Namespace(holder)
        made.run("ip", "link", "set", "lo", "up")
        yield made
        holder.stdin.close()


@contextmanager
def two_namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces, `OUTER` on the veth between them and `INNER` on their loopback devices."""
    with namespace() as here, namespace() as there:
        peer = ["peer", "name", "wan", "index", "102", "netns", str(there.pid)]
        here.run("ip", "link", "add", "wan", "index", "101", "type", "veth", *peer)
        for side, outer, inner in zip((here, there), OUTER, INNER, strict=True):
            side.run("ip", "address", "add", f"{outer}/24", "dev", "wan")
            side.run("ip", "address", "add", f"{inner}/32", "dev", "lo")
            side.run("ip", "link", "set", "wan", "up")
        for side in (here, there):
            side.await_up("wan")
        yield here, there


LAN = ("192.168.1.2", "192.168.1.3")
NAT_ADDRESS = "192.0.2.254"


@contextmanager
def clients_behind_a_nat(wan_mtu: int = 1500) -> Iterator[tuple[list[Namespace], Namespace]]:
    """Two clients with the addresses `LAN`, and a server that sees both as `NAT_ADDRESS`; its own is OUTER[1].

    `wan_mtu` is what the link between NAT and server carries; the NAT says so where a client sends more.
    """
    with ExitStack() as stack:
        nat, server, *clients = (stack.enter_context(namespace()) for _ in range(4))
        wires = [(server, f"{OUTER[1]}/24", "wan", f"{NAT_ADDRESS}/24")]
        wires += [
            (client, f"{address}/32", f"lan{number}", "192.168.1.1/32")
            for number, (client, address) in enumerate(zip(clients, LAN, strict=True))
        ]
        for number, (host, address, name, of_nat) in enumerate(wires):
            peer = ["peer", "name", name, "index", str(200 + number), "netns", str(nat.pid)]
            host.run("ip", "link", "add", "wan", "index", "101", "type", "veth", *peer)
            for side, device, own in ((host, "wan", address), (nat, name, of_nat)):
                side.run("ip", "address", "add", own, "dev", device)
                side.run("ip", "link", "set", device, "up")
            if host is not server:
                nat.run("ip", "route", "add", address, "dev", name)
                host.run("ip", "route", "add", "192.168.1.1", "dev", "wan")
                host.run("ip", "route", "add", "default", "via", "192.168.1.1")
        for host, _, name, _ in wires:
            host.await_up("wan")
            nat.await_up(name)
        for side in (nat, server):
            side.run("ip", "link", "set", "wan", "mtu", str(wan_mtu))
        nat.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        nat.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "wan", "-j", "MASQUERADE")
        yield clients, server


class PlaneProcess:
    """A running plane, seen from its daemon."""

    def __init__(self, process: subprocess.Popen[bytes] | ForkedPlane, sock: socket.socket, log: FilePath) -> None:
        self.process = process
        self.socket = sock
        self.log = log
        self._queries = 0
        self._unread: list[FromPlane] = []  # came while something else was awaited

    def send(self, *messages: ToPlane) -> None:
        for message in messages:
            self.socket.send(encode(message))

    def expect(self, kind: type[T]) -> T:
        """The next message of this kind; others that come before it stay for later."""
        for position, message in enumerate(self._unread):
            if isinstance(message, kind):
                del self._unread[position]
                return message
        end = time.monotonic() + DEADLINE
        while select.select([self.socket], [], [], max(0.0, end - time.monotonic()))[0]:
            packet = self.socket.recv(MAX_MESSAGE)
            assert packet, f"the plane ended; it said: {self.log.read_text()}"
            message = decode_from_plane(packet)
            if isinstance(message, kind):
                return message
            self._unread.append(message)
        raise AssertionError(f"no {kind.__name__}; came: {self._unread}; log: {self.log.read_text()}")

    def has_nothing_to_say(self) -> bool:
        """Whether neither a kept message nor a new one is there."""
        return not self._unread and not select.select([self.socket], [], [], 0)[0]

    def stats(self) -> Stats:
        self._queries += 1
        self.send(GetStats(self._queries))
        parts = StatsParts()
        while True:
            part = self.expect(Stats)
            assert part.query == self._queries
            if whole := parts.add(part):
                return whole

    def wait(self, condition: Callable[[Stats], bool]) -> Stats:
        """Ask for statistics until they fulfil the condition."""
        end = time.monotonic() + DEADLINE
        while not condition(stats := self.stats()):
            assert time.monotonic() < end, f"last seen: {stats}; log: {self.log.read_text()}"
            time.sleep(POLL)
        return stats

    def wait_for(self, counter: str, value: int = 1) -> Stats:
        """Wait until a counter has reached a value."""
        return self.wait(lambda stats: stats.counters.get(counter, 0) >= value)

    def ended(self) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(DEADLINE)


def _started(inside: Namespace, daemon: socket.socket, log: int, patch: str) -> subprocess.Popen[bytes]:
    program = ["-m", "espthrunat.plane"]
    if patch:
        program = ["-c", f"{patch}\nimport sys\nfrom espthrunat.plane.__main__ import main\nmain(sys.argv[1:])"]
    command = [*inside.enter, sys.executable, *program, "--fd", str(daemon.fileno())]
    return subprocess.Popen(command, pass_fds=[daemon.fileno()], stderr=log)


@contextmanager
def plane(
    inside: Namespace, tmp_path: FilePath, configure: Configure | None = None, patch: str = "", fork: bool = True
) -> Iterator[PlaneProcess]:
    """A plane in a namespace; with `configure`, one that is ready.

    `patch` is Python that it runs first. Such a plane, and one that is not to be forked, is started as its daemon does.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log = tmp_path / f"plane-{inside.pid}.log"
    with ExitStack() as stack:
        stack.enter_context(ours)
        with theirs, log.open("wb") as stderr:
            process: subprocess.Popen[bytes] | ForkedPlane
            if fork and not patch:
                process = ForkedPlane(inside.pid, theirs, stderr.fileno())
            else:
                process = _started(inside, theirs, stderr.fileno(), patch)
        stack.enter_context(process)
        stack.callback(process.kill)
        running = PlaneProcess(process, ours, log)
        if configure is not None:
            running.send(configure)
            assert running.expect(Ready) == Ready()
        yield running


@dataclass(frozen=True)
class Side:
    """One end's view: 0 is here, 1 is there."""

    number: int

    @property
    def configure(self) -> Configure:
        return Configure(OUTER[self.number], 500, "esp0")

    @property
    def path(self) -> Path:
        return Path(OUTER[self.number], 500, OUTER[1 - self.number], 500)

    @property
    def selector(self) -> Selector:
        return Selector(f"{INNER[self.number]}/32", f"{INNER[1 - self.number]}/32")

    @property
    def policy(self) -> AddPolicy:
        return AddPolicy("peer", self.selector, INNER[self.number])

    def sa(
        self,
        direction: Direction,
        spi: int,
        suite: str = "aes128gcm16",
        encapsulation: Encapsulation = Encapsulation.UDP,
    ) -> AddSa:
        return AddSa(spi, direction, suite, keymat(spi, suite), self.path, encapsulation, self.selector, "peer")


HERE, THERE = Side(0), Side(1)


def transport_sa(
    direction: Direction,
    spi: int,
    path: Path,
    encapsulation: Encapsulation = Encapsulation.UDP,
    traffic: tuple[int, int, int] = (0, 0, 0),
) -> AddSa:
    """An SA for the packets of the two hosts of `path` themselves; `traffic` is protocol, local and remote port."""
    suite = "aes128gcm16"
    selector = transport_policy(path, traffic).selector
    return AddSa(spi, direction, suite, keymat(spi), path, encapsulation, selector, "peer", Mode.TRANSPORT)


def transport_policy(path: Path, traffic: tuple[int, int, int] = (0, 0, 0)) -> AddPolicy:
    return AddPolicy("peer", Selector(f"{path.local}/32", f"{path.remote}/32", *traffic), mode=Mode.TRANSPORT)


def keymat(spi: int, suite: str = "aes128gcm16") -> bytes:
    """The same keys for the same SPI at both ends."""
    return spi.to_bytes(4, "big") * (SUITES[suite].keymat_octets // 4)


def udp_packet(source: str, destination: str, payload: bytes, port: int = 7) -> bytes:
    """An IPv4 packet with UDP in it, from and to `port`, that a kernel accepts."""
    udp = struct.pack("!HHHH", port, port, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0)
    header += socket.inet_aton(source) + socket.inet_aton(destination)
    checksum = sum(struct.unpack("!10H", header))
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    return header[:10] + struct.pack("!H", checksum ^ 0xFFFF) + header[12:] + udp
