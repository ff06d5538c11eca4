"""One candidate in one round: a network of its own, everything measured in it, and down again."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from natbed.checks import Verdict
from natbed.checks.iperf import IperfDied, IperfError, IperfPath
from natbed.judging import Judge
from natbed.lab import Lab, LabError
from natbed.settings import Protection, host_settings
from natbed.stacks.base import Daemon, Stack, StackError
from natbed.topology_files import find
from natbed.tunnels import connect, running
from natbed.turns import alone

from .candidates import Candidate
from .gauges import GaugeError, measure_ping, measure_tcp, measure_udp
from .record import CPU, PING, REPEATED, SINGLES, TCP, TRAINS, UDP, Problem, Sample
from .singles import send_singly

SCENARIO = "A"
UDP_SECONDS = 0.25, 1.0  # of each rung: a quarter of a TCP test's, within these
UDP_START = 700.0  # Mbit/s where a first search begins, if TCP is not slower
UDP_OF_TCP = 0.8  # of what TCP reached, about where UDP may be at most


@dataclass(frozen=True, slots=True)
class Program:
    """What to measure of each candidate."""

    seconds: int = 2  # of each TCP test
    singles: bool = True
    udp: bool = True

    def expected(self, candidate: Candidate) -> list[tuple[str, str]]:
        """The wires and quantities that a round gives when nothing goes wrong."""
        cpu = () if candidate.plain else CPU
        found = [(TRAINS, quantity) for quantity in (*TCP, REPEATED, *((UDP,) if self.udp else ()), PING, *cpu)]
        return found + [(SINGLES, quantity) for quantity in (*TCP, REPEATED, *cpu)] * self.singles


@dataclass
class Visit:
    """A visit to one candidate. `samples` and `problems` say what came of it, however it ended."""

    number: int  # of the round
    candidate: Candidate
    stack: Stack | None
    program: Program
    folder: pathlib.Path  # of the benchmark's evidence
    progress: Callable[[str], None]
    udp_guess: float | None = None  # Mbit/s, of an earlier round
    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def measure(self) -> None:
        """Measure everything. Raises one of the runner's LAB_ERRORS where the lab itself is broken."""
        self.progress("building the network")
        protection = Protection(esp_suite=self.candidate.suite) if self.stack else Protection()
        try:
            with Lab(find(SCENARIO)(clients=1)) as lab:
                judge = Judge(lab, protection, self.program.seconds)
                nats = judge.nats()
                if not nats.passed:
                    raise LabError(f"NAT: {nats.reason}")
                with self._daemons(lab, protection) as daemons:
                    (row,) = judge.rows()
                    path = judge.tunnel_path(row) if daemons else judge.plain_path(row)
                    self._gauge(path, daemons)
                    if self.program.singles:
                        send_singly(lab.nodes)
                        self._tcp(path, daemons, SINGLES)
        except StackError as error:
            self.blame(Verdict.FAILED, str(error))

    def blame(self, verdict: Verdict, reason: str) -> None:
        """Note why something is missing."""
        self.problems.append(Problem(round=self.number, candidate=self.candidate.name, verdict=verdict, reason=reason))

    @contextlib.contextmanager
    def _daemons(self, lab: Lab, protection: Protection) -> Iterator[Mapping[str, Daemon]]:
        """The implementation at both ends, connected; none on the plain path."""
        if self.stack is None:
            yield {}
            return
        self.progress("connecting")
        evidence = self.folder / f"round{self.number}" / re.sub(r"\W+", "-", self.candidate.name)
        with running(self.stack, lab, host_settings(lab.scenario, protection), evidence) as daemons:
            connect(lab.scenario.tunnels(), daemons)
            yield daemons

    def _gauge(self, path: IperfPath, daemons: Mapping[str, Daemon]) -> None:
        tcp = self._tcp(path, daemons, TRAINS)
        self._try("round trip", TRAINS, daemons, lambda: {PING: measure_ping(path)})
        if self.program.udp:
            shortest, longest = UDP_SECONDS
            seconds = min(max(self.program.seconds / 4, shortest), longest)
            start = self.udp_guess or min(UDP_START, UDP_OF_TCP * tcp.get(TCP[0], UDP_START))
            self._try("UDP", TRAINS, daemons, lambda: {UDP: measure_udp(path, seconds, start)})

    def _tcp(self, path: IperfPath, daemons: Mapping[str, Daemon], wire: str) -> dict[str, float]:
        def gauge() -> dict[str, float]:
            ends = [daemons[node.name].pids if daemons else () for node in (path.client, path.server)]
            tcp = measure_tcp(path, self.program.seconds, *ends)
            rates = dict(zip(TCP, (one.megabits_per_second for one in (tcp.forward, tcp.reverse)), strict=True))
            spent = (tcp.client_seconds, tcp.server_seconds) if daemons else ()
            costs = {name: seconds / tcp.gigabytes for name, seconds in zip(CPU, spent, strict=False)}
            return rates | {REPEATED: tcp.repeated} | costs

        return self._try("TCP", wire, daemons, gauge)

    def _try(
        self, what: str, wire: str, daemons: Mapping[str, Daemon], gauge: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """Take samples. What cannot be measured is the lab's fault where there is no implementation on the path, or
        iperf3 itself has ended.

        Raises StackError where a daemon has died, which ends the visit.
        """
        self.progress(f"{what}, {wire}")
        try:
            with alone():
                values = gauge()
        except (IperfError, GaugeError) as error:
            lab = not daemons or isinstance(error, IperfDied)
            self.blame(Verdict.LAB_BROKEN if lab else Verdict.FAILED, f"{what}, {wire}: {error}")
            for daemon in daemons.values():
                daemon.status()
            return {}
        self.samples += [
            Sample(round=self.number, candidate=self.candidate.name, wire=wire, quantity=name, value=value)
            for name, value in values.items()
        ]
        return values
