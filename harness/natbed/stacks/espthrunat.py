"""The bundled implementation, started as a program and asked through its control socket."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from natbed.node_like import NodeLike

from ..isolation import runtime_directory
from .base import HostSettings, StackError, Timing, TunnelSettings, TunnelStatus
from .usage import resident_memory

T = TypeVar("T")
Value = str | float | list[str] | None

READY_SECONDS = 10.0
_LAST_ANSWER_SECONDS = 1.0
STOP_SECONDS = 5.0
_TUN = "esp0"  # its device, where nothing else is configured
_FORWARDED_PRIORITY, _FORWARDED_TABLE = "100", "100"
_POLL = 0.002  # seconds between looks for the socket; a file that is not there yet cannot be waited on


class _SaStatus(msgspec.Struct):
    connection: str
    remote: str
    remote_port: int
    inbound_spi: str
    outbound_spi: str
    suite: str
    encapsulation: str
    mode: str = "tunnel"
    mapped_network: str | None = ""


class _IkeSaStatus(msgspec.Struct):
    connection: str
    remote: str
    remote_port: int
    established: bool
    nat: str


class _Status(msgspec.Struct):
    sas: list[_SaStatus]
    ike_sas: list[_IkeSaStatus]


class _Took(msgspec.Struct):
    seconds: float


class EspThruNat:
    """`espthrunat run` on every host."""

    name = "espthrunat"
    batches = True
    """Whether its data plane takes many packets a system call."""

    def __init__(self, *, batches: bool = True) -> None:
        self.batches = batches

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> EspThruNatDaemon:
        """Start it on a host and wait until it can be asked; its logs and key logs go to `evidence`."""
        return EspThruNatDaemon(node, settings, evidence, batches=self.batches)


class EspThruNatDaemon:
    """One running daemon with its data plane."""

    def __init__(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path, *, batches: bool = True) -> None:
        evidence.mkdir(parents=True, exist_ok=True)
        self._node = node
        self._control = runtime_directory() / f"{node.name}.sock"
        self._log = evidence / "espthrunat.log"
        self._log.write_bytes(b"")
        self._config = evidence / "espthrunat.toml"
        self._settings = settings
        self._batches = batches
        self._configure()
        self._forwards = settings.forwards
        self._start()

    def _configure(self) -> None:
        descriptor = os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(_toml(self._settings, self._control, self._config.parent, batches=self._batches))

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        command = [sys.executable, "-m", "espthrunat", "run", str(self._config)]
        command += ["--keylog", str(self._config.parent / "keys")]
        self._killed = False
        started = time.monotonic()
        with self._log.open("ab") as log:
            self._process = self._node.popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            self._await_ready(started)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self.ready_seconds = time.monotonic() - started
        self._steer_forwarded()
        self.pids = (self._process.pid, *_children(self._process.pid))

    def _steer_forwarded(self) -> None:
        """Route into the TUN device what the implementation's own rules, by source, do not know yet."""
        if self._forwards is None:
            return
        rule = ["pref", _FORWARDED_PRIORITY, "iif", self._forwards.interface]
        for network in self._forwards.networks:
            self._node.run(["ip", "rule", "del", *rule, "to", network], check=False)  # of before a restart
            self._node.run(["ip", "rule", "add", *rule, "to", network, "lookup", _FORWARDED_TABLE])
        # without the device nothing goes another way, in clear
        self._node.run(["ip", "route", "replace", "unreachable", "default", "metric", "2", "table", _FORWARDED_TABLE])
        self._node.run(["ip", "route", "replace", "default", "dev", _TUN, "metric", "1", "table", _FORWARDED_TABLE])

    def up(self, tunnel: str, timeout: float) -> float:
        """Bring a tunnel up; the seconds that took. Raises StackError with the implementation's reason."""
        return self._typed(self._ask("up", timeout, connection=tunnel), _Took).seconds

    def rekey(self, tunnel: str, phase1: bool, timeout: float) -> float:
        """Replace a tunnel's SAs; the seconds until both directions of the new ones can be used from here."""
        return self._typed(self._ask("rekey", timeout, connection=tunnel, phase1=phase1), _Took).seconds

    def kill(self) -> None:
        """Kill the daemon; its data plane must end by itself. Raises StackError when it does not."""
        with contextlib.ExitStack() as stack:
            planes = []
            for pid in self.pids[1:]:
                with contextlib.suppress(ProcessLookupError):
                    planes.append(os.pidfd_open(pid))
                    stack.callback(os.close, planes[-1])
            self._process.kill()
            self._process.wait()
            self._killed = True
            until = time.monotonic() + STOP_SECONDS
            for plane in planes:
                if not select.select([plane], [], [], max(until - time.monotonic(), 0))[0]:
                    raise StackError(f"{self._node.name}: a data plane of espthrunat outlived its daemon")

    def restart(self, timing: Timing | None = None) -> None:
        """Start it again, with another timing where one is given; its log and its key log go on."""
        if self._process.poll() is None:
            raise StackError(f"{self._node.name}: espthrunat still runs")
        if timing is not None:
            self._settings = dataclasses.replace(self._settings, timing=timing)
            self._configure()
        self._start()

    def status(self) -> list[TunnelStatus]:
        """Every tunnel that is up: both directions may be used, which is so at a responder from QM3 on."""
        status = self._typed(self._ask("status", 5.0), _Status)
        nat = {
            (sa.remote, sa.remote_port): {"detected": True, "none": False}.get(sa.nat)
            for sa in status.ike_sas
            if sa.established
        }
        return [
            TunnelStatus(
                name=sa.connection,
                remote=(sa.remote, sa.remote_port),
                nat=nat.get((sa.remote, sa.remote_port)),
                encapsulation=sa.encapsulation,
                inbound_spi=sa.inbound_spi,
                outbound_spi=sa.outbound_spi,
                suite=sa.suite,
                mode=sa.mode,
                mapped_network=sa.mapped_network or "",
            )
            for sa in status.sas
        ]

    def stats(self) -> dict[str, Any]:
        """What the data plane has counted."""
        return self._ask("stats", 5.0)

    def received_packets(self) -> dict[str, int]:
        """How many packets came by each inbound SA."""
        return {sa["spi"]: sa["packets"] for sa in self.stats()["sas"] if sa["direction"] == "in"}

    def dropped_packets(self) -> dict[str, int]:
        """How many packets the data plane dropped, or the kernel because the plane was too slow."""
        return {name: number for name, number in self.stats()["counters"].items() if name.startswith("drop")}

    def memory(self) -> int:
        """Octets of resident memory of both processes together; pages that both share count twice."""
        try:
            return resident_memory(self.pids)
        except OSError as error:  # /proc/PID is not there any more
            raise StackError(f"{self._node.name}: a process of espthrunat has ended: {self._last_words()}") from error

    def stop(self) -> None:
        """End it in order; what its plane has counted is added to the evidence.

        Raises StackError when it had to be killed or ended badly.
        """
        if self._killed:
            return
        with contextlib.suppress(StackError):  # one that does not answer may still end in order
            counted = msgspec.json.encode(self._ask("stats", _LAST_ANSWER_SECONDS))
            with (self._log.parent / "stats.jsonl").open("ab") as file:
                file.write(counted + b"\n")
        self._process.terminate()
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise StackError(f"{self._node.name}: espthrunat did not stop within {STOP_SECONDS:g} s") from None
        if code:
            raise StackError(f"{self._node.name}: espthrunat ended with code {code}: {self._last_words()}")
        if "Traceback" in self._log.read_text(errors="replace"):
            raise StackError(f"{self._node.name}: espthrunat logged a traceback, see {self._log}")

    def _await_ready(self, started: float) -> None:
        last = "no control socket"
        while time.monotonic() - started < READY_SECONDS:
            if self._process.poll() is not None:
                raise StackError(f"{self._node.name}: espthrunat did not start: {self._last_words()}")
            if self._control.exists():  # after a kill, an old one that nobody listens on
                try:
                    self._ask("status", 1.0)
                except StackError as error:
                    last = str(error)
                else:
                    return
            time.sleep(_POLL)
        raise StackError(f"{self._node.name}: espthrunat is not ready after {READY_SECONDS:g} s: {last}")

    def _ask(self, command: str, timeout: float, **arguments: str | bool) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(str(self._control))
                connection.sendall(msgspec.json.encode({"command": command, **arguments}) + b"\n")
                with connection.makefile("rb") as lines:
                    line = lines.readline()
            except OSError as error:
                problem = f"{error}; its last words: {self._last_words()}"
                raise StackError(f"{self._node.name}: {command}: {problem}") from error
        if not line:
            raise StackError(f"{self._node.name}: {command}: the daemon has ended: {self._last_words()}")
        try:
            answer = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise StackError(f"{self._node.name}: {command}: no readable answer: {error}") from error
        if not answer.pop("ok", False):
            raise StackError(f"{self._node.name}: {answer.get('error', f'{command}: refused without a reason')}")
        return answer

    def _typed(self, answer: dict[str, Any], kind: type[T]) -> T:
        try:
            return msgspec.convert(answer, kind)
        except msgspec.ValidationError as error:
            raise StackError(f"{self._node.name}: espthrunat's answer: {error}") from error

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it logged nothing"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _toml(settings: HostSettings, control: pathlib.Path, folder: pathlib.Path, *, batches: bool = True) -> str:
    """The configuration file, to stand in `folder`."""
    local: dict[str, Value] = {
        "address": settings.address,
        "identity": settings.identity,
        "control": str(control),
        "pool": settings.pool,
        "batches": None if batches else False,
    }
    if files := settings.credentials:
        for key, file in (
            ("certificate", files.certificate),
            ("private_key", files.private_key),
            ("ca", files.authorities),
        ):
            local[key] = os.path.relpath(file, folder)
    lines = ["[local]", *_table(local)]
    for tunnel in settings.tunnels:
        lines += ["", "[[connection]]", *_table(_connection(tunnel, settings.timing))]
    return "\n".join(lines) + "\n"


