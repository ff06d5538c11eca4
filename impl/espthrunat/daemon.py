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
from .event_log import EventLog
from .ike import events
from .ike.admission import Limits
from .ike.child_sa import ChildSa
from .ike.endpoint import Endpoint
from .ike.timers import Timers
from .keylog import KeyLog
from .messages import Direction
from .plain_esp import PlainEspWatch
from .plane_keeper import PlaneKeeper
from .plane_policies import PlanePolicies
from .plane_process import PlaneProcess
from .plane_sas import add_sa
from .stats_parts import StatsParts
from .status import sa_stats, status
from .waiting import Wait, Waiting

log = logging.getLogger("espthrunat")

DATAGRAMS_A_MESSAGE = 16  # each is far below 8 kB, so that a message stays below MAX_MESSAGE
STATS_SECONDS = 1.0  # that a status waits for the plane's counters

StatsUser = Callable[[messages.Stats | None], None]  # None when the plane has ended before it could answer


class Daemon:
    """One host's IKE: an endpoint, its data plane, timers and the control socket."""

    def __init__(self, config: Config, plane: PlaneProcess, keylog: FilePath | None = None) -> None:
        self._log = EventLog(log)
        self._timers = Timers()
        self._failures: dict[str, str] = {}
        self._waiting = Waiting(time.monotonic)
        self._queries: dict[int, tuple[Client | None, StatsUser]] = {}
        self._stats_parts = StatsParts()
        self._query = 0
        self._plain = PlainEspWatch(self._timers, lambda: self._ask_plane(None, self._judge_plain_esp))
        self._keepalives: dict[messages.Path, float] = {}
        self._policies = PlanePolicies(config.connections, config.pool)
        self._stopping = False
        limits = Limits(half_open=config.max_half_open, new_per_second=config.new_phase1_per_second)
        self._endpoint = Endpoint((config.address, config.port), config.connections, limits=limits, pool=config.pool)
        self._keylog = KeyLog(keylog) if keylog else None
        if keylog:
            log.warning("keys are written to %s: who has them can read the traffic", keylog)
        for warning in config.warnings:
            log.warning("%s", warning)
        configure = messages.Configure(config.address, config.port, config.tun, config.path_mtu, config.batches)
        self._plane = PlaneKeeper(plane, configure, self._timers)
        for policy in self._policies.all_again():
            self._plane.send(policy)
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
        """Serve until a signal asks to stop; PlaneError when the data plane ends by itself again and again."""
        try:
            for connection in self._endpoint.connections.values():
                if connection.start:
                    self._endpoint.initiate(connection.name, time.monotonic())
            self._flush()
            while not self._stopping:
                due = [t for t in (self._endpoint.timer(), self._timers.next()) if t is not None]
                wait = max(0.0, min(due) - time.monotonic()) if due else None
                for key, _ in self._selector.select(wait):
                    key.data()
                now = time.monotonic()
                self._timers.run(now)
                self._endpoint.handle_timer(now)
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
        match message:
            case messages.Datagrams(items):
                for path, data in items:
                    self._endpoint.receive_datagram(data, path, now)
            case messages.Stats():
                whole = self._stats_parts.add(message)
                _, use = self._queries.pop(message.query, (None, None)) if whole else (None, None)
                if use is not None:
                    use(whole)
            case messages.Acquire(policy):
                self._endpoint.acquire(policy, now)
            case messages.Used(spi):
                if name := self._plain.used(spi):
                    log.info("%s: ESP comes back now", name)
                self._endpoint.sa_used(spi, now)
            case messages.Rebound(spi, old, new):
                self._endpoint.sa_rebound(spi, old, new, now)
            case messages.Expire(spi, direction, reason, hard):
                used_up = "has used up its" if hard else "has nearly used up its"
                log.info("SA 0x%08x (%s) %s %s", spi, direction, used_up, reason)
                self._endpoint.sa_expires(spi, direction, hard, now)

    def _on_client(self) -> None:
        client = self._control.accept()
        if client is not None:
            self._watch(client.connection, lambda: self._on_client_data(client))

    def _on_client_data(self, client: Client) -> None:
        connection = client.connection
        number = connection.fileno()
        if not self._control.receive(client):
            self._selector.unregister(number)
            self._waiting.forget(client)
            self._queries = {q: waits for q, waits in self._queries.items() if waits[0] is not client}

    # what clients ask

    def _on_request(self, client: Client, request: dict[str, Any]) -> None:
        self._tell()  # an answer must not know of SAs that the data plane and the key log do not
        command, name = request.get("command"), request.get("connection")
        if command == "status":
            self._status(client)
        elif command == "stats":
            self._ask_plane(client, lambda stats: _reply_stats(client, stats))
        elif command not in ("up", "down", "rekey"):
            client.reply({"ok": False, "error": f"unknown command {command!r}"})
        elif not isinstance(name, str) or name not in self._endpoint.connections:
            known = ", ".join(self._endpoint.connections)
            client.reply({"ok": False, "error": f"no connection {name!r}; known are {known}"})
        elif command == "up":
            self._up(client, name)
        elif command == "rekey":
            self._rekey(client, name, request.get("phase1", False))
        else:
            self._endpoint.terminate(name, time.monotonic())
            self._waiting.failed(name, "taken down while it was coming up")
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
            self._waiting.add(Wait(client, name, now))

    def _rekey(self, client: Client, name: str, phase1: object) -> None:
        if not isinstance(phase1, bool):
            client.reply({"ok": False, "error": f"phase1 = {phase1!r}: must be true or false"})
            return
        now = time.monotonic()
        pairs = [child.path for child in self._endpoint.usable_children() if child.connection == name]
        known = [sa.path for sa in self._endpoint.ike_sas() if sa.established and sa.connection.name == name]
        if known and not pairs and not phase1:
            client.reply({"ok": False, "error": f"{name} has no ESP SAs that could be replaced"})
            return
        try:
            coming = self._endpoint.rekey(name, now, phase1=phase1)
        except ValueError as error:
            client.reply({"ok": False, "error": str(error)})
            return
        self._waiting.add(Wait(client, name, now, coming, {*pairs, *known} if phase1 else set()))

    def _status(self, client: Client) -> None:
        if not self._plain.curious(time.monotonic()):
            self._reply_status(client)
            return
        answered = False

        def answer(stats: messages.Stats | None) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._judge_plain_esp(stats)
                self._reply_status(client)

        query = self._ask_plane(client, answer)
        self._timers.set(("status", query), time.monotonic() + STATS_SECONDS, lambda _: self._no_stats(query))

    def _reply_status(self, client: Client) -> None:
        plane = {"pid": self._plane.pid, "restarts": self._plane.restarts}
        shown = status(self._endpoint, self._failures, self._plain.notes(), plane, time.monotonic())
        client.reply({"ok": True, **shown})

    # what only the plane can say

    def _ask_plane(self, client: Client | None, use: StatsUser) -> int:
        self._query += 1
        self._queries[self._query] = (client, use)
        self._plane.send(messages.GetStats(self._query))
        return self._query

    def _no_stats(self, query: int) -> None:
        _, use = self._queries.pop(query, (None, None))
        if use is not None:
            use(None)

    def _judge_plain_esp(self, stats: messages.Stats | None) -> None:
        for name, text in self._plain.look(stats.sas if stats else (), time.monotonic()):
            log.warning("%s: %s", name, text)

    def _new_plane(self) -> None:
        """The old plane is gone, with its keys: none of them may be used again, as nobody knows what was sent."""
        self._selector.unregister(self._plane.socket)
        self._plane.restart()
        self._watch(self._plane.socket, self._on_plane)
        for policy in self._policies.all_again():
            self._plane.send(policy)
        for path, interval in self._keepalives.items():
            self._plane.send(messages.Keepalive(path, interval))
        queries, self._queries = self._queries, {}
        for _, use in queries.values():
            use(None)
        self._endpoint.plane_lost(time.monotonic())

    # what goes out

    def _flush(self) -> None:
        """Tell everything to a plane that lives, which may have to be another one.

        Only between two rounds of the loop: a new plane has a new socket, and what was readable is then out of date.
        """
        self._tell()
        while self._plane.failure is not None and not self._stopping:
            self._new_plane()
            self._tell()

    def _tell(self) -> None:
        """Events first: the plane must know an SA before the datagram that lets the peer use it."""
        while (event := self._endpoint.next_event()) is not None:
            self._on_event(event)
        datagrams = [(path, data) for data, path in self._endpoint.datagrams_to_send()]
        for start in range(0, len(datagrams), DATAGRAMS_A_MESSAGE):
            self._plane.send(messages.Datagrams(datagrams[start : start + DATAGRAMS_A_MESSAGE]))

    def _on_event(self, event: events.Event) -> None:
        self._log.note(event)
        match event:
            case events.SaEstablished():
                self._add_sas(event)
            case events.SaRetired(child):
                self._plain.gone(child)
                self._plane.send(messages.DeleteSa(child.outbound_spi, Direction.OUTBOUND, child.path))
            case events.SaDeleted(child):
                self._delete_sas(child)
            case events.PeerMoved(_, old, new):
                # The plane knows it already where it was ESP that showed it.
                for child in self._endpoint.children():
                    if child.path == new:
                        self._plane.send(messages.Move(child.inbound_spi, old, new))
            case events.KeepaliveWanted(path, interval):
                self._keep_alive(path, interval)
            case events.Phase1Keys():
                if self._keylog:
                    self._keylog.phase1(event)
            case events.IkeSaEstablished(_, path):
                self._waiting.phase1_up(path)
            case events.AuthenticationFailed(name, _, reason):
                self._failures[name] = reason
            case events.ExchangeFailed(name, path, reason) if name:
                self._failures[name] = reason
                self._waiting.failed(name, reason, path)

    def _keep_alive(self, path: messages.Path, interval: float) -> None:
        if interval:
            self._keepalives[path] = interval
        else:
            self._keepalives.pop(path, None)
        self._plane.send(messages.Keepalive(path, interval))

    def _add_sas(self, event: events.SaEstablished) -> None:
        child = event.child
        policy = self._policies.before(child)
        if policy is not None:
            self._plane.send(policy)
        for direction in event.directions:
            self._plane.send(add_sa(child, direction, self._endpoint.connections[child.connection]))
        if Direction.INBOUND in event.directions:
            self._plain.added(child, time.monotonic())
            if self._keylog:
                self._keylog.child(child)
        if Direction.OUTBOUND not in event.directions:
            return
        self._failures.pop(child.connection, None)
        self._waiting.child_up(child)

    def _delete_sas(self, child: ChildSa) -> None:
        self._plane.send(messages.DeleteSa(child.inbound_spi, Direction.INBOUND, child.path))
        self._plane.send(messages.DeleteSa(child.outbound_spi, Direction.OUTBOUND, child.path))
        policy = self._policies.after(child)
        if policy is not None:
            self._plane.send(policy)
        self._plain.gone(child)


def _reply_stats(client: Client, stats: messages.Stats | None) -> None:
    if stats is None:
        client.reply({"ok": False, "error": "the data plane has ended; another one was started"})
    else:
        client.reply({"ok": True, "counters": stats.counters, "sas": [sa_stats(sa) for sa in stats.sas]})
