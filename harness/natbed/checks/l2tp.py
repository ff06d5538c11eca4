"""Does L2TP pass between hosts that protect it in transport mode: control connections of xl2tpd, all clients at once.

"This technique allows L2TP protected by IPSec transport mode [...] to go through existing NATs" (the draft, 1). Both
ends of L2TP use UDP port 1701 (RFC 2661, 8.1), so clients behind one NAT have one address and one port for the server
unless its implementation keeps them apart.

Only control connections are made, no sessions in them: those would start pppd, which needs PPP in the kernel. That a
connection carries more than its own set-up shows in its end, which the client asks for and the server must hear of;
xl2tpd's first Hello would come after 60 seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from natbed.checks import CheckResult, Verdict
from natbed.node_like import NodeLike
from natbed.process import end_processes, find_program

from .transport import HostPair

PROGRAM = "xl2tpd"
PORT = 1701
_ANSWER_SECONDS = 5.0  # until xl2tpd listens, and until it begins what it is told
_POLL = 0.005  # seconds between looks at a log
_ESTABLISHED = re.compile(r"Connection established to ([\d.]+), (\d+)\.  Local: (\d+), Remote: (\d+) ")
_CLOSED = re.compile(r"Connection closed to ([\d.]+), port (\d+) \(.*\), Local: (\d+), Remote: (\d+)$", re.MULTILINE)


class ControlConnection(msgspec.Struct, frozen=True):
    """A control connection as one end knows it: the peer's address and port, its own tunnel ID, and the peer's."""

    address: str
    port: int
    local: int
    remote: int

    def is_other_end_of(self, other: ControlConnection) -> bool:
        """Whether both ends speak of the same one; addresses differ where a NAT is between them."""
        return (self.local, self.remote) == (other.remote, other.local)


class _LabError(Exception):
    """xl2tpd does not run, or does not listen to its commands."""


def missing() -> str:
    """Why this check cannot be made on this machine, or nothing."""
    try:
        find_program(PROGRAM)
    except FileNotFoundError:
        return f"there is no program {PROGRAM}"
    return ""


def check_l2tp(
    pairs: Sequence[HostPair], evidence: Path, runtime: Path, *, name: str = "L2TP", deadline: float = 10.0
) -> CheckResult:
    """Let every pair make a control connection, and end them once all are there, each within `deadline` seconds.

    Logs and configurations go to `evidence`, a folder for each node. `runtime` is a directory for what must not stay;
    its path must be short, since xl2tpd takes no more than 79 octets.

    LAB_BROKEN when xl2tpd does not run on a node. FAILED when a connection is not established at both ends, or the
    server does not hear of its end; and when the server does not see each client as a peer of its own, at the address
    of its NAT.
    """
    if not pairs:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason="there is no pair to check")
    addresses = {pair.client.name: (pair.client, pair.client_address) for pair in pairs}
    addresses |= {pair.server.name: (pair.server, pair.server_address) for pair in pairs}
    connections = [_Connection(pair) for pair in pairs]
    with contextlib.ExitStack() as stack:
        try:
            sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="l2tp-", dir=runtime))
            daemons = {
                one: stack.enter_context(_Xl2tpd(node, address, evidence / one / "l2tp", Path(sockets)))
                for one, (node, address) in addresses.items()
            }
            problem = _problem(connections, daemons, deadline)
            for daemon in daemons.values():
                daemon.must_run()
        except (_LabError, OSError) as error:
            return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason=str(error))
    details = {"connections": [one.facts for one in connections]}
    if problem:
        return CheckResult(name=name, verdict=Verdict.FAILED, reason=problem, details=details)
    seen = ", ".join(f"{one.pair.client.name} seen at {one.seen}" for one in connections)
    plural = "s" * (len(connections) > 1)
    reason = f"{len(connections)} control connection{plural}, established at both ends and ended in order; {seen}"
    return CheckResult(name=name, verdict=Verdict.PASSED, reason=reason, details=details)


def _problem(connections: list[_Connection], daemons: dict[str, _Xl2tpd], deadline: float) -> str:
    """Make the connections, look at them, end them; what was wrong first, or nothing."""

    def look() -> None:
        for one in connections:
            one.look(daemons)

    for one in connections:
        daemons[one.pair.client.name].tell(f"t {one.dialed}", f"Connecting to host {one.dialed}, port {PORT}")
    if not _await(lambda: all(one.there for one in connections), deadline, look):
        return next(one.not_established(daemons, deadline) for one in connections if not one.there)
    for one in connections:
        if one.there and one.there.address != one.pair.seen_address:
            return f"{one}: the server saw it at {one.seen}; expected was {one.pair.seen_address}"
    if len({(one.pair.server.name, one.seen) for one in connections}) < len(connections):
        return f"the server saw two clients as one: {', '.join(f'{one} at {one.seen}' for one in connections)}"
    for one in connections:
        if one.here:
            daemons[one.pair.client.name].tell(f"d {one.here.local}", f"Local: {one.here.local}, ")
    if not _await(lambda: all(one.ended for one in connections), deadline, look):
        late = next(one for one in connections if not one.ended)
        return f"{late}: the server did not hear of its end within {deadline:g} s"
    return ""


class _Connection:
    """The control connection of one pair, by what both ends have said of it so far."""

    def __init__(self, pair: HostPair) -> None:
        self.pair = pair
        self.dialed = pair.dialed or pair.server_address
        self.here: ControlConnection | None = None  # at the client
        self.there: ControlConnection | None = None  # at the server
        self.ended = False

    def __str__(self) -> str:
        return f"{self.pair.client.name} to {self.pair.server.name}"

    @property
    def seen(self) -> str:
        """Where the server saw the client, "203.0.113.2:1701"."""
        return f"{self.there.address}:{self.there.port}" if self.there else "-"

    @property
    def facts(self) -> dict[str, object]:
        """For a result's details."""
        ends = {"at_client": self.here, "at_server": self.there}
        return {"path": str(self), "ended": self.ended, **{end: msgspec.to_builtins(one) for end, one in ends.items()}}

    def look(self, daemons: dict[str, _Xl2tpd]) -> None:
        """Find out whether both ends say that it is established, and the server that the client has ended it."""
        server = daemons[self.pair.server.name]
        if self.here is None:
            found = daemons[self.pair.client.name].established()
            self.here = next((one for one in found if (one.address, one.port) == (self.dialed, PORT)), None)
        if self.there is None:
            self.there = self._other_end(server.established())
        self.ended = self.ended or self._other_end(server.closed()) is not None

    def _other_end(self, found: list[ControlConnection]) -> ControlConnection | None:
        return next((one for one in found if self.here and one.is_other_end_of(self.here)), None)

    def not_established(self, daemons: dict[str, _Xl2tpd], deadline: float) -> str:
        """Which end has no connection, and what its xl2tpd said last."""
        end = self.pair.server.name if self.here else self.pair.client.name
        said = daemons[end].last_words
        return f"{self}: no control connection at {end} within {deadline:g} s; {PROGRAM} there said last: {said}"


