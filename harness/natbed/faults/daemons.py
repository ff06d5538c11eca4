"""Faults of implementations: they are killed, stopped and started again, or lose their data plane."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from natbed.stacks.base import Daemon, StackError

from .base import EFFECT_SECONDS, FaultError, FaultRecord, Moment, Scene


@dataclass(frozen=True, slots=True)
class DaemonKill:
    """The implementation on a host dies without a word (kill -9), and is started again unless told otherwise."""

    host: str
    restart: bool = True

    def strike(self, scene: Scene) -> FaultRecord:
        """Kill it. Raises `FaultError` where a process of it is left; `StackError` where it does not start again."""
        daemon = scene.daemon(self.host)
        pids = daemon.pids
        moment = Moment()
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(_process(pid)) for pid in pids]
            daemon.kill()
            if left := [pid for pid, one in zip(pids, processes, strict=True) if one is not None and not _ended(one)]:
                raise FaultError(f"{self.host}: process {left[0]} was killed and runs")
        if self.restart:
            daemon.restart()
        what = "was killed and started again" if self.restart else "was killed"
        return moment.record(self, f"the daemon of {self.host} {what}", host=self.host, killed=list(pids))


@dataclass(frozen=True, slots=True)
class DaemonStop:
    """The implementation on a host is stopped in order, so that it may tell its peers."""

    host: str

    def strike(self, scene: Scene) -> FaultRecord:
        """Stop it. Raises `StackError` where it does not end in order."""
        daemon = scene.daemon(self.host)
        moment = Moment()
        _stop(daemon, self.host)
        return moment.record(self, f"the daemon of {self.host} was stopped", host=self.host)


@dataclass(frozen=True, slots=True)
class DaemonRestart:
    """The implementation on a host is stopped in order and started again, as by an update."""

    host: str

    def strike(self, scene: Scene) -> FaultRecord:
        """Restart it. Raises `StackError` where it does not end in order, or does not start."""
        daemon = scene.daemon(self.host)
        before = daemon.pids
        moment = Moment()
        _stop(daemon, self.host)
        daemon.restart()
        if same := set(before) & set(daemon.pids):
            raise FaultError(f"{self.host}: process {same.pop()} was stopped and runs")
        return moment.record(self, f"the daemon of {self.host} was restarted", host=self.host)


@dataclass(frozen=True, slots=True)
class PlaneKill:
    """The data plane of a host dies (kill -9), its daemon does not; the daemon has to notice by itself."""

    host: str

    def strike(self, scene: Scene) -> FaultRecord:
        """Kill it. Raises `FaultError` where there is none apart from the daemon, or it does not end."""
        first, *_ = scene.daemon(self.host).pids
        planes = _children(first)
        if not planes:
            raise FaultError(f"{self.host}: no data plane runs apart from the daemon")
        moment = Moment()
        with contextlib.ExitStack() as stack:
            for pid in planes:
                process = stack.enter_context(_process(pid))
                if process is not None:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    if not _ended(process):
                        raise FaultError(f"{self.host}: process {pid} was killed and runs")
        return moment.record(self, f"the data plane of {self.host} was killed", host=self.host, killed=planes)


def _stop(daemon: Daemon, host: str) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_process(pid)) for pid in daemon.pids]
        daemon.stop()
        if not all(_ended(process) for process in processes if process is not None):
            raise StackError(f"{host}: a process outlived the daemon's end")


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int | None]:
    """A descriptor of the process, None where it has ended already."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ended(process: int) -> bool:
    return bool(select.select([process], [], [], EFFECT_SECONDS)[0])
