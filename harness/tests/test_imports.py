"""What each `natbed` that is started must not wait for."""

from __future__ import annotations

import subprocess
import sys

# setuptools brings mininet.node its distutils, cryptography makes certificates, plotly draws reports
HEAVY = {"setuptools", "cryptography", "plotly", "numpy"}
PROGRAM = """
import sys
import natbed.cli, natbed.runner, natbed.shell
print(*sys.modules)
import distutils.version
print(distutils.version.StrictVersion("2.0") > distutils.version.StrictVersion("1.10"))
"""


def test_a_run_imports_nothing_heavy_and_leaves_distutils_to_others() -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    modules, works = done.stdout.splitlines()
    assert "mininet.node" in modules.split()
    assert not HEAVY & set(modules.split())
    assert works == "True"
