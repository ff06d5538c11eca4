"""A node: a thread with namespaces of its own, in Mininet's node API."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import pathlib
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from . import mininet_modules
from .isolation import NamespaceThread
from .link import Interface
from .process import CommandFailed, ProcessNamespace, Program, end_processes, find_program, signal_group

T = TypeVar("T")
AnyProcess = subprocess.Popen[Any]


class NodeError(Exception):
    """A node is not what it must be: a setting that did not take, an interface that is not there."""


class Node(mininet_modules.node.Node):
    """A network namespace with a name. Mininet's shell in it starts at its first use only."""

    name: str
    address: str | None = None
    """The IPv4 address that others reach it by, where it has one: of a host, its IKE address."""

    def __init__(self, name: str, routes: Sequence[tuple[str, str]] = (), **params: Any) -> None:
        """`routes` are (destination, gateway), set once its links are up; other parameters are Mininet's."""
        self._routes = routes
        self._thread = NamespaceThread(name)
        self._netlink: IPRoute | None = None
        self._processes: list[AnyProcess] = []
        self._lock = threading.Lock()
        self._process_namespace: ProcessNamespace | None = None  # from the first program on
        self._starts_programs = True
        try:
            super().__init__(name, **params)
            self.prepare()
        except BaseException:
            self.terminate()
            raise

    def prepare(self) -> None:
        """What must hold before the first link: no IPv6, whose own chatter would be on every wire."""
        if pathlib.Path("/proc/sys/net/ipv6").exists():
            self.sysctl({"net.ipv6.conf.all.disable_ipv6": 1, "net.ipv6.conf.default.disable_ipv6": 1})

    def attach(self, interface: Interface) -> None:
        """Called in the node's thread with each new interface, before it is brought up."""

    # inside the namespace

    @property
    def namespace_fd(self) -> int:
        """An open descriptor of the network namespace, the node's own: do not close it."""
        return self._thread.namespace_fd

    @property
    def namespace(self) -> int:
        """The inode number of the network namespace."""
        return self._thread.inode

    def call(self, function: Callable[[], T]) -> T:
        """Run a short `function` inside the node's namespaces; what it raises is raised here.

        A socket made there belongs to the node and may then be used from any thread.
        """
        return self._thread.call(function)

    def popen(self, argv: str | Sequence[str], *more: str, **kwargs: Any) -> AnyProcess:
        """Start a program in the node; none outlives it. `kwargs` are Popen's; stdin is empty by default.

        A string is split at spaces, as Mininet does. Raises FileNotFoundError when there is no such program, and
        `NodeError` when the node is being taken down.
        """
        words = [*(argv.split() if isinstance(argv, str) else argv), *more]
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        # A group of its own: a Ctrl-C at the terminal is for the harness, which then ends its programs in order.
        kwargs.setdefault("process_group", 0)
        command = [find_program(words[0]), *words[1:]]

        def start() -> AnyProcess:
            if not self._starts_programs:
                raise NodeError(f"{self.name} is being taken down")
            if self._process_namespace is None:
                self._process_namespace = ProcessNamespace()
            # Listed in the same breath as started: an interrupt of the caller loses none.
            process = Program(command, **kwargs)
            with self._lock:
                self._processes = [other for other in self._processes if other.poll() is None]
                self._processes.append(process)
            return process

        return self.call(start)

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the node to its end, within `timeout` seconds, and return what it said.

        Raises `CommandFailed` when time runs out, and with `check` when the exit code is not 0.
        """
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                signal_group(process.pid, signal.SIGKILL)
                stdout, stderr = process.communicate()
                raise CommandFailed(self.name, argv, f"did not end within {timeout} s", stderr or stdout) from None
            except BaseException:
                signal_group(process.pid, signal.SIGKILL)
                raise
        if check and process.returncode != 0:
            raise CommandFailed(self.name, argv, f"ended with exit code {process.returncode}", stderr)
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)

    @property
    def netlink(self) -> IPRoute:
        """pyroute2's IPRoute in this node, for functions that `call` runs; elsewhere it raises RuntimeError."""
        if not self._thread.here():
            raise RuntimeError(f"{self.name}: use netlink inside call()")
        if self._netlink is None:
            self._netlink = IPRoute()
        return self._netlink

    def sysctl(self, settings: Mapping[str, object]) -> None:
        """Write settings of the node's own network stack and read each back. Raises `NodeError` where one did not take.

        Names are sysctl's, "net.ipv4.ip_forward"; they must be in a namespace, so they begin with "net.".
        """

        def write() -> None:
            for name, value in settings.items():
                if not name.startswith("net."):
                    raise NodeError(f"{self.name}: {name} is the whole machine's setting, not a node's")
                file = pathlib.Path("/proc/sys", *name.split("."))
                try:
                    file.write_text(f"{value}\n")
                    found = file.read_text().strip()
                except OSError as error:
                    raise NodeError(f"{self.name}: sysctl {name}: {error.strerror}") from error
                if found != str(value):
                    raise NodeError(f"{self.name}: sysctl {name} is {found} after writing {value}")

        self.call(write)

    def interfaces(self) -> list[str]:
        """The names of the interfaces that the node has now, `lo` included."""
        return self.call(lambda: [name for _, name in socket.if_nameindex()])

    def addresses(self, interface: str | None = None) -> list[str]:
        """The IPv4 addresses, "192.168.1.11/24", that an interface has now, or all interfaces together."""

        def read() -> list[str]:
            where = {} if interface is None else {"index": socket.if_nametoindex(interface)}
            found = self.netlink.get_addr(family=socket.AF_INET, **where)
            return [f"{one.get_attr('IFA_LOCAL')}/{one['prefixlen']}" for one in found]

        return self.call(read)

    def route_to(self, address: str) -> str | None:
        """The prefix of the route that the node would send to `address` by, "0.0.0.0/0" the default, None without."""

        def prefixes() -> list[ipaddress.IPv4Network]:
            found = self.netlink.get_routes(family=socket.AF_INET)
            return [
                ipaddress.IPv4Network((one.get_attr("RTA_DST") or "0.0.0.0", one["dst_len"]))
                for one in found
                if one["type"] in (1, 2)  # unicast, local
            ]

        match = [network for network in self.call(prefixes) if ipaddress.IPv4Address(address) in network]
        return str(max(match, key=lambda network: network.prefixlen)) if match else None

    def configDefault(self, **_params: Any) -> None:  # noqa: N802 - Mininet's name
        """Mininet's hook once all links are there: set the routes."""
        self.call(self._add_routes)

    def _add_routes(self) -> None:
        for destination, gateway in self._routes:
            self.netlink.route("replace", dst=destination, gateway=gateway)

    def restore_routes(self) -> None:
        """Set the routes again that went away with an interface, as far as they lead somewhere now."""

        def restore() -> None:
            for destination, gateway in self._routes:
                try:
                    self.netlink.route("replace", dst=destination, gateway=gateway)
                except NetlinkError as error:
                    if error.code != errno.ENETUNREACH:  # another interface is down still
                        raise

        self.call(restore)

    # Mininet's shell

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: N802 - Mininet's name
        """Mininet starts a shell when a node is made: here it waits for its first command."""

    def _open_shell(self) -> None:
        if self.shell is None:
            super().startShell()

    def _popen(self, cmd: list[str], **params: Any) -> AnyProcess:
        """Mininet's way to start its shell, `mnexec -cdn env ... bash`: the node does mnexec's work itself."""
        # A controlling terminal, so that Ctrl-C reaches the command, and its end ends what runs in the shell.
        return self.popen(["setsid", "--ctty", *cmd[2:]], process_group=None, **params)

    def sendCmd(self, *args: Any, **kwargs: Any) -> None:  # noqa: N802 - Mininet's name
        """Start a command in the node's shell, and the shell if need be."""
        self._open_shell()
        kwargs.pop("printPid", None)  # Mininet asks mnexec for it
        super().sendCmd(*args, **kwargs)

    def cmd(self, *args: Any, **kwargs: Any) -> str:
        """Run a command in the node's shell, started if need be, and return its output."""
        self._open_shell()
        output: str = super().cmd(*args, **kwargs)
        return output

    def pexec(self, *args: Any, **kwargs: Any) -> tuple[str, str, int]:
        """Mininet's way to run one program: (stdout, stderr, exit code)."""
        words = [word for part in args for word in (part.split() if isinstance(part, str) else part)]
        done = self.run(words, check=False, **kwargs)
        return done.stdout, done.stderr, done.returncode

    def addIntf(self, intf: Interface, port: int | None = None, **_mininet: Any) -> None:  # noqa: N802 - Mininet's name
        """Mininet's list of interfaces; none need be moved, each is made where it belongs."""
        super().addIntf(intf, port=port, moveIntfFn=lambda *_: None)

    @classmethod
    def setup(cls) -> None:
        """Mininet looks for mnexec and ifconfig here; neither is needed."""

    # the end

    def processes(self) -> list[AnyProcess]:
        """The programs started in the node that still run."""
        with self._lock:
            return [process for process in self._processes if process.poll() is None]

    def _start_no_more(self) -> None:
        self._starts_programs = False

    def hang_up(self) -> None:
        """Tell Mininet's shell that its terminal is gone; shells ignore SIGTERM."""
        if self.shell is not None:
            signal_group(self.shell.pid, signal.SIGHUP)

    def terminate(self) -> None:
        """End everything in the node and the node itself: no process, thread or descriptor stays. Repeatable."""
        self.hang_up()
        end_processes(self.processes())
        self.release()

    def release(self) -> None:
        """Kill what still runs in the node, and close it."""
        if self._thread.open:
            # One that another thread starts just now is listed first: what is not waited for holds its namespace.
            self.call(self._start_no_more)
        if self._process_namespace is not None:
            self._process_namespace.kill()
        with self._lock:
            processes, self._processes = self._processes, []
        for process in processes:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if self._process_namespace is not None:
            self._process_namespace.wait()
            self._process_namespace = None
        if getattr(self, "shell", None) is not None:
            for mapping in (self.inToNode, self.outToNode):
                mapping.pop(self.stdout.fileno(), None)
            self.cleanup()
        if self._thread.open:
            if self._netlink is not None:
                self.call(self._netlink.close)
                self._netlink = None
            self._thread.close()


__all__ = ["CommandFailed", "Node", "NodeError"]
