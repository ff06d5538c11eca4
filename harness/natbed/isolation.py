"""Private namespaces: `isolate()` for a whole process, `NamespaceThread` for one node of a lab.

Root makes them directly. Any other user first becomes root of a user namespace, where the system allows it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import getpass
import os
import pathlib
import queue
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

CAP_SYS_ADMIN = 21  # linux/capability.h

# linux/mount.h
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000

# linux/sockios.h, linux/if.h
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

SYSTEM_PATHS = ("/usr/sbin", "/sbin")  # where iptables lives, and not in everybody's PATH

# What forbids user namespaces: a setting below /proc/sys and the value that does.
_FORBIDDING = (
    ("user/max_user_namespaces", "0"),
    ("kernel/unprivileged_userns_clone", "0"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1"),
)

_libc = ctypes.CDLL(None, use_errno=True)
_runtime_directory: pathlib.Path | None = None  # set once this process is isolated


class IsolationError(Exception):
    """This process or thread cannot get namespaces of its own; the message is one line that says why."""


def isolate() -> None:
    """Put this process into network, mount and UTS namespaces of its own; once, further calls do nothing.

    Call it early, in the main thread and before others are started: those would stay outside. Raises `IsolationError`.
    """
    global _runtime_directory
    if _runtime_directory is not None:
        return
    # Counted by Python, not by the kernel: an xdist worker's thread that reads from its master is not among them, and
    # may stay outside.
    threads = threading.active_count()
    if threads != 1 or threading.current_thread() is not threading.main_thread():
        raise IsolationError(f"cannot isolate: the process has {threads} threads already, isolate() must come first")
    become_root()
    unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS)
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount_sysfs()
    _mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    raise_loopback()
    directory = pathlib.Path("/run/natbed")
    directory.mkdir()
    _runtime_directory = directory


def isolated() -> bool:
    """Whether `isolate()` has succeeded in this process."""
    return _runtime_directory is not None


def runtime_directory() -> pathlib.Path:
    """The run's own directory for sockets, in a tmpfs that no other run sees. Before isolate(): `IsolationError`."""
    if _runtime_directory is None:
        raise IsolationError("there is no runtime directory before isolate()")
    return _runtime_directory


def become_root() -> None:
    """Make this process root of a user namespace of its own, unless it may make namespaces already.

    All its files, and what its children make, still belong to the user who started it. `isolate()` does this itself;
    but the kernel wants a process without any other thread here, which a worker of xdist is not: its master, whose
    child it is, does this for it. Raises `IsolationError`, which names a setting of the system that forbids it.
    """
    if os.geteuid() == 0 and _holds(CAP_SYS_ADMIN):
        return
    user, group = os.geteuid(), os.getegid()
    # The name of the user would be "root" now, and with it that of the folder that pytest shares among a user's runs.
    with contextlib.suppress(KeyError, OSError):
        os.environ.setdefault("LOGNAME", getpass.getuser())
    os.environ.setdefault("LOGNAME", str(user))
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PATHS))
    if _libc.unshare(ctypes.c_int(CLONE_NEWUSER)) != 0:
        raise IsolationError(_why_no_user_namespace(ctypes.get_errno()))
    try:
        pathlib.Path("/proc/self/setgroups").write_text("deny")  # before gid_map, else that is refused
        pathlib.Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        pathlib.Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError as error:
        raise IsolationError(_why_no_user_namespace(error.errno or errno.EPERM)) from error


def outside_user() -> int:
    """The user that this process is outside its user namespace; the same as here for root."""
    inside, outside, _count = pathlib.Path("/proc/self/uid_map").read_text().split(maxsplit=2)
    return os.geteuid() - int(inside) + int(outside)


def _holds(capability: int) -> bool:
    lines = pathlib.Path("/proc/thread-self/status").read_text().splitlines()
    (effective,) = (line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> capability & 1)


def _why_no_user_namespace(number: int) -> str:
    message = f"cannot make a user namespace: {os.strerror(number)}"
    for name, value in _FORBIDDING:
        with contextlib.suppress(OSError):
            if pathlib.Path("/proc/sys", name).read_text().strip() == value:
                return f"{message}: run as root, or change sysctl {name.replace('/', '.')}, which is {value}"
    if number == errno.EINVAL and len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - only the number is wanted
        return "cannot make a user namespace: this process has threads already"
    return f"{message}: run as root"


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread. Raises `IsolationError`."""
    if _libc.unshare(ctypes.c_int(flags)) != 0:
        _fail("cannot make private namespaces")


def _mount_sysfs() -> None:
    """Sysfs shows the network namespace that it was mounted in: the old one would list the machine's interfaces."""
    try:
        _mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except IsolationError:
        # A container that hides parts of its sysfs may not mount a whole one. Then no interfaces are listed.
        _mount("tmpfs", "/sys/class/net", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    if _libc.mount(*arguments) != 0:
        _fail(f"cannot mount {kind or 'private'} on {target}")


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    advice = ": run as root" if number == errno.EPERM else ""
    raise IsolationError(f"{what}: {os.strerror(number)}{advice}")


def raise_loopback() -> None:
    """Bring `lo` up in the calling thread's network namespace, as `ip link set lo up` does."""
    request = struct.Struct("16sH14x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _, flags = request.unpack(fcntl.ioctl(control, SIOCGIFFLAGS, request.pack(b"lo", 0)))
        fcntl.ioctl(control, SIOCSIFFLAGS, request.pack(b"lo", flags | IFF_UP))


class _Call:
    """One function on its way through a thread, and what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        # Nothing of threading: a Ctrl-C that comes at the wrong instruction of its waits leaves their locks held.
        self.done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # the caller's: raised there
            self.error = error
        finally:
            self.done.put(None)


class NamespaceThread:
    """A thread with network and UTS namespaces of its own that runs functions given to it, one after another.

    The namespaces live as long as the thread, its children, and `namespace_fd`. Raises `IsolationError`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.namespace_fd = -1
        self.inode = 0  # of the network namespace: what /proc/PID/ns/net of its inhabitants shows
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._closed = False
        # A daemon, so that a harness that forgot to end its lab can still exit.
        self._thread = threading.Thread(target=self._serve, name=f"node {name}", daemon=True)
        self._thread.start()
        try:
            self.call(self._enter)
        except BaseException:
            self.close()
            raise

    @property
    def open(self) -> bool:
        """Whether functions can still be given to it."""
        return not self._closed

    def here(self) -> bool:
        """Whether the calling thread is this one."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` inside the namespaces and return its result; what it raises is raised here.

        Functions run one at a time, so keep them short: make a socket here, then use it from any thread.
        """
        if self._closed:
            raise IsolationError(f"{self.name} has ended")
        call = _Call(function)
        if self.here():
            call.run()
        else:
            self._calls.put(call)
            call.done.get()
        error, call.error = call.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # the traceback refers to this frame: no cycle
        result: T = call.result
        return result

    def close(self) -> None:
        """End the thread and wait for its end; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self._calls.put(None)
        self._thread.join()
        if self.namespace_fd >= 0:
            os.close(self.namespace_fd)
            self.namespace_fd = -1

    def _enter(self) -> None:
        unshare(CLONE_NEWNET | CLONE_NEWUTS)
        socket.sethostname(self.name)
        raise_loopback()
        self.namespace_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self.namespace_fd).st_ino

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
            del call  # nothing may live on, while this thread waits, because of what it last ran
