"""A home behind a real NAT, a server, a stranger on the Internet, and daemons that a test configures key by key."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from lab_wire import Wire

from natbed.capture import Capture
from natbed.conntrack import udp_mappings
from natbed.isolation import runtime_directory
from natbed.lab import Lab
from natbed.nat import presets
from natbed.nat.profile import NatProfile
from natbed.node_kinds import Host, Nat
from natbed.scenario import Scenario, Tunnel

NAT, SERVER, STRANGER = "203.0.113.2", "203.0.113.18", "203.0.113.34"
CLIENTS = ("192.168.1.11", "192.168.1.12")  # also what they protect, where there is a NAT
INNER = "10.99.0.1"  # what the server protects in tunnel mode
SECRETS = ("lab-secret-one", "lab-secret-two")  # of client1 and client2
SECONDS = 10.0  # that a condition may take
_POLL = 0.005  # seconds between questions; a daemon says nothing unasked

Answer = dict[str, Any]
Table = Mapping[str, object]


class Home(Scenario):
    """Clients behind one NAT; beyond it the server and a stranger, who takes part in nothing."""

    def build(self, clients: int = 1, nat: NatProfile = presets.MASQUERADE) -> None:
        """As scenario A, with one host more."""
        internet = self.internet()
        home = self.nat_router("nat", wan=internet, lan="192.168.1.0/24", profile=nat)
        for number in range(clients):
            self.host(f"client{number + 1}", on=home.lan)
        self.host("server", on=internet)
        self.host("stranger", on=internet)

    def tunnels(self) -> list[Tunnel]:
        """None: tests start daemons themselves."""
        return []


class World:
    """The home's network, up; daemons that a test started are stopped at its end, and must end in order."""

    def __init__(self, lab: Lab, folder: pathlib.Path) -> None:
        self.lab = lab
        self.folder = folder
        self.daemons: dict[str, Daemon] = {}
        self._captures = 0

    def host(self, name: str) -> Host:
        return self.lab.host(name)

    @property
    def nat(self) -> Nat:
        return self.lab.nat("nat")

    def start(self, name: str, *connections: Table, **local: object) -> Daemon:
        """A daemon on the host of that name, with further keys of [local]."""
        host = self.host(name)
        table = {"address": host.address, "identity": f"{name}.example", **local}
        daemon = self.daemons[name] = Daemon(host, self.folder / name, table, connections)
        return daemon

    def start_pair(self, client: Table | None = None, server: Table | None = None) -> tuple[Daemon, Daemon]:
        """The server and client1 with one connection; the tables hold what differs from the usual."""
        there = self.start("server", server_side(1, **(server or {})))
        return self.start("client1", client_side(1, **(client or {}))), there

    @contextmanager
    def wire(self, node: str = "nat", interface: str = "") -> Iterator[Wire]:
        """A capture, by default of the NAT's public side."""
        self._captures += 1
        path = self.folder / f"{self._captures}.pcap"
        with Capture(self.lab[node], interface or f"{node}-eth0", path):
            yield (wire := Wire(path))
        wire.read()

    def mapped_port(self, client: int = 1, server_port: int = 500) -> int:
        """The NAT's port of a client's IKE, as conntrack has it."""
        inside, remote = CLIENTS[client - 1], (SERVER, server_port)
        found = [m.public[1] for m in udp_mappings(self.nat) if m.inside[0] == inside and m.remote == remote]
        assert len(found) == 1, f"client{client} has the mappings {found}"
        return found[0]

    def stop(self) -> None:
        """Stop all daemons in order."""
        daemons, self.daemons = self.daemons, {}
        with ExitStack() as stack:
            for daemon in daemons.values():
                stack.callback(daemon.stop)


@contextmanager
def home(folder: pathlib.Path, clients: int = 1, nat: NatProfile = presets.MASQUERADE) -> Iterator[World]:
    with Lab(Home(clients=clients, nat=nat)) as lab:
        world = World(lab, folder)
        yield world
        world.stop()


def client_side(number: int = 1, /, **changes: object) -> Table:
    """client1's or client2's connection to the server, in tunnel mode; None takes a key away."""
    return _connection(
        {
            "name": "server",
            "remote": SERVER,
            "remote_identity": "server.example",
            "psk": SECRETS[number - 1],
            "local_network": f"{CLIENTS[number - 1]}/32",
            "remote_network": f"{INNER}/32",
        },
        changes,
    )


