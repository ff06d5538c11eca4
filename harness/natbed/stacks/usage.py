"""What /proc says that processes use: memory and processor time."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

_TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
_UTIME, _STIME = 11, 12  # fields of /proc/PID/stat, counted from behind the name (proc(5), 14 and 15)


def resident_memory(pids: Iterable[int]) -> int:
    """Octets of resident memory of all together; pages that they share count for each. OSError where one has ended."""
    return sum(_resident(pid) for pid in pids)


def processor_seconds(pids: Iterable[int]) -> float:
    """Seconds that all their threads have run so far, in user and system mode. OSError where one has ended."""
    return sum(_ran(pid) for pid in pids)


def _resident(pid: int) -> int:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _ran(pid: int) -> float:
    # the name may hold spaces and parentheses
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_STIME])) * _TICK
