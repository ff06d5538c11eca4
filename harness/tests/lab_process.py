"""A harness of its own, for tests that run several or kill one: builds scenario A, says what is in it, waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from natbed.isolation import isolate

isolate()  # before the imports that start threads

from natbed.lab import Lab  # noqa: E402
from natbed.topology_files import find  # noqa: E402


def main() -> None:
    """Print a line of JSON when the lab is up; then do what argv[1] says: wait, or raise."""
    with Lab(find("A")()) as lab:
        programs = [node.popen(["sleep", "1000"]) for node in lab.nodes]
        # A shell's child, and one that has left its process group and parent.
        lab["client1"].cmd("sleep 1001 &")
        lab["server"].run(["sh", "-c", "setsid sleep 1002 >/dev/null 2>&1 </dev/null &"])
        state = {
            "pid": os.getpid(),
            "namespaces": [node.namespace for node in lab.nodes],
            "programs": [program.pid for program in programs],
            "seen_by_server": lab["server"].run(["ip", "-o", "link"]).stdout,
        }
        sys.stdout.write(json.dumps(state) + "\n")
        sys.stdout.flush()
        if sys.argv[1] == "raise":
            raise RuntimeError("inside the lab")
        sys.stdin.readline()
        answer = lab["client1"].run(["ping", "-c", "1", "-W", "2", "203.0.113.18"], check=False, timeout=5)
        sys.stdout.write(json.dumps({"ping": answer.returncode}) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.SubprocessError as error:
        sys.exit(str(error))
