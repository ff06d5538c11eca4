"""The local control socket: JSON lines, one request and one reply each."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_REQUEST = 4096  # octets
MAX_CLIENTS = 32


class ControlError(Exception):
    """The daemon cannot be asked, or refuses; the message says why in one line."""


class Client:
    """One connected client; a reply may come long after its request."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pending = b""

    def reply(self, answer: dict[str, Any]) -> None:
        """Send one line. A client that has gone, or that does not read, loses it."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(answer).encode() + b"\n")


class ControlServer:
    """Listens on a socket that only its owner may open."""

    def __init__(self, path: Path, handle: Callable[[Client, dict[str, Any]], None]) -> None:
        self._path = path
        self._handle = handle
        self.clients: dict[int, Client] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if _answers(path):
                raise ControlError(f"{path}: another daemon listens here")
            path.unlink()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            self.listener.bind(str(path))
        finally:
            os.umask(mask)
        self.listener.listen(MAX_CLIENTS)

    def accept(self) -> Client | None:
        """A new client, or None if it has gone again or there are too many."""
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return None
        if len(self.clients) >= MAX_CLIENTS:
            connection.close()
            return None
        connection.settimeout(1.0)  # a reply is small; who does not read it within a second is gone
        client = self.clients[connection.fileno()] = Client(connection)
        return client

    def receive(self, client: Client) -> bool:
        """Read what a client sent and handle complete lines; False when it has gone and was dropped."""
        try:
            data = client.connection.recv(MAX_REQUEST)
        except OSError:
            data = b""
        client.pending += data
        if not data or len(client.pending) > MAX_REQUEST:
            self.drop(client)
            return False
        *lines, client.pending = client.pending.split(b"\n")
        for line in lines:
            try:
                request = json.loads(line)
            except ValueError:
                request = None
            if isinstance(request, dict):
                self._handle(client, request)
            else:
                client.reply({"ok": False, "error": "a request is one JSON object a line"})
        return True

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


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def request(path: Path, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
    """Ask a daemon; its answer without "ok". ControlError when it says no, or nothing within `timeout` seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError:
            raise ControlError(f"{path}: no answer to {command} within {timeout:g} s") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise ControlError(f"{path}: no daemon answers here ({reason}); start one: espthrunat run CONFIG") from None
    if not line:
        raise ControlError(f"{path}: the daemon closed the connection")
    answer: dict[str, Any] = json.loads(line)
    if not answer.pop("ok", False):
        raise ControlError(str(answer.get("error", "the daemon refused")))
    return answer
