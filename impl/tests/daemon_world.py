"""Running daemons: `python -m espthrunat run` in private network namespaces, and how tests watch them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import IO, Any

from plane_world import DEADLINE, INNER, OUTER, POLL, Namespace

from espthrunat.control import request

PSK = "correct horse battery staple"
PROGRAM = [sys.executable, "-m", "espthrunat"]


@dataclass(frozen=True)
class Host:
    """One end's configuration: 0 is here, 1 is there. Each end has one connection, to the other, named "peer".

    Without a `psk` it proves itself by other means, which `local` and `connection` say.
    """

    number: int
    folder: FilePath
    psk: str = PSK
    remote: str = ""
    port: int = 500
    tun: str = "esp0"
    control_name: str = ""
    transport: bool = False
    local: tuple[str, ...] = ()  # more lines of [local]
    connection: tuple[str, ...] = ()  # more lines of [[connection]]
    more: str = ""  # more connections

    @property
    def name(self) -> str:
        return ("here", "there")[self.number]

    @property
    def control(self) -> FilePath:
        return self.folder / (self.control_name or f"{self.name}.sock")

    def write(self) -> FilePath:
        """The configuration file."""
        file = self.folder / f"{self.name}-{self.port}-{self.tun}.toml"
        networks = (f'local_network = "{INNER[self.number]}/32"', f'remote_network = "{INNER[1 - self.number]}/32"')
        local = "\n".join(self.local)
        connection = "\n".join((*(('mode = "transport"',) if self.transport else networks), *self.connection))
        file.write_text(f"""
[local]
address = "{OUTER[self.number]}"
identity = "{self.name}.example"
port = {self.port}
tun = "{self.tun}"
control = "{self.control}"
{local}

[[connection]]
name = "peer"
remote = "{self.remote or OUTER[1 - self.number]}"
remote_identity = "any"
{f'psk = "{self.psk}"' if self.psk else ""}
{connection}
retransmit = {{ first = 0.2, tries = 3 }}
{self.more}
""")
        return file


class Log:
    """What a process and its children write to one pipe, line by line; a thread reads it until all have ended."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def lines(self) -> list[str]:
        with self._changed:
            return list(self._lines)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str) -> str:
        """The first line with this text, as soon as there is one."""

        def found() -> str | None:
            return next((line for line in self._lines if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._ended, DEADLINE)
            line = found()
            assert line is not None, f"no {text!r} in the log: {self._lines}"
            return line

    def wait_for_end(self) -> str:
        """Everything, once no process has the log open any more."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), f"somebody still has the log open; so far: {self._lines}"
        return self.text

    def _read(self) -> None:
        for line in self._pipe:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Daemon:
    """A running daemon and its plane."""

    def __init__(self, process: subprocess.Popen[str], host: Host) -> None:
        assert process.stderr is not None
        self.process = process
        self.host = host
        self.log = Log(process.stderr)

    @property
    def plane(self) -> int:
        """The plane's process ID."""
        (child,) = FilePath(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One request on the control socket."""
        return request(self.host.control, command, DEADLINE, **arguments)

    def wait(self, condition: Callable[[dict[str, Any]], bool], command: str = "status") -> dict[str, Any]:
        """Ask until the answer fulfils the condition."""
        end = time.monotonic() + DEADLINE
        while not condition(answer := self.ask(command)):
            assert time.monotonic() < end, f"last seen: {answer}; log: {self.log.text}"
            time.sleep(POLL)
        return answer

    def cli(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`espthrunat COMMAND` as a user types it, at this daemon."""
        return espthrunat(command, *arguments, "--control", str(self.host.control))

    def ended(self) -> int:
        """Wait for the end of the daemon; the exit status."""
        return self.process.wait(DEADLINE)

    def stop(self) -> int:
        """SIGTERM, and wait; the exit status."""
        self.process.terminate()
        return self.ended()


def espthrunat(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [*before, *PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=DEADLINE
    )


@contextmanager
def launched(
    inside: Namespace, host: Host, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """A daemon on its way up; when the test is done with it, nothing of it is left."""
    command = [*inside.enter, *PROGRAM, "run", str(host.write()), *options]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        env={**os.environ, **(environment or {})},
    ) as process:
        daemon = Daemon(process, host)
        try:
            yield daemon
        finally:
            process.kill()
            process.wait()
            daemon.log.wait_for_end()


@contextmanager
def running(
    inside: Namespace, host: Host, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """A daemon that answers."""
    with launched(inside, host, *options, environment=environment) as daemon:
        daemon.log.wait_for("listening on")
        assert daemon.ask("status")["connections"][0]["name"] == "peer"
        yield daemon


@contextmanager
def pair(
    sides: tuple[Namespace, Namespace], folder: FilePath, *options: str, there_psk: str = PSK, **both: Any
) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons that may connect, or with another key there, may not; `both` are more fields of their `Host`s."""
    here, there = Host(0, folder, **both), replace(Host(1, folder, **both), psk=there_psk)
    with launched(sides[0], here, *options) as left, running(sides[1], there) as right:
        left.log.wait_for("listening on")
        yield left, right


def has_ended(pid: int) -> bool:
    """Wait for the end of a process that may be somebody else's child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], DEADLINE)[0])
    finally:
        os.close(descriptor)


def one_line(run: subprocess.CompletedProcess[str]) -> str:
    """What a failed command says: one line on standard error, and nothing else anywhere."""
    assert run.returncode == 1, f"{run.returncode}: {run.stdout}{run.stderr}"
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("espthrunat: ")
    return line
