"""The IKE process: the only place where time and I/O meet IKE."""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

from . import messages
from .config import Config
from .control import Client, ControlServer
from .ike import events
from .ike.child_sa import ChildSa
from .ike.endpoint import Endpoint
from .junk_log import JunkLog
from .keylog import KeyLog
from .messages import Direction
from .plane_process import PlaneProcess
from .status import sa_stats, status

log = logging.getLogger("espthrunat")

DATAGRAMS_A_MESSAGE = 16  # each is far below 8 kB, so that a message stays below MAX_MESSAGE


class Daemon:
    """One host's IKE: an endpoint, its data plane, timers and the control socket."""

    def __init__(self, config: Config, plane: PlaneProcess, keylog: FilePath | None = None) -> None:
        self._plane = plane
        self._junk = JunkLog(log)
        self._failures: dict[str, str] = {}
        self._waiting: list[tuple[str, Client, float]] = []  # who asked for a connection to come up, and since when
        self._queries: dict[int, Client] = {}
        self._query = 0
        self._stopping = False
        self._endpoint = Endpoint((config.address, config.port), config.connections)
        self._keylog = KeyLog(keylog) if keylog else None
        if keylog:
            log.warning("keys are written to %s: who has them can read the traffic", keylog)
        plane.configure(messages.Configure(config.address, config.port, config.tun, config.path_mtu))
        for connection in config.connections:
            plane.send(messages.AddPolicy(connection.name, connection.selector, connection.source))
        self._wakeup, self._signalled = socket.socketpair()
        self._wakeup.setblocking(False)
        self._signalled.setblocking(False)
        signal.set_wakeup_fd(self._signalled.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)  # before there is a control socket that would be left behind
        self._control = ControlServer(config.control, self._on_request)
        self._selector = selectors.DefaultSelector()
        self._watch(self._plane.socket, self._on_plane)
        self._watch(self._control.listener, self._on_client)
        self._watch(self._wakeup, self._on_signal)
        log.info("listening on %s:%d", config.address, config.port)

    def run(self) -> None:
        """Serve until a signal asks to stop; PlaneError when the data plane ends by itself."""
        try:
            for connection in self._endpoint.connections.values():
                if connection.start:
                    self._endpoint.initiate(connection.name, time.monotonic())
            self._flush()
            while not self._stopping:
                due = self._endpoint.timer()
                wait = None if due is None else max(0.0, due - time.monotonic())
                for key, _ in self._selector.select(wait):
                    key.data()
                self._endpoint.handle_timer(time.monotonic())
                self._flush()
            self._endpoint.shut_down(time.monotonic())
            self._flush()
        finally:
            self.close()

    def close(self) -> None:
        """Leave nothing behind."""
        self._control.close()
        self._plane.stop()
        self._selector.close()
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._signalled.close()
        log.info("stopped")

    def _watch(self, source: socket.socket, callback: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, callback)

    # what comes in

    def _stop(self, number: int, _: object) -> None:
        self._stopping = True

    def _on_signal(self) -> None:
        self._wakeup.recv(64)

    def _on_plane(self) -> None:
        message = self._plane.receive()
        now = time.monotonic()
        if isinstance(message, messages.Datagrams):
            for path, data in message.items:
                self._endpoint.receive_datagram(data, path, now)
        elif isinstance(message, messages.Stats):
            client = self._queries.pop(message.query, None)
            if client is not None:
                client.reply({"ok": True, "counters": message.counters, "sas": [sa_stats(sa) for sa in message.sas]})
        elif isinstance(message, messages.Expire):
            log.warning("SA 0x%08x (%s) has used up its %s", message.spi, message.direction, message.reason)

    def _on_client(self) -> None:
        client = self._control.accept()
        if client is not None:
            self._watch(client.connection, lambda: self._on_client_data(client))

    def _on_client_data(self, client: Client) -> None:
        connection = client.connection
        number = connection.fileno()
        if not self._control.receive(client):
            self._selector.unregister(number)
            self._waiting = [w for w in self._waiting if w[1] is not client]
            self._queries = {q: c for q, c in self._queries.items() if c is not client}

    def _on_request(self, client: Client, request: dict[str, Any]) -> None:
        command, name = request.get("command"), request.get("connection")
        if command == "status":
            client.reply({"ok": True, **status(self._endpoint, self._failures)})
        elif command == "stats":
            self._query += 1
            self._queries[self._query] = client
            self._plane.send(messages.GetStats(self._query))
        elif command not in ("up", "down"):
            client.reply({"ok": False, "error": f"unknown command {command!r}"})
        elif not isinstance(name, str) or name not in self._endpoint.connections:
            known = ", ".join(self._endpoint.connections)
            client.reply({"ok": False, "error": f"no connection {name!r}; known are {known}"})
        elif command == "up":
            self._up(client, name)
        else:
            self._endpoint.terminate(name, time.monotonic())
            for waiting, _ in self._no_longer_waiting(name):
                waiting.reply({"ok": False, "error": f"{name}: taken down while it was coming up"})
            client.reply({"ok": True})

    def _up(self, client: Client, name: str) -> None:
        now = time.monotonic()
        try:
            self._endpoint.initiate(name, now)
        except ValueError as error:
            client.reply({"ok": False, "error": str(error)})
            return
        if any(child.connection == name for child in self._endpoint.usable_children()):
            client.reply({"ok": True, "seconds": 0.0})
        else:
            self._waiting.append((name, client, now))

    def _no_longer_waiting(self, name: str) -> list[tuple[Client, float]]:
        """Who waited for this connection, and since when: each must get an answer now."""
        done = [(client, since) for waited, client, since in self._waiting if waited == name]
        self._waiting = [w for w in self._waiting if w[0] != name]
        return done

    # what goes out

    def _flush(self) -> None:
        """Events first: the plane must know an SA before the datagram that lets the peer use it."""
        while (event := self._endpoint.next_event()) is not None:
            self._on_event(event)
        datagrams = [(path, data) for data, path in self._endpoint.datagrams_to_send()]
        for start in range(0, len(datagrams), DATAGRAMS_A_MESSAGE):
            self._plane.send(messages.Datagrams(datagrams[start : start + DATAGRAMS_A_MESSAGE]))

    def _on_event(self, event: events.Event) -> None:
        match event:
            case events.SaEstablished():
                self._add_sas(event)
            case events.SaDeleted(child, reason):
                self._delete_sas(child)
                log.info("%s: SAs deleted: %s", child.connection, reason)
            case events.Phase1Keys():
                if self._keylog:
                    self._keylog.phase1(event)
            case events.NatDetected(name, path, nat, supported):
                found = "NAT detected" if nat else "no NAT" if supported else "peer does not know ESP in UDP"
                log.info("%s: %s, peer %s:%d", name, found, path.remote, path.remote_port)
            case events.IkeSaEstablished(name, path, identity, suite, _, seconds):
                peer = f"{identity} at {path.remote}:{path.remote_port}"
                log.info("%s: phase 1 with %s, %s, %.0f ms", name, peer, suite, seconds * 1000)
            case events.IkeSaDeleted(name, path, reason):
                log.info("%s: phase 1 with %s:%d deleted: %s", name, path.remote, path.remote_port, reason)
            case events.AuthenticationFailed(name, path, reason):
                self._failures[name] = reason
                self._junk.note("authentication failed", f"{name}, {path.remote}:{path.remote_port}: {reason}")
            case events.ExchangeFailed(name, path, reason):
                self._failed(name, f"{path.remote}:{path.remote_port}", reason)
            case events.DatagramRefused(kind, path, reason):
                self._junk.note(f"datagram {kind}", f"from {path.remote}:{path.remote_port}: {reason}")

    def _failed(self, name: str, peer: str, reason: str) -> None:
        if name:
            self._failures[name] = reason
            log.error("%s: failed: %s", name, reason)
        else:
            self._junk.note("exchange failed", f"{peer}: {reason}")
        for client, _ in self._no_longer_waiting(name):
            client.reply({"ok": False, "error": f"{name}: {reason}"})

    def _add_sas(self, event: events.SaEstablished) -> None:
        child = event.child
        for direction in event.directions:
            inbound = direction == Direction.INBOUND
            self._plane.send(
                messages.AddSa(
                    spi=child.inbound_spi if inbound else child.outbound_spi,
                    direction=direction,
                    suite=child.suite.name,
                    keymat=child.inbound_keymat if inbound else child.outbound_keymat,
                    path=child.path,
                    encapsulation=child.encapsulation,
                    selector=child.selector,
                    policy=child.connection,
                )
            )
        if Direction.INBOUND in event.directions and self._keylog:
            self._keylog.child(child)
        if Direction.OUTBOUND not in event.directions:
            return
        self._failures.pop(child.connection, None)
        way = "in UDP" if child.encapsulation == messages.Encapsulation.UDP else "without UDP"
        traffic = f"{child.selector.local} <-> {child.selector.remote}"
        milliseconds = event.seconds * 1000
        log.info("%s: ESP %s, %s, %s, %.0f ms", child.connection, way, child.suite.name, traffic, milliseconds)
        for client, since in self._no_longer_waiting(child.connection):
            client.reply({"ok": True, "seconds": time.monotonic() - since})

    def _delete_sas(self, child: ChildSa) -> None:
        self._plane.send(messages.DeleteSa(child.inbound_spi, Direction.INBOUND, child.path))
        self._plane.send(messages.DeleteSa(child.outbound_spi, Direction.OUTBOUND, child.path))
