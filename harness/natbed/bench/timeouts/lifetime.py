"""How long a NAT remembers a UDP mapping, measured from outside: by when a datagram of the server still comes.

Each probe is a mapping of its own: a client's socket, which the server answers after an idle time of its own. Many are
idle side by side, so that a round of the bisection takes no longer than its longest probe.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from natbed.lab import Lab, LabError
from natbed.node_like import NodeLike

from .cliff import Cliff, NoCliffError

UNREPLIED, REPLIED = "unreplied", "replied"
STATES = (UNREPLIED, REPLIED)
"""A mapping that only the client has used, and one that both sides have used for longer than two seconds."""

WIDTH = 24  # probes of a round, of each NAT and state
_STREAM_SECONDS = 2.2  # after which conntrack takes a flow that is answered for a stream (its own 2 s)
_PACE = 0.4  # seconds between uses of one until then, since the timeout of unreplied ones may be as short as a second
_ARRIVAL_SECONDS = 2.0  # of what must arrive, since nothing is lost on the way
_GRACE = 0.5  # seconds, after which what has not arrived was dropped: the way takes microseconds
_TRIES = 2  # of a search that two probes contradict
_OCTETS = 8  # of a datagram: the probe's number


@dataclass
class Subject:
    """What is measured: one NAT's mappings of one state, from a client behind it. Times are real seconds."""

    nat: str
    state: str
    client: NodeLike
    address: str  # the client's
    cliff: Cliff
    probes: int = 0  # that have been sent


@dataclass
class _Probe:
    subject: Subject
    number: int
    idle: float
    inside: socket.socket
    outside: socket.socket  # the server's, one for each subject
    public: tuple[str, int] | None = None
    used: tuple[float, float] = (0.0, 0.0)  # the last packet passed between these
    asked: tuple[float, float] | None = None  # the server's probe, likewise
    arrived: bool = False

    def tell(self) -> None:
        """What this one says of the cliff: no more than is certain, however late it was sent."""
        if self.asked is None:
            return
        if self.arrived:
            self.subject.cliff.held(self.asked[0] - self.used[1])
        else:
            self.subject.cliff.lost(self.asked[1] - self.used[0])


def measure_lifetimes(lab: Lab, subjects: Sequence[Subject], progress: Callable[[str], None]) -> None:
    """Bisect the cliffs of all subjects at once, round by round. The server is the lab's host of that name.

    Raises LabError where datagrams are lost though the mapping is new, or a NAT's lifetime is not one figure.
    """
    fresh = {id(one): (one.cliff.limit, one.cliff.resolution, one.cliff.width) for one in subjects}
    tries = dict.fromkeys(fresh, 1)
    server = lab.host("server")
    for number in itertools.count(1):
        points = [(one, at) for one in subjects for at in one.cliff.points()]
        if not points:
            return
        longest = max(at for _, at in points)
        progress(f"mapping lifetimes, round {number}: {len(points)} mappings idle for up to {longest:.1f} s")
        with _opened(points, server, server.address) as probes:
            _run(probes)
            for subject in {id(probe.subject): probe.subject for probe in probes}.values():
                try:
                    for probe in probes:
                        if probe.subject is subject:
                            probe.tell()
                except NoCliffError as error:
                    if tries[id(subject)] == _TRIES:
                        raise LabError(f"{subject.nat}: {subject.state} mappings: {error}") from error
                    tries[id(subject)] += 1
                    subject.cliff = Cliff(*fresh[id(subject)])


@contextlib.contextmanager
def _opened(points: Sequence[tuple[Subject, float]], server: NodeLike, address: str) -> Iterator[list[_Probe]]:
    """A probe for each point, the shortest first, with their sockets."""
    with contextlib.ExitStack() as stack:
        outside: dict[int, socket.socket] = {}
        probes = []
        for number, (subject, idle) in enumerate(sorted(points, key=lambda point: point[1])):
            if id(subject) not in outside:
                outside[id(subject)] = stack.enter_context(_bound(server, address))
            inside = stack.enter_context(_bound(subject.client, subject.address))
            probes.append(_Probe(subject, number, idle, inside, outside[id(subject)]))
        yield probes


def _bound(node: NodeLike, address: str) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.bind((address, 0))
        return made

    return node.call(make)


