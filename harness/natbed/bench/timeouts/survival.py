"""What a tunnel survives: left idle behind a NAT that forgets, can its server's side still use it?

Many tunnels are idle side by side, each for a time of its own. Without keepalives the idle time is what is bisected;
with them, the interval: each tunnel lets one keepalive pass, and is used when the next one would be sent. That one and
all later ones are then held back, or it would open the NAT again while the server's side still tries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from natbed.capture import Capture
from natbed.judging import Judge
from natbed.lab import Lab, LabError
from natbed.nat import presets, rules
from natbed.settings import Protection, host_settings
from natbed.stacks.base import Daemon, Stack, StackError, Timing
from natbed.tunnels import connect, running

from .cliff import Cliff, NoCliffError
from .network import NatsSideBySide
from .options import QUIET
from .pace import Pace
from .record import KEPT, SILENT, Trial
from .traffic import Listener, Talk
from .watch import KEEPALIVE, Packet, of, packets

WIDTH = 4  # tunnels of a round, of each front
MOST_ROUNDS = 6
_PASSED_SECONDS = 5.0  # for a rekey where data has passed, real
_LOST_SECONDS = 1.2  # where it has not: the first message and one repetition
_LATE = 0.5  # seconds, real, by which something may be late before a trial says nothing
_KEEPALIVES_ONLY = ["-p", "udp", "--dport", "500", "-m", "length", "--length", "29"]


class SurvivalError(Exception):
    """The implementation did what no NAT explains; the message says what, in one line."""


@dataclass
class Front:
    """A cliff to find: of a NAT's timeout, in whole real seconds, and with keepalives or without. Real seconds."""

    timeout: int
    kind: str
    cliff: Cliff
    trials: int = 0
    searches: int = 1


@dataclass(frozen=True, slots=True)
class _Plan:
    """One tunnel's trial; `at` is the idle time, or the interval of its keepalives."""

    front: Front
    at: float
    client: str
    nat: str

    @property
    def keepalive(self) -> float:
        return self.at if self.front.kind == KEPT else 0.0

    @property
    def idle(self) -> float:
        return self.at * 2 if self.front.kind == KEPT else self.at


@dataclass(frozen=True, slots=True)
class _Outcome:
    """When the tunnel was last used and then tried, in seconds since the epoch, and what came of it."""

    begin: float
    asked: float
    data: bool
    rekey: bool


class SurvivalBench:
    """Bisects all fronts at once; `trials` are those made until now."""

    def __init__(self, pace: Pace, stack: Stack, folder: pathlib.Path, progress: Callable[[str], None]) -> None:
        self.trials: list[Trial] = []
        self._pace = pace
        self._stack = stack
        self._folder = folder
        self._progress = progress

    def find(self, fronts: Sequence[Front]) -> None:
        """Round by round. Raises LabError, StackError and SurvivalError, and what the parts of a lab raise."""
        fresh = {id(one): (one.cliff.limit, one.cliff.resolution, one.cliff.width) for one in fronts}
        for number in itertools.count(1):
            points = [(one, at) for one in fronts for at in one.cliff.points()]
            if not points:
                return
            if number > MOST_ROUNDS:
                raise LabError(f"no cliff after {MOST_ROUNDS} rounds: the machine is too busy to be on time")
            anew: list[Front] = []
            for plan, trial in self._round(number, points):
                self.trials.append(trial)
                plan.front.trials += 1
                if trial.void or plan.front in anew:
                    continue
                if trial.data != trial.rekey:
                    raise SurvivalError(_odd(trial))
                try:
                    _tell(plan.front.cliff, self._pace.real(trial.silence), held=trial.data)
                except NoCliffError as error:
                    if plan.front.searches > 1:
                        raise SurvivalError(f"timeout {plan.front.timeout} s, {plan.front.kind}: {error}") from error
                    plan.front.searches += 1
                    plan.front.cliff = Cliff(*fresh[id(plan.front)])
                    anew.append(plan.front)

    def _round(self, number: int, points: Sequence[tuple[Front, float]]) -> list[tuple[_Plan, Trial]]:
        timeouts = sorted({front.timeout for front, _ in points})
        ordered = sorted(points, key=lambda point: (point[0].timeout, point[0].kind, point[1]))
        plans = [
            _Plan(front, at, f"client{place}", f"nat{timeouts.index(front.timeout) + 1}")
            for place, (front, at) in enumerate(ordered, start=1)
        ]
        counts = [sum(plan.front.timeout == timeout for plan in plans) for timeout in timeouts]
        scenario = NatsSideBySide(nats=[presets.MASQUERADE] * len(timeouts), clients=counts)
        folder = self._folder / f"survival{number}"
        longest = max(plan.idle for plan in plans)
        say = f"survival, round {number}: {len(plans)} tunnels"
        self._progress(f"{say}: building the network")
        with Lab(scenario) as lab:
            nats = Judge(lab, Protection(), 0).nats()
            if not nats.passed:
                raise LabError(f"NAT: {nats.reason}")
            settings = {
                name: dataclasses.replace(one, timing=self._timing(name, plans))
                for name, one in host_settings(scenario, Protection()).items()
            }
            self._progress(f"{say}: connecting")
            with running(self._stack, lab, settings, folder) as daemons:
                connect(scenario.tunnels(), daemons)
                captures = {nat.name: folder / f"{nat.name}-inside.pcap" for nat in lab.nats}
                with contextlib.ExitStack() as watching:
                    for nat in lab.nats:
                        watching.enter_context(Capture(nat, nat.lan, captures[nat.name]))
                    for nat, timeout in zip(lab.nats, timeouts, strict=True):
                        nat.sysctl(rules.timeouts(timeout, timeout))
                    self._progress(f"{say}: idle for up to {longest:.1f} s")
                    outcomes = self._undergo(lab, plans, daemons["server"])
        seen = {name: packets(pcap) for name, pcap in captures.items()}
        return [
            (plan, self._trial(number, plan, outcome, of(scenario.hosts_planned[plan.client].address, seen[plan.nat])))
            for plan, outcome in zip(plans, outcomes, strict=True)
        ]

    def _timing(self, host: str, plans: Sequence[_Plan]) -> Timing:
        keepalive = next((plan.keepalive for plan in plans if plan.client == host), 0.0)
        return self._pace.timing(dataclasses.replace(QUIET, keepalive=self._pace.model(keepalive)))

    def _undergo(self, lab: Lab, plans: Sequence[_Plan], responder: Daemon) -> list[_Outcome]:
        """All trials at once."""
        scenario = lab.scenario
        talk = {one.client: one for one in scenario.conversations("tunnel")}
        with ThreadPoolExecutor(len(plans), thread_name_prefix="survival") as pool:
            given_up = threading.Event()
            waiting = []
            for plan in plans:
                one = talk[plan.client]
                ends = Talk(lab[plan.client], one.client_address, lab["server"], one.server_address)
                waiting.append(pool.submit(_try, plan, ends, one.tunnel, responder, given_up))
            try:
                return [future.result() for future in waiting]
            except BaseException:
                given_up.set()
                raise

    def _trial(self, number: int, plan: _Plan, outcome: _Outcome, passed: Sequence[Packet]) -> Trial:
        silence, void = judge_silence(plan.at, plan.front.kind, outcome.begin, outcome.asked, passed)
        return Trial(
            round=number,
            client=plan.client,
            kind=plan.front.kind,
            timeout=self._pace.model(plan.front.timeout),
            keepalive=self._pace.model(plan.keepalive),
            idle=self._pace.model(plan.idle),
            silence=self._pace.model(silence),
            data=outcome.data,
            rekey=outcome.rekey,
            void=void,
        )


