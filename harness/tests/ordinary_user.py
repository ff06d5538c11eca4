"""Programs run by a user who is not root: no entry in /etc/passwd, no capabilities, and nothing of root's to read.

Everything happens in a mount namespace that ends with the program. /mnt is the user's world there: `main`, a copy of
the checkout that belongs to the user; `python` and a `venv` with our packages, which lie where root alone may read;
`tmp`.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence

from natbed.isolation import outside_user

CHECKOUT = pathlib.Path(__file__).parents[2]
COPIED = ("harness", "impl", "topologies", "pyproject.toml", "Makefile", "README.md")
HOME = pathlib.Path("/mnt/main")
PYTHON = "/mnt/venv/bin/python"
NATBED = (PYTHON, "-m", "natbed.cli")
PYTEST = (PYTHON, "-m", "pytest", "-p", "no:cacheprovider")

# What to put before a program that is to have no capability and no user namespace to get it in. The limit is one of
# each user namespace: none but the program's own is set.
FORBIDDEN = (
    *("unshare", "--user", "--map-root-user", "sh", "-c"),
    'echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-sys_admin --inh-caps=-all -- "$0" "$@"',
)

# The device has the mode that distributions give it, or the one that a test asks for, whatever the machine's has.
_PREPARE = """
set -e
copy=$1 python=$2 packages=$3 version=$4 mode=$5; shift 5
mount -t tmpfs -o mode=755 none /mnt
site=/mnt/venv/lib/$version/site-packages
mkdir -p /mnt/main /mnt/python /mnt/venv/bin $site; mkdir -m 1777 /mnt/tmp
mount --bind "$copy" /mnt/main; mount --bind "$python" /mnt/python; mount --bind "$packages" $site
printf 'home = /mnt/python/bin\\ninclude-system-site-packages = false\\n' >/mnt/venv/pyvenv.cfg
ln -s /mnt/python/bin/$version /mnt/venv/bin/python
if [ -n "$mode" ]; then mknod -m "$mode" /mnt/tun c 10 200; mount --bind /mnt/tun /dev/net/tun; fi
cd /mnt/main
exec "$@"
"""


def users_are_to_be_had() -> bool:
    """Whether this process can become another user; in a user namespace with one user in it, it cannot."""
    return outside_user() == 0


def unused_user() -> int:
    """A user that the machine does not know."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    return next(user for user in itertools.count(54321) if user not in taken)


class OrdinaryUser:
    """A user with a copy of the checkout in `folder`. Where the tests themselves run rootless, it is who runs them."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.copy = folder / "main"
        for name in COPIED:
            if (CHECKOUT / name).is_dir():
                shutil.copytree(CHECKOUT / name, self.copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(CHECKOUT / name, self.copy / name)
        (self.copy / "results").mkdir()
        self.user = 0
        if users_are_to_be_had():
            self.user = unused_user()
            for path in (self.copy, *self.copy.rglob("*")):
                os.chown(path, self.user, self.user)

    def run(
        self,
        argv: Sequence[str],
        *,
        tun_mode: str = "666",
        path: str = "/usr/local/bin:/usr/bin:/bin",
        timeout: float = 60,
        more: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end in the copy of the checkout. The PATH is a user's, without /usr/sbin."""
        # In a user namespace no devices can be made, and the only other user is one without capabilities.
        drop = ["--bounding-set=-sys_admin,-net_admin,-net_raw,-dac_override,-mknod", "--inh-caps=-all"]
        if self.user:
            drop = [f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--inh-caps=-all"]
        environment = {
            "PATH": path,
            "HOME": str(HOME),
            "TMPDIR": "/mnt/tmp",
            "COLUMNS": "300",
            "LD_LIBRARY_PATH": "/mnt/python/lib",
            "PYTHONPATH": "/mnt/main/harness:/mnt/main/impl",
            "PYTHONDONTWRITEBYTECODE": "1",
            **(more or {}),
        }
        python = [sys.base_prefix, sysconfig.get_path("purelib"), f"python{sysconfig.get_python_version()}"]
        prepare = [str(self.copy), *python, tun_mode if self.user else ""]
        setting = [f"{name}={value}" for name, value in environment.items()]
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _PREPARE, "sh", *prepare]
        command += ["setpriv", *drop, "--", "env", "-i", *setting, *argv]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
