"""Which of several clients behind one NAT address a packet is for, in transport mode (the draft, 5).

The kernel knows one address for all of them. What a client sends shows by which path its flow came; if two clients use
the same ports, the kernel gets to see another source port for the second.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ..messages import Path
from ..wire.ip import TCP

MAX_FLOWS = 65_536
TRANSLATED_PORTS = (61_000, 65_534)  # both included; above those that Linux chooses, and all that rules can name

_IDLE_SECONDS = 300.0  # of flows that have no connection (RFC 4787, REQ-5: 5 minutes or more)
_TCP_IDLE_SECONDS = 7440.0  # of open connections (RFC 5382, REQ-5: 2 hours and 4 minutes or more)
_TCP_CLOSED_SECONDS = 60.0  # of those that are over, but whose last segments may be repeated
_MOST_TRIES = 256

_FIN, _SYN, _RST = 0x01, 0x02, 0x04
FROM_PEER, TO_PEER = 1, 2


class FlowKey(NamedTuple):
    """A flow as the kernel sees it; ports are ICMP echo's identifiers, or 0 where there is nothing of the kind."""

    protocol: int
    local_port: int
    remote: int  # IPv4 address
    remote_port: int


class Flow:
    """A flow, and whose it is."""

    __slots__ = ("_fins", "_idle_seconds", "key", "path", "port", "used")

    def __init__(self, key: FlowKey, path: Path, port: int, now: float) -> None:
        self.key = key
        self.path = path
        self.port = port  # the remote port that the peer itself uses
        self.used = now
        self._fins = 0
        self._idle_seconds = _TCP_IDLE_SECONDS if key.protocol == TCP else _IDLE_SECONDS

    def use(self, now: float, tcp_flags: int, direction: int) -> None:
        """A packet passed; `direction` is FROM_PEER or TO_PEER."""
        self.used = now
        if not tcp_flags & (_FIN | _SYN | _RST):
            return
        if tcp_flags & _SYN:
            self._fins, self._idle_seconds = 0, _TCP_IDLE_SECONDS
        if tcp_flags & _FIN:
            self._fins |= direction
        if tcp_flags & _RST or self._fins == FROM_PEER | TO_PEER:
            self._idle_seconds = _TCP_CLOSED_SECONDS

    def is_over(self, now: float) -> bool:
        """Whether nothing more is expected of it."""
        return now - self.used >= self._idle_seconds


class Flows:
    """The flows of a plane, learned from authentic packets only. `clock` gives seconds.

    `has_sa` says whether anything can still be sent on a path: the flows of one that has gone keep their ports from
    nobody. At most `most` flows are kept, the least recently used forgotten first.
    """

    def __init__(
        self,
        has_sa: Callable[[Path], bool],
        clock: Callable[[], float] = time.monotonic,
        most: int = MAX_FLOWS,
    ) -> None:
        self._has_sa = has_sa
        self._clock = clock
        self._most = most
        self._by_key: OrderedDict[FlowKey, Flow] = OrderedDict()  # least recently used first
        self._by_peer: dict[tuple[Path, FlowKey], Flow] = {}  # with the port that the peer itself uses
        self._next_port = TRANSLATED_PORTS[0]

    def __len__(self) -> int:
        return len(self._by_key)

    def arrived(self, path: Path, key: FlowKey, tcp_flags: int = 0, *, translate: bool = True) -> int | None:
        """An authentic packet came by `path`, with `key` as the peer sees it: the remote port that the kernel must see.

        None if all of them are taken. Without `translate` the port stays, and the flow goes to who spoke last.
        """
        now = self._clock()
        flow = self._by_peer.get((path, key))
        if flow is not None and flow.is_over(now):
            self._forget(flow)
            flow = None
        if flow is None:
            seen = self._free_key(key, now, translate)
            if seen is None:
                return None
            flow = Flow(seen, path, key.remote_port, now)
            self._by_key[seen] = self._by_peer[path, key] = flow
            if len(self._by_key) > self._most:
                self._forget(next(iter(self._by_key.values())))
        else:
            self._by_key.move_to_end(flow.key)
        flow.use(now, tcp_flags, FROM_PEER)
        return flow.key.remote_port

    def leaving(self, key: FlowKey, tcp_flags: int = 0) -> Flow | None:
        """The flow of a packet that the kernel sends, if there is one."""
        flow = self.peek(key)
        if flow is not None:
            self._by_key.move_to_end(key)
            flow.use(self._clock(), tcp_flags, TO_PEER)
        return flow

    def peek(self, key: FlowKey) -> Flow | None:
        """As `leaving`, but it does not count as use."""
        flow = self._by_key.get(key)
        if flow is not None and flow.is_over(self._clock()):
            self._forget(flow)
            return None
        return flow

    def port_of_peer(self, path: Path, key: FlowKey) -> int:
        """The remote port that the kernel sees in place of the peer's own, which `key` has."""
        flow = self._by_peer.get((path, key))
        return key.remote_port if flow is None else flow.key.remote_port

    def moved(self, old: Path, new: Path) -> None:
        """The peer of `old` is at `new` now."""
        for flow in [flow for flow in self._by_key.values() if flow.path == old]:
            key = flow.key._replace(remote_port=flow.port)
            del self._by_peer[old, key]
            other = self._by_peer.get((new, key))
            if other is not None:
                self._forget(other)
            flow.path = new
            self._by_peer[new, key] = flow

    def _free_key(self, key: FlowKey, now: float, translate: bool) -> FlowKey | None:
        """`key`, or one like it with another remote port, that belongs to no other peer."""
        if not self._is_taken(key, now, evict=not translate):
            return key
        first, last = TRANSLATED_PORTS
        for _ in range(_MOST_TRIES):
            port = self._next_port
            self._next_port = port + 1 if port < last else first
            other = key._replace(remote_port=port)
            if not self._is_taken(other, now):
                return other
        return None

    def _is_taken(self, key: FlowKey, now: float, *, evict: bool = False) -> bool:
        flow = self._by_key.get(key)
        if flow is None:
            return False
        if evict or flow.is_over(now) or not self._has_sa(flow.path):
            self._forget(flow)
            return False
        return True

    def _forget(self, flow: Flow) -> None:
        del self._by_key[flow.key]
        del self._by_peer[flow.path, flow.key._replace(remote_port=flow.port)]
