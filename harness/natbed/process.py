"""The processes of a node: started so that none outlives the harness, and ended with a deadline."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence

GRACE = 1.0  # seconds between SIGTERM and SIGKILL
_SETPRIV = ("setpriv", "--pdeathsig", "KILL")
SYSTEM_PATHS = ("/usr/sbin", "/sbin")  # where iptables lives, and not in every root's PATH


class CommandFailed(Exception):  # noqa: N818 - reads as what happened
    """A program in a node did not do its job: which, how it ended, and what it said on stderr."""

    def __init__(self, node: str, argv: Sequence[str], outcome: str, stderr: str) -> None:
        super().__init__(f"{node}: {' '.join(argv)!r} {outcome}: {stderr.strip() or '(nothing on stderr)'}")
        self.node = node
        self.argv = tuple(argv)
        self.outcome = outcome
        self.stderr = stderr


def tied(argv: Sequence[str]) -> list[str]:
    """`argv` as a command that the kernel kills when the thread that starts it ends, even by kill -9 of the harness.

    Raises FileNotFoundError when there is no such program.
    """
    return [*_SETPRIV, "--", find_program(argv[0]), *argv[1:]]


def find_program(name: str) -> str:
    """The path of a program, looked for in PATH and the system's own directories. Raises FileNotFoundError."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PATHS))
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"no program {name!r} in {path}")
    return found


def end_processes(processes: Iterable[subprocess.Popen[bytes] | subprocess.Popen[str]], grace: float = GRACE) -> None:
    """End processes and what is left of their process groups: SIGTERM, up to `grace` seconds, SIGKILL. Then reap."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for process in alive:
        if not await_exit(process.pid, deadline):
            signal_group(process.pid, signal.SIGKILL)
        process.wait()


def end_inhabitants(namespaces: set[int], grace: float = GRACE) -> None:
    """End every process that lives in one of the network namespaces (inodes): what a node's programs left behind."""
    with contextlib.ExitStack() as stack:
        left: list[tuple[int, int]] = []
        for pid in inhabitants(namespaces):
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(pid)
                stack.callback(os.close, descriptor)
                # Looked at again through the descriptor's process: the number may have found a new owner meanwhile.
                if _namespace_of(pid) in namespaces:
                    left.append((pid, descriptor))
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + grace
            for _, descriptor in left:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
            left = [(pid, descriptor) for pid, descriptor in left if not _readable(descriptor, deadline)]


def inhabitants(namespaces: set[int]) -> Iterator[int]:
    """The ids of all processes in the network namespaces with these inode numbers."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and _namespace_of(int(entry.name)) in namespaces:
            yield int(entry.name)


def await_exit(pid: int, deadline: float) -> bool:
    """Whether the child has ended by `deadline` (time.monotonic()). It is not reaped."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return _readable(descriptor, deadline)
    finally:
        os.close(descriptor)


def _readable(descriptor: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _namespace_of(pid: int) -> int | None:
    try:
        return pathlib.Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:  # it has ended, or is not ours to look at
        return None


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process, and its process group if it leads one. One that has ended is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