def _run(probes: Sequence[_Probe]) -> None:
    """All probes through their lives at once. Raises LabError."""
    replied = [probe for probe in probes if probe.subject.state == REPLIED]
    if replied:
        old_enough = time.monotonic() + _STREAM_SECONDS
        while True:
            _reach_server(replied)
            for probe in replied:
                probe.outside.sendto(_name(probe), _public(probe))
            _await({probe.inside: [probe] for probe in replied}, replied, lambda probe, _: True, "the client")
            if (left := old_enough - time.monotonic()) <= 0:
                break
            time.sleep(min(left, _PACE))  # its age is the condition
    _reach_server(probes)
    _ask_after_idleness(probes)


def _reach_server(probes: Sequence[_Probe]) -> None:
    """A datagram of each client, by which the server learns the mapping's public address."""
    by_socket: dict[socket.socket, list[_Probe]] = {}
    for probe in probes:
        by_socket.setdefault(probe.outside, []).append(probe)
        before = time.monotonic()
        probe.inside.sendto(_name(probe), probe.outside.getsockname())
        probe.used = before, time.monotonic()

    def learn(probe: _Probe, source: tuple[str, int]) -> bool:
        if probe.public not in (None, source):
            raise LabError(f"{probe.subject.nat}: a mapping moved from {probe.public} to {source} while it was used")
        probe.public = source
        return True

    _await(by_socket, probes, learn, "the server")


def _await(
    sockets: dict[socket.socket, list[_Probe]],
    probes: Sequence[_Probe],
    take: Callable[[_Probe, tuple[str, int]], bool],
    where: str,
) -> None:
    """Wait until a datagram of each probe has come. Raises LabError."""
    left = {probe.number: probe for probe in probes}
    until = time.monotonic() + _ARRIVAL_SECONDS
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        while left:
            ready = selector.select(max(until - time.monotonic(), 0))
            if not ready:
                probe = next(iter(left.values()))
                raise LabError(f"{probe.subject.nat}: {len(left)} datagrams through new mappings did not reach {where}")
            for key, _ in ready:
                for number, source in _received(key.fileobj):  # type: ignore[arg-type]
                    if number in left and take(left[number], source):
                        del left[number]


def _ask_after_idleness(probes: Sequence[_Probe]) -> None:
    """The server sends to each mapping when its time has come, and those that arrive are noted.

    Where a shorter one is lost, the longer ones of the same subject are not asked.
    """
    due = [(probe.used[1] + probe.idle, probe.number, probe) for probe in probes]
    heapq.heapify(due)
    asked: dict[int, list[_Probe]] = {}
    while due:
        at, _, probe = heapq.heappop(due)
        before = asked.setdefault(id(probe.subject), [])
        if any(_is_lost(one) for one in before):
            continue
        time.sleep(max(at - time.monotonic(), 0))  # idleness is what is measured
        if any(_is_lost(one) for one in before):
            continue
        sent = time.monotonic()
        probe.outside.sendto(_name(probe), _public(probe))
        probe.asked = sent, time.monotonic()
        probe.subject.probes += 1
        before.append(probe)
    last = max(probe.asked[1] for probe in probes if probe.asked is not None)
    time.sleep(max(last + _GRACE - time.monotonic(), 0))
    for probe in probes:
        _look(probe)


def _is_lost(probe: _Probe) -> bool:
    _look(probe)
    return not probe.arrived and probe.asked is not None and time.monotonic() > probe.asked[1] + _GRACE


def _look(probe: _Probe) -> None:
    if probe.asked is not None and not probe.arrived:
        probe.arrived = any(number == probe.number for number, _ in _received(probe.inside))


def _received(reader: socket.socket) -> Iterator[tuple[int, tuple[str, int]]]:
    """Numbers and sources of what has come."""
    while True:
        try:
            data, source = reader.recvfrom(_OCTETS + 1)
        except BlockingIOError:
            return
        if len(data) == _OCTETS:
            yield int.from_bytes(data, "big"), source


def _name(probe: _Probe) -> bytes:
    return probe.number.to_bytes(_OCTETS, "big")


def _public(probe: _Probe) -> tuple[str, int]:
    if probe.public is None:
        raise LabError(f"{probe.subject.nat}: a mapping's public address is not known")
    return probe.public
