"""The local control socket: JSON lines, one request and one reply each."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_REQUEST = 4096  # octets
MAX_CLIENTS = 32
BACKLOG = 128  # more than MAX_CLIENTS, so that those beyond are told
REPLY_SECONDS = 1.0  # a reply is small: who has not read it by then does not read
_TOO_LONG = f"a request has at most {MAX_REQUEST} octets"


class ControlError(Exception):
    """The daemon cannot be asked, or refuses; the message says why in one line."""


class Client:
    """One connected client; a reply may come long after its request."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(REPLY_SECONDS)
        self.connection = connection
        self.pending = b""
        self.gone = False

    def reply(self, answer: dict[str, Any]) -> None:
        """Send one line. A client that has gone, or that does not read, is given up: nobody waits for it twice."""
        if self.gone:
            return
        try:
            self.connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            self.gone = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)  # wakes its reader, who drops it


class ControlServer:
    """Listens on a socket that only its owner may open."""

    def __init__(self, path: Path, handle: Callable[[Client, dict[str, Any]], None]) -> None:
        self._path = path
        self._handle = handle
        self.clients: dict[int, Client] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_way(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            self.listener.bind(str(path))
        finally:
            os.umask(mask)
        self.listener.listen(BACKLOG)

    def accept(self) -> Client | None:
        """A new client, or None if it has gone again or there are too many."""
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return None
        client = Client(connection)
        if len(self.clients) >= MAX_CLIENTS:
            client.reply({"ok": False, "error": f"{MAX_CLIENTS} clients are connected already"})
            connection.close()
            return None
        self.clients[connection.fileno()] = client
        return client

    def receive(self, client: Client) -> bool:
        """Read what a client sent and handle complete lines; False when it has gone and was dropped."""
        data = b""
        if not client.gone:
            with contextlib.suppress(OSError):
                data = client.connection.recv(MAX_REQUEST)
        *lines, client.pending = (client.pending + data).split(b"\n")
        for line in lines:
            if client.gone:
                break
            try:
                request = parse_request(line)
            except ValueError as error:
                client.reply({"ok": False, "error": str(error)})
            else:
                self._handle(client, request)
        if len(client.pending) > MAX_REQUEST:
            client.reply({"ok": False, "error": _TOO_LONG})
        elif data:
            return True
        self.drop(client)
        return False

    def drop(self, client: Client) -> None:
        """Forget a client."""
        self.clients.pop(client.connection.fileno(), None)
        client.connection.close()

    def close(self) -> None:
        """Drop every client, and leave no socket behind."""
        for client in list(self.clients.values()):
            self.drop(client)
        self.listener.close()
        self._path.unlink(missing_ok=True)


def parse_request(line: bytes) -> dict[str, Any]:
    """One line without its end; ValueError, with what to tell the client, for what is no request."""
    if len(line) > MAX_REQUEST:
        raise ValueError(_TOO_LONG)
    with contextlib.suppress(ValueError, RecursionError):  # the latter for thousands of nested brackets
        parsed = json.loads(line)
        if isinstance(parsed, dict):
            return parsed
    raise ValueError("a request is one JSON object a line")


def _make_way(path: Path) -> None:
    """Remove the socket of a daemon that was killed; ControlError for anything else that is there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"{path}: this is no socket; move it away, or configure another local.control")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is an answer too
        if probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT):
            raise ControlError(f"{path}: another daemon listens here")
    path.unlink(missing_ok=True)


def request(path: Path, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
    """Ask a daemon; its answer without "ok". ControlError when it says no, or nothing within `timeout` seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except BlockingIOError:
            raise ControlError(f"{path}: the daemon is too busy: too many clients wait for it") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise ControlError(f"{path}: no daemon answers here ({reason}); start one: espthrunat run CONFIG") from None
        line = b""
        try:
            with contextlib.suppress(BrokenPipeError):  # a daemon that does not listen may have said why
                connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError:
            raise ControlError(f"{path}: no answer to {command} within {timeout:g} s") from None
        except ConnectionError:
            pass
    if not line.endswith(b"\n"):
        raise ControlError(f"{path}: the daemon closed the connection")
    answer: dict[str, Any] = json.loads(line)
    if not answer.pop("ok", False):
        raise ControlError(str(answer.get("error", "the daemon refused")))
    return answer
