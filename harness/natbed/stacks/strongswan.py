"""strongSwan's charon with its own ESP in user space (kernel-libipsec), in tunnel mode, asked through vici.

It runs where it is unpacked as well as where it is installed. ESP travels on UDP port 4500 (RFC 3948).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from natbed.node_like import NodeLike

from ..isolation import runtime_directory
from .base import HostSettings, StackError, Timing, TunnelSettings, TunnelStatus
from .usage import resident_memory

T = TypeVar("T")

READY_SECONDS = 10.0
STOP_SECONDS = 5.0
PLUGINS = (
    "random",
    "nonce",
    "openssl",
    "hmac",
    "kdf",
    "kernel-libipsec",  # before kernel-netlink, which would take ESP for the kernel's
    "kernel-netlink",
    "socket-default",
    "vici",
)
_FOLDERS = (pathlib.Path(sys.prefix, "peers/usr/lib/ipsec"), pathlib.Path("/usr/lib/ipsec"))
_POLL = 0.002  # seconds between questions
# Packets of ESP in UDP bear a mark, by which the route into the TUN device is not theirs. More than five peers that are
# not up yet would be asked for cookies, which IKEv1 has not.
_CONFIGURATION = """\
charon {
  load_modular = no
  load = PLUGINS
  i_dont_care_about_security_and_use_aggressive_mode_psk = yes
  dos_protection = no
  block_threshold = 0
  retransmit_timeout = 1.0
  retransmit_tries = 3
  plugins {
    kernel-libipsec {
      allow_peer_ts = yes
    }
    kernel-netlink {
      fwmark = !0x42
    }
    socket-default {
      fwmark = 0x42
    }
  }
  filelog {
    stderr {
      default = 1
      flush_line = yes
    }
  }
}
"""
# All paths below /run, which is the daemon's alone: its PID file and socket, and what holds no character that a list
# of libraries or a configuration would read otherwise. The plugins are looked for in the program first.
_START = """\
mount --bind "$0" /run && exec env LD_LIBRARY_PATH=/run/lib:/run/lib/plugins LD_PRELOAD="$1" \
STRONGSWAN_CONF=/run/strongswan.conf /run/charon"""


def folder() -> pathlib.Path:
    """Where charon and what it needs of strongSwan are. Raises StackError that says what is missing."""
    missing = ""
    for place in _FOLDERS:
        if not (place / "charon").is_file():
            continue
        lacking = [name for name in PLUGINS if not (place / "plugins" / _library(name)).is_file()]
        if not lacking:
            return place
        missing = missing or f"strongSwan in {place} lacks plugins: {', '.join(lacking)}"
    raise StackError(missing or "strongSwan's charon is not installed; make peers unpacks it")


def _version(place: pathlib.Path) -> str:
    configuration = runtime_directory() / "strongswan.conf"  # without one it says nothing
    configuration.write_text("charon {\n}\n")
    command = [str(place / "charon"), "--version"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(place), "STRONGSWAN_CONF": str(configuration)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=5.0, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"strongSwan's charon does not run: {error}") from error
    if done.returncode:
        raise StackError(f"strongSwan's charon does not run: {done.stderr.strip()}")
    return done.stdout.split()[-1]  # Linux strongSwan 5.9.8


def _library(plugin: str) -> str:
    return f"libstrongswan-{plugin}.so"


class StrongSwan:
    """`charon` on every host."""

    name = "strongswan"

    def __init__(self) -> None:
        """Raises StackError where it is not installed, or lacks something."""
        self._folder = folder()
        self.version = _version(self._folder)

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> StrongSwanDaemon:
        """Start it on a host and wait until it can be asked; its log goes to `evidence`."""
        return StrongSwanDaemon(node, settings, evidence, self._folder)


class StrongSwanDaemon:
    """One running charon."""

    def __init__(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path, installed: pathlib.Path) -> None:
        self._node = node
        self._settings = settings
        for tunnel in settings.tunnels:
            _refuse_unsupported(node.name, tunnel)
        if settings.timing != Timing() or settings.pool:
            raise StackError(f"{node.name}: strongswan: neither timing nor a pool can be set for it")
        evidence.mkdir(parents=True, exist_ok=True)
        self._log = evidence / "charon.log"
        self._log.write_bytes(b"")
        self._run = runtime_directory() / f"{node.name}-strongswan"
        self._installed = installed
        self._start()

    def _start(self) -> None:
        shutil.rmtree(self._run, ignore_errors=True)  # a PID file of before a crash
        self._run.mkdir()
        (self._run / "lib").symlink_to(self._installed)
        # at another path than the one for which AppArmor has a profile, which is the system's charon's
        shutil.copy2(self._installed / "charon", self._run)
        (self._run / "strongswan.conf").write_text(_CONFIGURATION.replace("PLUGINS", " ".join(PLUGINS)))
        preload = ":".join(_library(name) for name in PLUGINS)
        command = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _START, str(self._run), preload]
        self._killed = False
        started = time.monotonic()
        with self._log.open("ab") as log:
            self._process = self._node.popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._await_ready(started)
            self._configure()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self.ready_seconds = time.monotonic() - started
        self.pids: tuple[int, ...] = (self._process.pid,)

    def _await_ready(self, started: float) -> None:
        last = "no socket"
        while time.monotonic() - started < READY_SECONDS:
            if self._process.poll() is not None:
                raise StackError(f"{self._node.name}: strongswan did not start: {self._last_words()}")
            if (self._run / "charon.vici").exists():
                try:
                    self._ask("version", 1.0, lambda session: session.version())
                except StackError as error:
                    last = str(error)
                else:
                    return
            time.sleep(_POLL)
        raise StackError(f"{self._node.name}: strongswan is not ready after {READY_SECONDS:g} s: {last}")

    def _configure(self) -> None:
        for tunnel in self._settings.tunnels:
            secret = {
                "id": tunnel.name,
                "type": "IKE",
                "data": tunnel.secret,
                "owners": [self._settings.identity, tunnel.peer_identity],
            }
            connection = {tunnel.name: _connection(tunnel, self._settings)}
            self._ask("load-shared", 5.0, lambda session, secret=secret: session.load_shared(secret))  # type: ignore[misc]
            self._ask("load-conn", 5.0, lambda session, one=connection: session.load_conn(one))  # type: ignore[misc]

    def up(self, tunnel: str, timeout: float) -> float:
        """Bring a tunnel up; the seconds that took. Raises StackError with strongSwan's reason."""
        wanted = {"ike": tunnel, "child": tunnel, "timeout": round(timeout * 1000)}
        begin = time.monotonic()
        self._ask("initiate", timeout + 1.0, lambda session: list(session.initiate(wanted)))
        return time.monotonic() - begin

    def rekey(self, tunnel: str, phase1: bool, timeout: float) -> float:
        """Replace a tunnel's SAs; the seconds until new ones are installed here.

        In IKEv1 a phase 1 SA is replaced by authenticating again.
        """
        begin = time.monotonic()
        if phase1:
            self._replace({"ike": tunnel, "reauth": "yes"}, lambda: self._phase1(tunnel), begin + timeout)
        self._replace({"child": tunnel}, lambda: {one.inbound_spi for one in self._named(tunnel)}, begin + timeout)
        return time.monotonic() - begin

    def _replace(self, what: dict[str, str], present: Callable[[], set[str]], until: float) -> None:
        before = present()
        self._ask("rekey", 5.0, lambda session: session.rekey(what))
        while not (now := present()) - before:
            if time.monotonic() > until:
                raise StackError(f"{self._node.name}: {what} not replaced in time; there are {sorted(now)}")
            time.sleep(_POLL)

    def kill(self) -> None:
        """Kill it, and with it its data plane."""
        self._process.kill()
        self._process.wait()
        self._killed = True

    def restart(self, timing: Timing | None = None) -> None:
        """Start it again with the same configuration; its log goes on. StackError where a timing is given."""
        if timing is not None:
            raise StackError(f"{self._node.name}: strongswan: no timing can be set for it")
        if self._process.poll() is None:
            raise StackError(f"{self._node.name}: strongswan still runs")
        self._start()

    def status(self) -> list[TunnelStatus]:
        """Every tunnel whose ESP SAs are installed."""
        return [
            TunnelStatus(
                name=_text(child, "name"),
                remote=(_text(sa, "remote-host"), int(_text(sa, "remote-port"))),
                nat="yes" in (_text(sa, "nat-local"), _text(sa, "nat-remote")),
                encapsulation="udp" if _text(child, "encap") == "yes" else "none",
                inbound_spi=f"0x{_text(child, 'spi-in')}",
                outbound_spi=f"0x{_text(child, 'spi-out')}",
                suite=_suite(child),
                mode=_text(child, "mode").lower(),
            )
            for sa in self._sas()
            for child in sa.get("child-sas", {}).values()
            if _text(child, "state") == "INSTALLED"
        ]

    def memory(self) -> int:
        """Octets of resident memory."""
        try:
            return resident_memory(self.pids)
        except OSError as error:
            raise StackError(f"{self._node.name}: strongswan has ended: {self._last_words()}") from error

    def stop(self) -> None:
        """End it in order. Raises StackError when it had to be killed or ended badly."""
        if self._killed:
            return
        self._process.terminate()
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise StackError(f"{self._node.name}: strongswan did not stop within {STOP_SECONDS:g} s") from None
        if code:
            raise StackError(f"{self._node.name}: strongswan ended with code {code}: {self._last_words()}")

    def _named(self, tunnel: str) -> list[TunnelStatus]:
        return [one for one in self.status() if one.name == tunnel]

    def _phase1(self, tunnel: str) -> set[str]:
        return {_text(sa, "initiator-spi") for sa in self._sas() if _text(sa, "state") == "ESTABLISHED"}

    def _sas(self) -> list[dict[str, Any]]:
        listed = self._ask("list-sas", 5.0, lambda session: list(session.list_sas()))
        return [sa for one in listed for sa in one.values()]

    def _ask(self, command: str, timeout: float, question: Callable[[Any], T]) -> T:
        from vici import Session
        from vici.exception import CommandException, DeserializationException, SessionException

        try:
            with self._connection(timeout) as connection:
                return question(Session(connection))
        except OSError as error:
            problem = f"{error}; its last words: {self._last_words()}"
            raise StackError(f"{self._node.name}: {command}: {problem}") from error
        except (CommandException, SessionException, DeserializationException) as error:
            raise StackError(f"{self._node.name}: {command}: {error}; its last words: {self._last_words()}") from error

    @contextlib.contextmanager
    def _connection(self, timeout: float) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(self._run / "charon.vici"))
            yield connection

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it logged nothing"


