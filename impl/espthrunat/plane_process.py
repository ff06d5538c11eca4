"""The data plane as the daemon sees it: a child process and a socket."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

from . import messages

READY_SECONDS = 10.0
STOP_SECONDS = 2.0


class PlaneError(Exception):
    """The data plane did not start, or has ended; the message says why in one line."""


def not_ready() -> PlaneError:
    """What is wrong when it says nothing for `READY_SECONDS`."""
    return PlaneError(f"the data plane is not ready after {READY_SECONDS:g} s")


class PlaneProcess:
    """Started at once, so that it is getting ready while the daemon still imports and reads."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, messages.MAX_MESSAGE * 4)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "espthrunat.plane", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        """The child's process ID."""
        return self._process.pid

    def configure(self, configure: messages.Configure) -> None:
        """Give it its devices and wait until it has them; PlaneError when it cannot get them."""
        self.send(configure)
        self.socket.settimeout(READY_SECONDS)
        try:
            answer = self.receive()
        except TimeoutError:
            raise not_ready() from None
        if not isinstance(answer, messages.Ready):
            raise PlaneError("the data plane does not speak our language")
        if answer.error:
            raise PlaneError(answer.error)
        self.socket.setblocking(True)

    def send(self, message: messages.ToPlane) -> None:
        """Send one message; PlaneError when the plane has ended."""
        try:
            self.socket.send(messages.encode(message))
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> messages.FromPlane:
        """The next message; PlaneError when the plane has ended."""
        try:
            data = self.socket.recv(messages.MAX_MESSAGE)
        except ConnectionError:
            data = b""
        if not data:
            raise self._ended()
        message: messages.FromPlane = messages.decode_from_plane(data)
        return message

    def _ended(self) -> PlaneError:
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return PlaneError("the data plane has closed its socket")
        return PlaneError(f"the data plane has ended ({f'exit code {code}' if code >= 0 else f'signal {-code}'})")

    def stop(self) -> None:
        """Let it finish what it was told, and see it end."""
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
            return
        self._process.kill()
        self._process.wait()
