"""The processes of a node: a PID namespace that takes all with it, and a polite end for those that are known."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import Any

from . import interrupts
from .isolation import CLONE_NEWPID, SYSTEM_PATHS, unshare

GRACE = 1.0  # seconds between SIGTERM and SIGKILL


class CommandFailed(Exception):  # noqa: N818 - reads as what happened
    """A program in a node did not do its job: which, how it ended, and what it said on stderr."""

    def __init__(self, node: str, argv: Sequence[str], outcome: str, stderr: str) -> None:
        super().__init__(f"{node}: {' '.join(argv)!r} {outcome}: {stderr.strip() or '(nothing on stderr)'}")
        self.node = node
        self.argv = tuple(argv)
        self.outcome = outcome
        self.stderr = stderr


class Program(subprocess.Popen[Any]):
    """A Popen whose questions after its end a Ctrl-C does not tear: Popen's own may leave a lock held, for ever."""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        with interrupts.deferred():
            return super().poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, `timeout` seconds at most, and return the exit code. Raises subprocess.TimeoutExpired."""
        if timeout is not None and self.returncode is None and not await_exit(self.pid, time.monotonic() + timeout):
            raise subprocess.TimeoutExpired(self.args, timeout)
        return super().wait()


class ProcessNamespace:
    """A PID namespace for all further children of the thread that makes it, and for their descendants.

    The kernel kills its first process when that thread ends, even by a kill -9 of the harness, and all others with
    the first. A daemon that has left its parent, session and process group is still in there.
    """

    def __init__(self) -> None:
        command = [find_program("setpriv"), "--pdeathsig", "KILL", "--", find_program("sleep"), "infinity"]
        unshare(CLONE_NEWPID)
        self._first = Program(command, stdin=subprocess.DEVNULL, process_group=0)

    def kill(self) -> None:
        """Kill everything in it. Children of the harness are then to be waited for, before `wait`."""
        self._first.kill()

    def wait(self) -> None:
        """Wait until the last of its processes is gone."""
        self._first.wait()


def find_program(name: str) -> str:
    """The path of a program, looked for in PATH and the system's own directories. Raises FileNotFoundError."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PATHS))
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"no program {name!r} in {path}")
    return found


def end_processes(processes: Iterable[subprocess.Popen[Any]], grace: float = GRACE) -> None:
    """End processes and their process groups: SIGTERM, up to `grace` seconds for all together, SIGKILL. Then reap."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for process in alive:
        if not await_exit(process.pid, deadline):
            signal_group(process.pid, signal.SIGKILL)
        process.wait()


def await_exit(pid: int, deadline: float) -> bool:
    """Whether the child has ended by `deadline` (time.monotonic()). It is not reaped."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(descriptor)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process, and its process group if it leads one. One that has ended is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