def _refuse_unsupported(host: str, tunnel: TunnelSettings) -> None:
    """What this stack does not do is said before anything starts."""
    if tunnel.mode != "tunnel":
        raise StackError(f"{host}: strongswan: kernel-libipsec has no {tunnel.mode} mode")
    if tunnel.authentication != "psk" or tunnel.translate:
        raise StackError(f"{host}: strongswan: only pre-shared keys, and no translation, can be set for it")
    if tunnel.encapsulation == "never":
        raise StackError(f"{host}: strongswan: kernel-libipsec sends ESP in UDP only")


def _connection(tunnel: TunnelSettings, settings: HostSettings) -> dict[str, Any]:
    pfs = "" if tunnel.pfs == "none" else f"-{tunnel.pfs}"
    return {
        "version": "1",
        "aggressive": "yes" if tunnel.exchange == "aggressive" else "no",
        "local_addrs": [settings.address],
        "remote_addrs": [tunnel.peer_address or "%any"],
        "encap": "yes" if tunnel.encapsulation == "always" else "no",
        "proposals": [tunnel.ike_suite],
        "local": {"auth": "psk", "id": settings.identity},
        "remote": {"auth": "psk", "id": tunnel.peer_identity},
        "children": {
            tunnel.name: {
                "mode": "tunnel",
                "local_ts": [tunnel.local_network],
                "remote_ts": [tunnel.remote_network],
                "esp_proposals": [tunnel.esp_suite + pfs],
            }
        },
    }


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key, b"")
    return value.decode() if isinstance(value, bytes) else str(value)


def _suite(child: dict[str, Any]) -> str:
    """In strongSwan's words: AES_CBC-128 HMAC_SHA1_96."""
    cipher = "-".join(filter(None, (_text(child, "encr-alg"), _text(child, "encr-keysize"))))
    return " ".join(filter(None, (cipher, _text(child, "integ-alg"))))