class _Xl2tpd:
    """xl2tpd on one node, listening on one address for as long as the block lasts."""

    def __init__(self, node: NodeLike, address: str, folder: Path, sockets: Path) -> None:
        self._node = node
        self._address = address
        self._folder = folder
        self._control = sockets / f"{node.name}.control"
        self._pid = sockets / f"{node.name}.pid"
        self._log = folder / "xl2tpd.log"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        # In user space everywhere, so that a kernel with L2TP gives no other result.
        general = f"[global]\nlisten-addr = {self._address}\nport = {PORT}\nforce userspace = yes\ndebug state = yes\n"
        (self._folder / "xl2tpd.conf").write_text(f"{general}\n[lns default]\nassign ip = no\n")
        (self._folder / "secrets").touch()
        command = [PROGRAM, "-D", "-c", "xl2tpd.conf", "-s", "secrets", "-p", str(self._pid), "-C", str(self._control)]
        with self._log.open("wb") as log:
            # there, so that the evidence's paths are short too
            self._process = self._node.popen(command, cwd=self._folder, stdout=log, stderr=log)
        try:
            self._await(lambda: "Listening on IP address" in self._said and self._control.is_fifo(), "does not listen")
            # Read from here too, so that nothing is lost while it closes the pipe and opens it anew, as it does after
            # each command. Its reads wait for as long as there is a writer.
            self._pipe = os.open(self._control, os.O_RDONLY | os.O_NONBLOCK)
        except BaseException:
            end_processes([self._process])
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._pipe)
        end_processes([self._process])

    @property
    def _said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def last_words(self) -> str:
        """The last line that it logged, without its own name and process number."""
        lines: list[str] = re.findall(r"^xl2tpd\[\d+\]: (.+)$", self._said, re.MULTILINE)
        return lines[-1] if lines else "nothing"

    def established(self) -> list[ControlConnection]:
        """What it says to be established, or to have been."""
        return _listed(_ESTABLISHED, self._said)

    def closed(self) -> list[ControlConnection]:
        """What its peers have ended."""
        return _listed(_CLOSED, self._said)

    def tell(self, command: str, answer: str) -> None:
        """Give a command and wait until the log has the answer: two commands at once it would take for one.

        Raises `_LabError`.
        """
        told = self._said.count(answer)
        self._control.write_text(f"{command}\n")
        self._await(lambda: self._said.count(answer) > told, f"does not follow the command {command!r}")

    def must_run(self) -> None:
        """Raises `_LabError` if it has ended."""
        if self._process.poll() is not None:
            raise _LabError(f"{PROGRAM} on {self._node.name} has ended; its last words: {self.last_words}")

    def _await(self, condition: Callable[[], bool], complaint: str) -> None:
        def met() -> bool:
            self.must_run()
            return condition()

        if not _await(met, _ANSWER_SECONDS):
            raise _LabError(f"{PROGRAM} on {self._node.name} {complaint}; its last words: {self.last_words}")


def _listed(pattern: re.Pattern[str], log: str) -> list[ControlConnection]:
    found = pattern.findall(log)
    return [ControlConnection(host, int(port), int(local), int(remote)) for host, port, local, remote in found]


def _await(condition: Callable[[], bool], seconds: float, look: Callable[[], None] = lambda: None) -> bool:
    """Whether a condition is met in time; `look` before each time that it is asked."""
    until = time.monotonic() + seconds
    while True:
        look()
        if condition():
            return True
        if time.monotonic() > until:
            return False
        time.sleep(_POLL)
