"""Where a benchmark runs."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform

from .record import Machine


def this_machine() -> Machine:
    """As it is now."""
    return Machine(
        processors=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        natbed=importlib.metadata.version("natbed"),
        congestion=pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        load=round(os.getloadavg()[0], 2),
    )
