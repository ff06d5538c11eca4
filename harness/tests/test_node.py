"""Nodes: programs run in them, settings of theirs, and that nothing is left of them."""

from __future__ import annotations

import os
import pathlib
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from inhabitants import inhabitants

from natbed.isolation import IsolationError
from natbed.node import CommandFailed, Node, NodeError
from natbed.node_kinds import Router
from natbed.process import Program

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node("alice")
    yield node
    node.terminate()


def eventually(condition: Callable[[], bool], what: str, deadline: float = 5.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def test_a_program_runs_inside(node: Node) -> None:
    assert node.run(["hostname"]).stdout == "alice\n"
    assert node.run(["ip", "-br", "link"]).stdout.split()[0] == "lo"
    assert node.run(["cat"], input="through stdin").stdout == "through stdin"


def test_a_failure_says_which_command_how_and_why(node: Node) -> None:
    with pytest.raises(CommandFailed, match=r"alice: 'ip link show nowhere' ended with exit code 1: .*nowhere"):
        node.run(["ip", "link", "show", "nowhere"])
    assert node.run(["false"], check=False).returncode == 1


def test_a_program_that_does_not_end_is_ended(node: Node) -> None:
    begin = time.monotonic()
    with pytest.raises(CommandFailed, match=r"'sh -c echo waiting >&2; sleep 60' did not end within 0.2 s: waiting"):
        node.run(["sh", "-c", "echo waiting >&2; sleep 60"], timeout=0.2)
    assert time.monotonic() - begin < 5
    eventually(lambda: len(inhabitants({node.namespace})) == 1, "its child too; the namespace's first process stays")


def test_a_missing_program_is_named(node: Node) -> None:
    with pytest.raises(FileNotFoundError, match="no program 'no-such-program'"):
        node.run(["no-such-program"])


def test_a_socket_made_inside_stays_inside(node: Node) -> None:
    def listen() -> socket.socket:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 4500))
        listener.listen()
        return listener

    with node.call(listen), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 4500), timeout=5)


def test_settings_are_the_nodes_own_and_read_back(node: Node) -> None:
    router = Router("bob")
    try:
        read = ["cat", "/proc/sys/net/ipv4/ip_forward"]
        assert router.run(read).stdout == "1\n"
        assert node.run(read).stdout == "0\n"
        with pytest.raises(NodeError, match=r"sysctl net.ipv4.no_such_thing: No such file"):
            router.sysctl({"net.ipv4.no_such_thing": 1})
        with pytest.raises(NodeError, match=r"sysctl net.ipv4.ip_forward is 1 after writing 0x1"):
            router.sysctl({"net.ipv4.ip_forward": "0x1"})
        with pytest.raises(NodeError, match=r"kernel.pid_max is the whole machine's"):
            router.sysctl({"kernel.pid_max": 1})
    finally:
        router.terminate()


def test_netlink_is_for_the_nodes_thread_only(node: Node) -> None:
    assert node.call(lambda: len(list(node.netlink.get_links()))) == 1
    with pytest.raises(RuntimeError, match="alice: use netlink inside call"):
        _ = node.netlink


def test_mininets_shell_starts_with_its_first_command(node: Node) -> None:
    assert not inhabitants({node.namespace}), "not before"
    assert node.cmd("hostname").strip() == "alice"
    assert node.pexec("echo", "out") == ("out\n", "", 0)
    node.sendCmd("sh -c 'echo ready; exec sleep 100'")
    output = ""
    while "ready" not in output:  # earlier, Ctrl-C would reach the shell alone
        output += node.monitor()
    node.sendInt()
    node.waitOutput()
    assert not node.waiting, "Ctrl-C reaches the command"


def test_nothing_is_left_of_a_node() -> None:
    descriptors, threads = set(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    node = Node("alice")
    namespace = node.namespace
    quick = node.popen(["sleep", "100"], stdout=subprocess.PIPE)
    stubborn = node.popen(["sh", "-c", "trap '' TERM; echo ready; sleep 100"], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == b"ready\n"
    node.cmd("sleep 101 &")
    node.run(["sh", "-c", "setsid sleep 102 >/dev/null 2>&1 </dev/null &"])
    assert len(inhabitants({namespace})) >= 6
    begin = time.monotonic()
    node.terminate()
    assert time.monotonic() - begin < 4
    node.terminate()
    assert not inhabitants({namespace})
    assert quick.returncode == -signal.SIGTERM, "asked, before it is made to"
    assert stubborn.returncode == -signal.SIGKILL
    assert set(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert threading.active_count() == threads


def test_a_program_that_is_being_started_does_not_hold_up_the_end(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt takes a lab down whatever else is going on; a child that nobody waits for would hold it for ever."""
    pids: queue.SimpleQueue[int] = queue.SimpleQueue()
    go_on = threading.Event()

    class Slow(Program):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            pids.put(self.pid)
            go_on.wait(10)

    node.run(["true"])
    monkeypatch.setattr("natbed.node.Program", Slow)
    starting = threading.Thread(target=node.popen, args=(["sleep", "100"],), daemon=True)
    starting.start()
    pid = pids.get(timeout=10)
    ending = threading.Thread(target=node.release, daemon=True)
    ending.start()
    ending.join(0.2)
    try:
        assert pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z", "the end waits for the start"
    finally:
        go_on.set()
    ending.join(10)
    assert not ending.is_alive()
    assert not pathlib.Path(f"/proc/{pid}").exists(), "ended and waited for"
    with pytest.raises(IsolationError, match="alice has ended"):
        node.popen(["true"])


def test_a_node_that_cannot_be_made_leaves_nothing() -> None:
    class Broken(Node):
        def prepare(self) -> None:
            self.popen(["sleep", "100"])
            raise NodeError("broken")

    descriptors, threads = set(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    with pytest.raises(NodeError, match="broken"):
        Broken("alice")
    assert set(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert threading.active_count() == threads
