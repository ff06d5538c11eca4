"""Is everything gone after a run: processes, namespaces, interfaces, files; and did a daemon log a traceback.

Rules, routes, and SAs are gone with the namespaces that they were in.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from natbed.checks import CheckResult, Verdict

_PATIENCE = 2.0  # seconds until the kernel has taken away what nothing holds any more
_POLL = 0.01
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What this process holds: by kind, what is there."""

    held: dict[str, frozenset[str]]

    @classmethod
    def take(cls, folder: pathlib.Path) -> Snapshot:
        """Now; `folder` is where files are made for the time of a run only."""
        return cls(
            {
                "process": frozenset(_descendants("self")),
                "namespace": frozenset(_namespaces()),
                "interface": frozenset(name for _, name in socket.if_nameindex()),
                "file": frozenset(str(path) for path in folder.rglob("*")),
            }
        )

    def more_than(self, before: Snapshot) -> list[str]:
        """What was not there before, for people."""
        return [
            f"{kind} {one}" for kind, found in self.held.items() for one in sorted(found - before.held.get(kind, set()))
        ]


def check_leaks(before: Snapshot, folder: pathlib.Path, logs: Iterable[pathlib.Path]) -> CheckResult:
    """Compare with the snapshot of before the run, once it is over, and search its logs. FAILED names what is left."""
    until = time.monotonic() + _PATIENCE
    while (left := Snapshot.take(folder).more_than(before)) and time.monotonic() < until:
        time.sleep(_POLL)
    left += [f"traceback in {log}" for log in logs if _TRACEBACK in log.read_text(errors="replace")]
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        reason = f"left behind: {left[0]}{more}"
        return CheckResult(name="leaks", verdict=Verdict.FAILED, reason=reason, details={"left": left})
    return CheckResult(name="leaks", verdict=Verdict.PASSED, reason="nothing is left")


def _descendants(pid: str) -> list[str]:
    """Each process below this one, with its command."""
    found = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in (task / "children").read_text().split():
                    command = pathlib.Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found += [f"{child} {command}".strip(), *_descendants(child)]
    return found


def _namespaces() -> list[str]:
    """The network namespaces that threads or open files of this process hold."""
    own = pathlib.Path("/proc/self")
    found = []
    for link in [*(own / "fd").iterdir(), *own.glob("task/*/ns/net")]:
        with contextlib.suppress(OSError):
            found.append(link.readlink().name)
    return [name for name in found if name.startswith("net:")]
