"""The plane's one loop: waits for the daemon, the wire and the TUN device, and lets each have its turn."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

import msgspec

from ..esp.policy import Selectors
from ..esp.suites import SUITES
from ..messages import (
    AddPolicy,
    AddSa,
    Configure,
    Datagrams,
    DeletePolicy,
    DeleteSa,
    Encapsulation,
    GetStats,
    Keepalive,
    Mode,
    Move,
    Stats,
    ToPlane,
)
from ..wire.ip import MIN_OCTETS
from ..wire.udp import KEEPALIVE
from . import bulk, netconfig
from .channel import Channel, DaemonGoneError
from .counters import Count, Counters
from .devices import Devices
from .esp_socket import EspSocket
from .inbound import InboundFlow
from .keepalive import Keepalives
from .outbound import OutboundFlow
from .path_mtu import PathMtus, fragmentation_needed
from .queues import Queues
from .sadb import Outbound, SaDatabase
from .steering import MARK
from .udp_socket import RING, segments_in_a_train

_BATCH = 64  # packets or messages a wake: long enough to be efficient, short enough that nobody starves
_SAS_A_MESSAGE = 300  # each has a few hundred octets, however many kinds of drops it counts
_UDP_OVERHEAD = 20 + 8 + 8  # octets: IP, UDP, marker
_RAW_OVERHEAD = 20
_IDLE_SECONDS = 0.05
_LONE_SECONDS = 0.0005  # of silence before a packet: it is likely to be alone
_MIN_MTU = 68  # octets (RFC 791, 3.2)


class ProtocolError(Exception):
    """The daemon sent what makes no sense; nothing that it says can be trusted any more."""


def initial_mtu(path_mtu: int) -> int:
    """The inner MTU in octets that every suite can carry over a path of `path_mtu` octets (WIRE-6)."""
    return max(_MIN_MTU, min(suite.largest_inner(path_mtu - _UDP_OVERHEAD) for suite in SUITES.values()))


class Plane:
    """One plane: its SAs, its policies and what moves packets between them. `clock` gives seconds."""

    def __init__(
        self,
        configure: Configure,
        devices: Devices,
        channel: Channel,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configure = configure
        self._devices = devices
        self._channel = channel
        self._counters = counters
        self._clock = clock
        self._keepalives = Keepalives(clock)
        self._sadb = SaDatabase(clock)
        self._inbound = InboundFlow(self._sadb, devices.tun, channel, counters, self._keepalives)
        self._outbound = OutboundFlow(self._sadb, devices.udp, channel, counters, self._keepalives, clock)
        self._queues = Queues(configure.tun, counters)
        self._outbound.tell_sender = self._tell_sender
        self._outbound.learn_path = self._learn_path
        self._path_mtus = PathMtus(configure.mtu, configure.address, MARK, clock)
        self._mtu = self._inbound.mtu = initial_mtu(configure.mtu)  # the TUN device's
        self._awaits_bulk: bool | None = None  # None before the first SA
        self._epoll = select.epoll()

    def close(self) -> None:
        """Close what the plane opened itself; the devices are their opener's."""
        self._epoll.close()
        if self._outbound.raw is not None:
            self._outbound.raw.close()

    def run(self, end_fd: int) -> None:
        """Work until the daemon closes its end, or `end_fd` can be read.

        Raises ProtocolError for a message that makes no sense, TunGoneError if the TUN device was deleted.
        """
        epoll, channel, udp, tun = self._epoll, self._channel, self._devices.udp, self._devices.tun
        keepalives, held = self._keepalives, self._outbound.held
        clock = self._clock
        control_fd, udp_fd, tun_fd = channel.socket.fileno(), udp.fileno(), tun.fileno()
        for fd in (control_fd, udp_fd, tun_fd, end_fd):
            epoll.register(fd, select.EPOLLIN)
        awaits_room = False
        while True:
            due = _earlier(keepalives.due(), held.due())
            before = clock()
            ready = epoll.poll(self._patience(due, before))
            # To learn that a packet was alone costs as much as to read it, and its answer waits for that.
            now = clock()
            is_alone = now - before > _LONE_SECONDS
            if not ready:
                self._use_the_quiet()
            for fd, events in ready:
                if fd == udp_fd:
                    one = udp.receive_one() if is_alone else None
                    if one is None:
                        self._inbound.arrivals(udp.receive(1 if is_alone else RING), udp.local)
                    else:
                        self._inbound.lone(*one, udp.local)
                elif fd == tun_fd:
                    self._outbound.packets(tun.read(1 if is_alone else _BATCH))
                elif fd == end_fd:
                    return
                elif fd != control_fd:
                    self._receive_raw()
                else:
                    if events & select.EPOLLOUT:
                        channel.flush()
                    if events & ~select.EPOLLOUT and not self._obey():
                        return
            if due is not None and now >= due:
                self._send_keepalives()
                held.expire()
            if awaits_room != channel.has_waiting:
                awaits_room = channel.has_waiting
                epoll.modify(control_fd, select.EPOLLIN | (select.EPOLLOUT if awaits_room else 0))

    def _patience(self, due: float | None, now: float) -> float | None:
        """How many seconds to wait for events; None for as long as it takes."""
        due = _earlier(due, self._path_mtus.due())
        seconds = None if due is None else max(0.0, due - now)
        if self._awaits_bulk:
            return _IDLE_SECONDS if seconds is None else min(seconds, _IDLE_SECONDS)
        return seconds

    def _use_the_quiet(self) -> None:
        if self._awaits_bulk:
            self._awaits_bulk = not bulk.is_ready()
        if self._path_mtus.forget_old():
            self._adapt_mtu()

    def _send_keepalives(self) -> None:
        for path in self._keepalives.take_due():
            taken = self._devices.udp.send_in_fragments(KEEPALIVE, (path.remote, path.remote_port))
            self._counters.add(Count.KEEPALIVE_OUT, taken)

    def _obey(self) -> bool:
        """Do what the daemon says; False when it has gone."""
        try:
            for message in self._channel.receive(_BATCH):
                self._handle(message)
        except DaemonGoneError:
            return False
        except (msgspec.MsgspecError, ValueError) as error:
            raise ProtocolError(str(error)) from error
        return True

    def _handle(self, message: ToPlane) -> None:
        match message:
            case Datagrams():
                self._send_ike(message)
            case AddSa():
                self._add_sa(message)
            case DeleteSa():
                self._sadb.delete(message)
                self._set_mtu()
            case Move(spi, old, new):
                if self._sadb.move_from(spi, old, new):
                    self._keepalives.moved(old, new)
            case AddPolicy():
                self._add_policy(message)
            case DeletePolicy():
                self._delete_policy(message.policy)
            case Keepalive():
                self._keepalives.set(message.path, message.interval)
            case GetStats():
                raw = self._outbound.raw
                self._queues.look(self._devices.udp.fileno(), *([raw.fileno()] if raw else []))
                self._tell_stats(message.query)
            case Configure():
                raise ProtocolError("a second Configure")

    def _tell_stats(self, query: int) -> None:
        sas, counters = self._sadb.stats(), dict(self._counters.values)
        for begin in range(0, max(1, len(sas)), _SAS_A_MESSAGE):
            end = begin + _SAS_A_MESSAGE
            self._channel.send(Stats(query, counters, sas[begin:end], more=end < len(sas)))

    def _send_ike(self, message: Datagrams) -> None:
        for path, datagram in message.items:
            remote = (path.remote, path.remote_port)
            taken = self._devices.udp.send_in_fragments(datagram, remote)
            self._keepalives.sent(remote)
            self._counters.add(Count.IKE_OUT, taken)

    def _add_sa(self, message: AddSa) -> None:
        if message.encapsulation is Encapsulation.NONE:
            self._open_raw()
        outbound = self._sadb.add(message)
        if self._awaits_bulk is None:
            self._awaits_bulk = self._devices.udp.expects_bulk = True
        if outbound is not None:
            self._measure(outbound)
            self._set_mtu()
            self._outbound.release(message.policy)

    def _open_raw(self) -> None:
        if self._outbound.raw is not None:
            return
        try:
            self._outbound.raw = EspSocket(self._configure.address, self._counters, MARK)
        except OSError as error:
            self._counters.failed("raw_open", error)
            return
        self._epoll.register(self._outbound.raw.fileno(), select.EPOLLIN)

    def _receive_raw(self) -> None:
        raw = self._outbound.raw
        if raw is not None:
            self._inbound.esp_packets(raw.receive(_BATCH), raw.local)

    def _add_policy(self, message: AddPolicy) -> None:
        selectors = Selectors.of(message.selector)
        self._outbound.forget_policy(message.policy)
        self._sadb.policies.add(message.policy, selectors, fallback=message.fallback)
        if message.on_demand and not message.fallback:
            self._outbound.add_on_demand_policy(message.policy)
        if message.mode is Mode.TRANSPORT:
            self._outbound.add_transport_policy(message.policy, selectors)
        if message.steer:
            self._devices.steering.add(message)
        else:
            self._devices.steering.remove(message.policy)

    def _delete_policy(self, name: str) -> None:
        self._devices.steering.remove(name)
        self._sadb.policies.remove(name)
        self._outbound.forget_policy(name)
        self._outbound.held.forget(name)

    def _adapt_mtu(self) -> None:
        """What paths carry has changed."""
        for outbound in self._sadb.outbound():
            self._measure(outbound)
        self._set_mtu()

    def _measure(self, outbound: Outbound) -> None:
        outbound.path_mtu = self._path_mtus.of(outbound.path.remote)
        outbound.room = max(_MIN_MTU, _largest_packet(outbound))

    def _set_mtu(self) -> None:
        """Let the kernel know the largest packet that all outbound SAs can carry (WIRE-6)."""
        least = min((outbound.room for outbound in self._sadb.outbound()), default=None)
        mtu = initial_mtu(self._configure.mtu) if least is None else least
        if mtu == self._mtu:
            return
        path_mtu = min((outbound.path_mtu for outbound in self._sadb.outbound()), default=self._configure.mtu)
        self._devices.tun.set_segments(segments_in_a_train(path_mtu))
        try:
            netconfig.set_mtu(self._devices.tun.name, mtu)
        except OSError as error:
            self._counters.failed("set_mtu", error)
        else:
            self._mtu = self._inbound.mtu = mtu

    def _learn_path(self, outbound: Outbound) -> None:
        if self._path_mtus.learn(outbound.path.remote):
            self._adapt_mtu()

    def _tell_sender(self, packet: bytes, most: int) -> None:
        self._devices.tun.write([fragmentation_needed(packet, most)])


def _earlier(one: float | None, other: float | None) -> float | None:
    """Which of two times comes first; None is never."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _largest_packet(outbound: Outbound) -> int:
    overhead = _UDP_OVERHEAD if outbound.encapsulation is Encapsulation.UDP else _RAW_OVERHEAD
    largest = outbound.sa.suite.largest_inner(outbound.path_mtu - overhead)
    # The IP header of transport mode travels outside, as part of the overhead.
    return largest + MIN_OCTETS if outbound.mode is Mode.TRANSPORT and largest else largest
