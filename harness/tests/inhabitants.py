"""Who lives in a network namespace: for tests that nothing is left in one."""

from __future__ import annotations

import os
import pathlib


def inhabitants(namespaces: set[int]) -> list[int]:
    """The ids of all processes in the network namespaces with these inode numbers."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                inode = pathlib.Path(f"/proc/{entry.name}/ns/net").stat().st_ino
            except OSError:  # it has just ended
                continue
            if inode in namespaces:
                found.append(int(entry.name))
    return found
