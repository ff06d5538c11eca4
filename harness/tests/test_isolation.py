"""Private namespaces: of a process, each in a child of its own here, and of a thread."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest
from ordinary_user import FORBIDDEN

from natbed.isolation import IsolationError, NamespaceThread

pytestmark = pytest.mark.usefixtures("isolated")


def in_child(program: str, *before: str) -> subprocess.CompletedProcess[str]:
    """What a Python program says in a process of its own, which the command `before` starts."""
    command = [*before, sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_an_isolated_process_sees_only_itself() -> None:
    outside = {str(pathlib.Path("/proc/self/ns", kind).readlink()) for kind in ("net", "mnt", "uts")}
    done = in_child(
        "import os, socket\n"
        "from natbed.isolation import isolate, isolated, runtime_directory\n"
        "isolate(); before = os.readlink('/proc/self/ns/net'); isolate()\n"
        "assert isolated() and os.readlink('/proc/self/ns/net') == before\n"
        "print([name for _, name in socket.if_nameindex()], os.listdir('/sys/class/net'), os.listdir('/run'))\n"
        "(runtime_directory() / 'socket').touch()\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); socket.create_connection(s.getsockname())\n"
        "print(*(os.readlink(f'/proc/self/ns/{kind}') for kind in ('net', 'mnt', 'uts')))\n"
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "['lo'] ['lo'] ['natbed']"
    assert set(second.split()).isdisjoint(outside)
    assert not pathlib.Path("/run/natbed/socket").exists()


def test_a_process_with_threads_is_refused() -> None:
    done = in_child(
        "import threading\n"
        "from natbed.isolation import isolate\n"
        "end = threading.Event(); threading.Thread(target=end.wait, daemon=True).start()\n"
        "isolate()\n"
    )
    assert "IsolationError: cannot isolate: the process has 2 threads already" in done.stderr


def test_without_rights_a_user_namespace_gives_them() -> None:
    """As root without a capability; test_rootless.py has real users."""
    program = (
        "import os, pathlib\n"
        "from natbed.isolation import isolate\n"
        "isolate()\n"
        "print(os.geteuid(), pathlib.Path('/proc/self/uid_map').read_text().split(), os.listdir('/sys/class/net'))\n"
    )
    done = in_child(program, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", "--")
    assert done.stdout == "0 ['0', '0', '1'] ['lo']\n", done.stderr


def test_where_no_user_namespace_can_be_had_the_error_says_what_forbids_it() -> None:
    """The limit is set in a user namespace of this test only."""
    done = in_child("import natbed.isolation as i; i.isolate()", *FORBIDDEN)
    assert done.stderr.splitlines()[-1].endswith(
        "IsolationError: cannot make a user namespace: No space left on device: "
        "run as root, or change sysctl user.max_user_namespaces, which is 0"
    )


def test_a_process_with_threads_of_its_own_becomes_no_root() -> None:
    done = in_child(
        "import _thread, threading\n"
        "from natbed.isolation import isolate\n"
        "end = threading.Event(); _thread.start_new_thread(end.wait, ())\n"  # as xdist's workers have
        "isolate()\n",
        *("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", "--"),
    )
    assert "IsolationError: cannot make a user namespace: this process has threads already" in done.stderr


def test_the_runtime_directory_comes_with_isolation() -> None:
    done = in_child("import natbed.isolation as i\ni.runtime_directory()\n")
    assert "IsolationError: there is no runtime directory before isolate()" in done.stderr


def test_a_thread_has_its_own_network_and_hostname() -> None:
    outside = socket.gethostname()
    thread = NamespaceThread("alice")
    try:
        assert thread.call(socket.gethostname) == "alice"
        assert thread.call(lambda: [name for _, name in socket.if_nameindex()]) == ["lo"]
        assert thread.inode != pathlib.Path("/proc/self/ns/net").stat().st_ino
        assert thread.call(lambda: thread.call(thread.here)), "a call from inside does not wait for itself"
    finally:
        thread.close()
    assert socket.gethostname() == outside


def test_an_exception_is_raised_where_the_call_was() -> None:
    thread = NamespaceThread("alice")
    try:
        with pytest.raises(ZeroDivisionError):
            thread.call(lambda: 1 // 0)
        assert thread.call(lambda: "still there") == "still there"
    finally:
        thread.close()
    with pytest.raises(IsolationError, match="alice has ended"):
        thread.call(lambda: None)


def test_a_closed_thread_leaves_nothing() -> None:
    descriptors, threads = set(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    thread = NamespaceThread("alice")
    thread.close()
    thread.close()
    assert set(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert threading.active_count() == threads
