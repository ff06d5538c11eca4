"""How a run is told what to do: what may be varied about it, and what follows from that for its timing."""

from __future__ import annotations

import dataclasses
import pathlib
from dataclasses import dataclass, field

from .checks.idle import KEEPALIVE
from .checks.recovery import WITHIN
from .nat import presets
from .nat.profile import NatProfile
from .passing_through import IKE_TRIES
from .results import baseline, store
from .settings import Protection
from .stacks.base import Timing

FAULT_DPD = 1.0  # seconds of silence after which peers are asked, where a fault is to come


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What may be varied about a run."""

    clients: int = 2
    nat: NatProfile = presets.MASQUERADE
    protection: Protection = field(default_factory=Protection)
    seconds: int = 2  # of each iperf3 measurement; 0 leaves throughput out
    results: pathlib.Path = field(default_factory=store.default_folder)
    rekey: str = "none"  # who replaces SAs under traffic: initiator, responder, both
    timing: Timing = field(default_factory=Timing)
    baseline: pathlib.Path | None = field(default_factory=baseline.default_file)  # None: no figures to compare with
    idle: bool = True  # where SAs are rekeyed, also after nothing has passed for longer than NATs remember
    fault: str = ""  # happens at the end, under traffic; as the command line has it
    within: float = WITHIN  # seconds in which traffic must come back then
    anew: bool = False  # tunnels are begun anew for a fault, so that nothing need be left out before it
    impairment: str = ""  # of the first tunnel's way, while all are begun anew at the end; as the shell has it

    @property
    def timing_anew(self) -> Timing:
        """Of initiators that are begun anew for what goes wrong: as before a fault."""
        return self.before_a_fault().timing

    @property
    def idles(self) -> bool:
        """Whether tunnels are left idle."""
        return self.idle and self.rekey != "none"

    @property
    def usual_timing(self) -> Timing:
        """From the start: keepalives so often that the idle check need not wait long, and nothing else of its own."""
        given = self.timing
        if not self.idles:
            return given
        return dataclasses.replace(
            given,
            keepalive=KEEPALIVE if given.keepalive is None else given.keepalive,
            dpd=0 if given.dpd is None else given.dpd,
        )

    def before_a_fault(self) -> RunOptions:
        """Not idle, and peers are asked so often that recovery need not be waited for long."""
        dpd = FAULT_DPD if self.timing.dpd is None else self.timing.dpd
        return dataclasses.replace(self, idle=False, timing=dataclasses.replace(self.timing, dpd=dpd))

    def behind_a_quirk(self) -> RunOptions:
        """What is never answered is given up so soon that nobody need wait for it long."""
        tries = IKE_TRIES if self.timing.ike_tries is None else self.timing.ike_tries
        return dataclasses.replace(self, timing=dataclasses.replace(self.timing, ike_tries=tries))
