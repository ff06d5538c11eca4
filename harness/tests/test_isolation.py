"""Private namespaces: of a process, each in a child of its own here, and of a thread."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from natbed.isolation import IsolationError, NamespaceThread

pytestmark = pytest.mark.usefixtures("isolated")


def in_child(program: str) -> subprocess.CompletedProcess[str]:
    """What a Python program says in a process of its own."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)


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


def test_without_rights_the_error_says_what_to_do() -> None:
    done = in_child("import natbed.isolation as i, os\nos.setgid(65534); os.setuid(65534)\ni.isolate()\n")
    assert done.stderr.splitlines()[-1].endswith(
        "IsolationError: cannot make private namespaces: Operation not permitted: run as root"
    )


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
