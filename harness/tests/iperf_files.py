"""What a running iperf3 shows of itself."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
from typing import Any


def scratch(process: subprocess.Popen[Any]) -> str:
    """The file that an iperf3 has mapped for its data, which it does when the stream is there; "" before."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            if "/iperf3." in line:
                return line.split(maxsplit=5)[5].removesuffix(" (deleted)")
    return ""