def _table(values: Mapping[str, Value]) -> list[str]:
    """The lines of a table, without those that have no value. JSON's literals are TOML's."""
    return [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in values.items() if value is not None]


def _connection(tunnel: TunnelSettings, timing: Timing) -> dict[str, Value]:
    in_tunnel = tunnel.mode == "tunnel"
    return {
        "name": tunnel.name,
        "remote": tunnel.peer_address or "any",
        "remote_identity": tunnel.peer_identity,
        "mode": tunnel.mode,
        "exchange": tunnel.exchange,
        "authentication": tunnel.authentication,
        "psk": tunnel.secret if tunnel.authentication == "psk" else None,
        "local_network": tunnel.local_network if in_tunnel else None,
        "remote_network": tunnel.remote_network if in_tunnel else None,
        "ike": [tunnel.ike_suite],
        "esp": [tunnel.esp_suite],
        "pfs": tunnel.pfs,
        "encapsulation": tunnel.encapsulation,
        "translate": True if tunnel.translate else None,
        "dpd": timing.dpd,
        "keepalive": timing.keepalive,
        "keepalive_tail": timing.keepalive_tail,
        "ike_lifetime": timing.ike_lifetime,
        "esp_lifetime": timing.esp_lifetime,
        "esp_octets": timing.esp_octets,
        "rekey_overlap": timing.rekey_overlap,
        "rebinding": timing.rebinding,
        "start": timing.start if tunnel.peer_address else None,
        "retransmit.tries": timing.ike_tries,
    }