def server_side(number: int = 1, /, **changes: object) -> Table:
    """The server's connection for client1 or client2, wherever that comes from."""
    return _connection(
        {
            "name": f"client{number}",
            "remote_identity": f"client{number}.example",
            "psk": SECRETS[number - 1],
            "local_network": f"{INNER}/32",
            "remote_network": f"{CLIENTS[number - 1]}/32",
        },
        changes,
    )


TRANSPORT: Table = {"mode": "transport", "local_network": None, "remote_network": None}


def _connection(usual: Table, changes: Table) -> Table:
    return {key: value for key, value in {**usual, **changes}.items() if value is not None}


class Daemon:
    """`espthrunat run` on a host, with its data plane."""

    def __init__(self, node: Host, folder: pathlib.Path, local: Table, connections: Sequence[Table]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.node = node
        self.control = runtime_directory() / f"{node.name}.sock"
        self.keys = folder / "keys"
        self._config = folder / "espthrunat.toml"
        self._log = folder / "espthrunat.log"
        tables = [_toml("[local]", {"control": str(self.control), **local})]
        tables += [_toml("[[connection]]", connection) for connection in connections]
        self._config.write_text("\n".join(tables))
        self._log.write_bytes(b"")
        self.start()

    def start(self) -> None:
        """Start it, once more if it was killed, and wait until it can be asked."""
        command = [sys.executable, "-m", "espthrunat", "run", str(self._config), "--keylog", str(self.keys)]
        with self._log.open("ab") as log:
            self.process = self.node.popen(command, stdout=log, stderr=log)
        until = time.monotonic() + SECONDS
        while not self._answers():
            assert self.process.poll() is None, f"{self.node.name} did not start: {self.log}"
            assert time.monotonic() < until, f"{self.node.name} cannot be asked: {self.log}"
            time.sleep(_POLL)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("status"))
        except OSError:  # no socket yet, or that of one that was killed
            return False

    def ask(self, command: str, timeout: float = 20.0, **arguments: object) -> Answer:
        """What the daemon answers; AssertionError with its reason when it refuses."""
        answer = self.try_ask(command, timeout, **arguments)
        assert answer.pop("ok"), f"{self.node.name}: {command}: {answer}"
        return answer

    def try_ask(self, command: str, timeout: float = 20.0, **arguments: object) -> Answer:
        """What the daemon answers, yes or no."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(self.control))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with connection.makefile() as lines:
                answer: Answer = json.loads(lines.readline() or "{}")
                return answer

    def wait(self, condition: Callable[[Answer], bool], command: str = "status", seconds: float = SECONDS) -> Answer:
        """Ask until the answer is as wanted; that answer."""
        until = time.monotonic() + seconds
        while not condition(answer := self.ask(command)):
            assert time.monotonic() < until, f"{self.node.name}: last {command}: {answer}\n{self.log}"
            time.sleep(_POLL)
        return answer

    def up(self, connection: str = "server") -> None:
        """Bring a connection up. The peer, which is up with the last message, may need a moment more."""
        self.ask("up", connection=connection)

    @property
    def status(self) -> Answer:
        return self.ask("status")

    def count(self, counter: str) -> int:
        """One of the plane's counters."""
        return int(self.ask("stats")["counters"].get(counter, 0))

    def spis(self) -> set[str]:
        return {sa["inbound_spi"] for sa in self.status["sas"]}

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        """Kill -9 of the daemon. Its plane must end by itself."""
        with ExitStack() as stack:
            planes = [stack.enter_context(_pidfd(pid)) for pid in self._planes()]
            self.process.kill()
            self.process.wait()
            assert all(map(_has_ended, planes)), "a plane outlived its daemon"

    def kill_plane(self) -> None:
        """Kill -9 of the data plane alone, and see it end."""
        (pid,) = self._planes()
        with _pidfd(pid) as plane:
            signal.pidfd_send_signal(plane, signal.SIGKILL)
            assert _has_ended(plane)

    def _planes(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self) -> None:
        """End it in order, which must go well."""
        self.process.terminate()
        assert self.process.wait(SECONDS) == 0, self.log
        assert "Traceback" not in self.log, self.log


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], SECONDS)[0])


def _toml(head: str, table: Table) -> str:
    """Strings, numbers, booleans and lists of JSON are TOML's; a dictionary becomes an inline table."""
    return "\n".join([head, *(f"{key} = {_value(value)}" for key, value in table.items())]) + "\n"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def steady(status: Answer) -> Answer:
    """A status without what changes with every second."""
    moving = ("age", "expires_in")
    return {
        key: [{k: v for k, v in one.items() if k not in moving} for one in value] if isinstance(value, list) else value
        for key, value in status.items()
    }
