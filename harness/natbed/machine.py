"""What runs on another machine before a worker of `natbed matrix --tx ssh=...` does.

python -m natbed.machine                 says in JSON what the machine is
python -m natbed.machine -c PROGRAM      runs Python; as root of a user namespace where the user is not root
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import shutil
import socket
import sys
import tempfile
from typing import Any

import msgspec

from .isolation import IsolationError, become_root, isolate

File = tuple[str, int, bytes]  # path below the folder, mode, contents: what execnet can carry


class Machine(msgspec.Struct, frozen=True):
    """What a machine says of itself."""

    hostname: str
    version: str  # of natbed
    problem: str = ""  # why no cell can run there; "" if one can


def describe() -> Machine:
    """This machine, found by trying."""
    try:
        isolate()
    except IsolationError as error:
        problem = str(error)
    else:
        missing = _missing_programs()
        problem = f"not found: {', '.join(missing)}; natbed doctor says more" if missing else ""
    return Machine(socket.gethostname(), version(), problem)


def version() -> str:
    """Natbed's."""
    return importlib.metadata.version("natbed")


def _missing_programs() -> list[str]:
    from .doctor import PROBES

    needed = dict.fromkeys(program for probe in PROBES if probe.needed for program in probe.programs)
    return [program for program in needed if shutil.which(program) is None]


def begin(channel: Any) -> None:
    """Isolate this process and write the scenarios that come through execnet's channel, with the name of their folder.

    Answers with that folder and one for results, in a tmpfs that this process alone sees: nothing of them outlives it.
    Raises `IsolationError`, OSError.
    """
    isolate()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="natbed-matrix-", dir="/run"))
    name, files = channel.receive()
    topologies = folder / "scenarios" / name
    write_files(topologies, files)
    channel.send((str(topologies), str(folder / "results")))


def read_files(folder: pathlib.Path, paths: list[pathlib.Path]) -> list[File]:
    """Files below the folder, as execnet carries them."""
    return [(str(path.relative_to(folder)), path.stat().st_mode & 0o777, path.read_bytes()) for path in paths]


def write_files(folder: pathlib.Path, files: list[File]) -> None:
    """Write what `read_files` has read elsewhere. Raises OSError; ValueError for a path that leads elsewhere."""
    for name, mode, contents in files:
        path = pathlib.PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name} leads out of its folder")
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=mode)
        file.write_bytes(contents)


def main(arguments: list[str]) -> None:
    """Without arguments: what the machine is; else Python with these."""
    if not arguments:
        sys.stdout.write(msgspec.json.encode(describe()).decode() + "\n")
        return
    try:
        become_root()  # as long as there is one thread: execnet starts another
    except IsolationError as error:
        sys.exit(f"natbed: {error}")
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
