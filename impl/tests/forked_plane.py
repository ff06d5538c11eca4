"""Planes that are forked from a process which has imported already all that one needs: half a second less for each.

Everything else about them is as when their daemon starts them; tests of the start itself do without.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from types import TracebackType
from typing import Any

CLONE_NEWNET = 0x40000000
_ROOMS = ("bulk_in", "bulk_out", "completion", "recvmmsg")
_NEEDED = ["espthrunat.plane.__main__", "espthrunat.esp.transforms", *(f"espthrunat.plane.{room}" for room in _ROOMS)]
_THREADS = "OPENBLAS_NUM_THREADS"  # a plane sees to it before it loads numpy, which here has happened


def enter(holder: int) -> None:
    """Move the calling thread into the network namespace of a process."""
    fd = os.open(f"/proc/{holder}/ns/net", os.O_RDONLY)
    try:
        assert ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(fd)


class ForkedPlane:
    """A plane in the namespace of the process `holder`, with what its tests use of `subprocess.Popen`."""

    def __init__(self, holder: int, daemon: socket.socket, log: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_NEEDED)
        usual = os.environ.get(_THREADS)
        os.environ[_THREADS] = "1"
        try:
            forkserver.ensure_running()
        finally:
            del os.environ[_THREADS]
            if usual is not None:
                os.environ[_THREADS] = usual
        self._process: ForkServerProcess = context.Process(target=_Start(holder, daemon.fileno(), log), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> ForkedPlane:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._process.join()  # its status may still be asked for

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing once it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # the status comes from the fork server, a little later
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Wait for the end; the exit status. Raises `subprocess.TimeoutExpired`."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("plane", timeout)
        return code


class _Start:
    """What the new process runs, and what it gets."""

    def __init__(self, holder: int, daemon: int, log: int) -> None:
        self._holder, self._daemon, self._log = holder, daemon, log

    def __getstate__(self) -> tuple[int, Any, Any]:
        return self._holder, DupFd(self._daemon), DupFd(self._log)

    def __setstate__(self, state: tuple[int, Any, Any]) -> None:
        self._holder = state[0]
        self._daemon, self._log = (one.detach() for one in state[1:])

    def __call__(self) -> None:
        from espthrunat.plane.__main__ import main

        os.dup2(self._log, sys.stderr.fileno())
        os.close(self._log)
        enter(self._holder)
        sys.exit(main(["--fd", str(self._daemon)]))