def _try(plan: _Plan, ends: Talk, tunnel: str, responder: Daemon, given_up: threading.Event) -> _Outcome:
    """Use the tunnel, leave it idle, and let its server's side use it. Raises StackError, LabError."""
    with Listener(ends) as listener:
        listener.knock()
        begin, started = time.time(), time.monotonic()
        if plan.front.kind == KEPT:
            _stay_idle(started + plan.at * 1.5, given_up)  # one keepalive is to pass, and no more
            ends.client.run(["iptables", "-A", "OUTPUT", *_KEEPALIVES_ONLY, "-j", "DROP"])
        _stay_idle(started + plan.idle, given_up)
        asked = time.time()
        data = listener.answer()
    try:
        responder.rekey(tunnel, False, _PASSED_SECONDS if data else _LOST_SECONDS)
    except StackError:
        responder.status()  # one that has died is no rekey that failed
        return _Outcome(begin, asked, data, rekey=False)
    return _Outcome(begin, asked, data, rekey=True)


def _stay_idle(until: float, given_up: threading.Event) -> None:
    """Idleness is what is measured. Raises StackError where another trial, or the user, has ended it all."""
    if given_up.wait(max(until - time.monotonic(), 0)):
        raise StackError("given up")


def judge_silence(at: float, kind: str, begin: float, asked: float, passed: Sequence[Packet]) -> tuple[float, str]:
    """The longest silence until the trial, in real seconds, by what passed the NAT; and why the trial says nothing.

    `at` is the silence that was planned: the idle time, or the interval of the keepalives.
    """
    before = [packet for packet in passed if packet.seconds <= begin]
    between = [packet for packet in passed if begin < packet.seconds < asked]
    if not before:
        return 0.0, "nothing had passed the NAT"
    times = [before[-1].seconds, *(packet.seconds for packet in between), asked]
    silence = max(later - earlier for earlier, later in itertools.pairwise(times))
    kinds = [packet.kind for packet in between]
    if others := sorted({one for one in kinds if one != KEEPALIVE}):
        return silence, f"not idle: {', '.join(others)} passed"
    if len(kinds) != (kind == KEPT):
        return silence, f"{len(kinds)} keepalives passed"
    if abs(silence - at) > _LATE:
        return silence, f"a silence of {silence:.2f} s, where one of {at:.2f} s was planned"
    return silence, ""


def _tell(cliff: Cliff, at: float, *, held: bool) -> None:
    if held:
        cliff.held(at)
    else:
        cliff.lost(at)


def _odd(trial: Trial) -> str:
    passed, not_passed = ("data", "a rekey") if trial.data else ("a rekey", "data")
    return (
        f"timeout {trial.timeout:g} s, {trial.kind}, silence {trial.silence:.1f} s: "
        f"{passed} of the server's side passed, {not_passed} did not"
    )


def fronts(timeouts: Sequence[int], limit: float, resolution: float, width: int = WIDTH) -> list[Front]:
    """Those of NATs with these timeouts, in whole real seconds."""
    kinds = (SILENT, KEPT)
    return [Front(timeout, kind, Cliff(limit, resolution, width)) for timeout in timeouts for kind in kinds]
