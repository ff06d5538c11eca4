"""What kind of machine this is, as coarse as figures of speed need it: never which one it is."""

from __future__ import annotations

import os
import pathlib
import platform

_NUMBERS = {"cpu family": "family", "model": "model", "CPU implementer": "implementer", "CPU part": "part"}


def machine_kind(cpuinfo: str | None = None, cpus: int | None = None) -> str:
    """The processor by name and numbers, and how many of it there are to use; "AMD EPYC, family 25, model 17, 2 CPUs".

    A hypervisor may hide the name's end, as here; the numbers tell generations apart. `cpuinfo` is as /proc/cpuinfo,
    `cpus` how many this process may run on: by default this machine's.
    """
    if cpuinfo is None:
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    if cpus is None:
        cpus = len(os.sched_getaffinity(0))
    found: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    parts = [found.get("model name") or platform.machine()]
    parts += [f"{name} {found[key]}" for key, name in _NUMBERS.items() if found.get(key)]
    return ", ".join([*parts, f"{cpus} CPU{'s' if cpus != 1 else ''}"])
