"""How long traffic stays away after a fault, by who sends and by what the ends' policy says of a peer that moves.

Every fault has a tunnel behind a NAT of its own, for each policy, and all happen at once: streams of one direction go
through the tunnels meanwhile. In a tunnel whose server sends, the client says nothing but what its implementation says
by itself: keepalives, and questions of dead peer detection (the draft, 5: who starts anew is the initiator).
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from natbed.checks.flows import FlowError
from natbed.checks.flows import LabError as FlowLabError
from natbed.checks.recovery import away_seconds, settled
from natbed.checks.sa_pairs import RekeyTarget
from natbed.checks.streams import Stream, judge_stream
from natbed.checks.tunnel_streams import begin, tunnel_streams
from natbed.conntrack import Mapping
from natbed.faults.base import FaultError, FaultRecord, Scene
from natbed.judging import Judge
from natbed.lab import Lab, LabError
from natbed.settings import Protection, host_settings
from natbed.stacks.base import Daemons, Stack, StackError
from natbed.tunnels import connect, running

from .options import QUIET
from .pace import Pace
from .record import POLICIES, SENDERS, STRICT, Outage, Recovery
from .upsets import FAULTS, NatsToUpset, server_of, tunnel_mapping, upset

# Seconds, real. Intervals have the proportion of espthrunat's own, which are ten times as long.
DPD, KEEPALIVE = 3.0, 2.0
WITHIN = 12.0  # in which traffic must come back to be measured: four questions' time
RATE = 100  # datagrams a second and stream: what else is measured shares the processors
_STEADY = RATE // 2  # that must come without a gap before traffic is believed to flow again
_GRACE = 1.0  # seconds for the last of them
_POLL = 0.01  # seconds between looks at what has arrived


class RecoveryBench:
    """Strikes round by round; `outages` are those measured until now."""

    def __init__(
        self,
        pace: Pace,
        stack: Stack,
        folder: pathlib.Path,
        progress: Callable[[str], None],
        *,
        within: float = WITHIN,
        dpd: float = DPD,
        senders: Sequence[str] = SENDERS,
    ) -> None:
        """`within` and `dpd` are real seconds."""
        self.outages: list[Outage] = []
        self._pace = pace
        self._stack = stack
        self._folder = folder / "recovery"
        self._progress = progress
        self._within = within
        self._dpd = dpd
        self._senders = senders

    def recovery(self) -> Recovery:
        """What was measured, and under which conditions; in model seconds."""
        model = self._pace.model
        return Recovery(
            dpd=model(self._dpd),
            keepalive=model(KEEPALIVE),
            within=model(self._within),
            interval=model(1 / RATE),
            outages=list(self.outages),
        )

    def measure(self, rounds: int, faults: Sequence[str] = FAULTS) -> None:
        """Each fault so often for each policy and sender. Raises LabError, StackError, and what faults raise."""
        scenario = NatsToUpset(faults=faults)
        self._progress("recovery: building the network")
        with Lab(scenario) as lab:
            nats = Judge(lab, Protection(), 0).nats()
            if not nats.passed:
                raise LabError(f"NAT: {nats.reason}")
            timing = dataclasses.replace(QUIET, dpd=self._pace.model(self._dpd), keepalive=self._pace.model(KEEPALIVE))
            follows = {host: policy for host, (_, policy) in scenario.cells.items()}
            follows.update({server_of(policy): policy for policy in POLICIES})
            settings = {
                name: dataclasses.replace(
                    one, timing=dataclasses.replace(one.timing, rebinding=_setting(follows[name]))
                )
                for name, one in host_settings(scenario, Protection(), self._pace.timing(timing)).items()
            }
            self._progress(f"recovery: connecting {len(scenario.cells)} tunnels")
            with running(self._stack, lab, settings, self._folder) as daemons:
                connect(scenario.tunnels(), daemons)
                cells = _cells(lab, scenario, daemons)
                for sender in self._senders:  # what does not come back for one is not measured for the next
                    for number in range(1, rounds + 1):
                        self._progress(f"recovery, round {number}: {len(cells)} faults at once, the {sender} sends")
                        # Rounds are alike, and so would be the times from the last question to the fault.
                        later = self._dpd * (number - 1) / rounds
                        cells = self._round(Scene(lab, daemons), cells, sender, number, later)

    def _round(self, scene: Scene, cells: Sequence[_Cell], sender: str, number: int, later: float) -> list[_Cell]:
        """Strike all cells at once, so many seconds later; those whose traffic came back, which can be struck again."""
        if not cells:
            return []
        try:
            with tunnel_streams([cell.target for cell in cells], one_flow=False, persistent=True, rate=RATE) as opened:
                streams = opened[SENDERS.index(sender) :: len(SENDERS)]
                begin(streams, one_flow=False, lead=_STEADY)
                time.sleep(later)
                before = [cell.mapping(scene) for cell in cells]
                with ThreadPoolExecutor(len(cells), thread_name_prefix="fault") as pool:
                    struck = list(pool.map(lambda cell: cell.strike(scene), cells))
                _await_steady(streams, [one.ended + self._within for one in struck])
                after = [cell.mapping(scene) for cell in cells]
        except FlowLabError as error:
            raise LabError(str(error)) from error
        except FlowError as error:
            raise StackError(f"before anything happened: {error}") from error
        back = []
        for cell, stream, record, old, new in zip(cells, streams, struck, before, after, strict=True):
            if old is None:
                raise FaultError(f"{cell.nat}: a tunnel that carries traffic has no mapping")
            upset(cell.fault).check_move(cell.nat, old, new)
            outage = self._outage(cell, stream, record, sender, number, [old, new])
            self.outages.append(outage)
            if outage.away is not None:
                back.append(cell)
        return back

    def _outage(
        self,
        cell: _Cell,
        stream: Stream,
        record: FaultRecord,
        sender: str,
        number: int,
        mappings: Sequence[Mapping | None],
    ) -> Outage:
        received = judge_stream(stream.name, stream.sent, stream.arrivals)
        if received.doubled or received.foreign:
            raise StackError(f"{stream.name}, {cell.fault}: {received.doubled} datagrams came twice")
        away = away_seconds(stream.sent, stream.arrivals, record.ended)
        model = self._pace.model
        return Outage(
            fault=cell.fault,
            policy=cell.policy,
            sender=sender,
            round=number,
            client=cell.target.client.name,
            happened=record.happened,
            lasted=model(record.ended - record.began),
            away=None if away is None or away > self._within else model(away),
            lost=received.lost,
            sent=received.sent,
            mappings=[f"{one.public[0]}:{one.public[1]}" for one in mappings if one is not None],
        )


@dataclass(frozen=True, slots=True)
class _Cell:
    """One tunnel, and what is done to it."""

    target: RekeyTarget
    fault: str
    policy: str
    nat: str

    def mapping(self, scene: Scene) -> Mapping | None:
        return tunnel_mapping(scene.lab.nat(self.nat), self.target.client_address)

    def strike(self, scene: Scene) -> FaultRecord:
        scenario = scene.lab.scenario
        assert isinstance(scenario, NatsToUpset)
        record = scenario.fault_of(self.target.client.name).strike(scene)
        assert isinstance(record, FaultRecord)
        return record


def _cells(lab: Lab, scenario: NatsToUpset, daemons: Daemons) -> list[_Cell]:
    cells = []
    for one in scenario.conversations("tunnel"):
        ends = lab[one.client], lab[one.server], one.client_address, one.server_address
        target = RekeyTarget(one.tunnel, *ends, daemons[one.client], daemons[one.server])
        cells.append(_Cell(target, *scenario.cells[one.client], scenario.routers_before(one.client)[0].name))
    return cells


def _setting(policy: str) -> str:
    return "never" if policy == STRICT else policy


def _await_steady(streams: Sequence[Stream], until: Sequence[float]) -> None:
    """Wait until each flows without a gap, or its time is up."""
    sent = [stream.sent for stream in streams]
    waiting = list(zip(streams, sent, until, strict=True))
    while waiting:
        now = time.monotonic() - _STEADY / RATE - _GRACE
        waiting = [
            (stream, number, end)
            for stream, number, end in waiting
            if now < end and not settled(stream.arrivals, number, _STEADY)
        ]
        time.sleep(_POLL)
