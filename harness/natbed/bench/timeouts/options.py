"""What a benchmark of timeouts measures, and from which options that makes sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from natbed.stacks.base import Timing

from .pace import Pace, PaceError

QUIET = Timing(keepalive=0, dpd=0, ike_lifetime=86_400, esp_lifetime=28_800)
"""In model seconds: an implementation that says nothing of its own accord while it is measured."""
PARTS = ("lifetime", "survival", "costs", "recovery")
DEFAULT_TIMEOUTS = (3.0, 5.0, 7.0, 10.0)  # seconds, real
KEEPALIVE = 20.0  # seconds, model: RFC 3948's default (4), and espthrunat's
MOST_NATS = 14  # for which the public network has room, beside the server
LONGEST = 3600.0  # seconds, real, of a timeout


class OptionsError(ValueError):
    """Options that make no sense; `option` is the one to blame."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: NATs with these timeouts, in model seconds, at this pace."""

    timeouts: Sequence[float]
    pace: Pace
    parts: Sequence[str] = PARTS
    keepalive: float = KEEPALIVE  # whose costs are computed

    @property
    def real(self) -> list[int]:
        """The timeouts in whole real seconds, each once. Raises PaceError."""
        return sorted({self.pace.timeout(one) for one in self.timeouts})


def plan_of(timeouts: Sequence[float] | None, speed: float, parts: Sequence[str] | None) -> Plan:
    """From the command line; None is the default. Raises OptionsError."""
    if not 1 <= speed < float("inf"):
        raise OptionsError("--speed", f"{speed:g}: it is 1 at least")
    pace = Pace(speed)
    for part in parts or ():
        if part not in PARTS:
            raise OptionsError("--part", f"{part!r}; there are {', '.join(PARTS)}")
    plan = Plan(
        timeouts or [pace.model(one) for one in DEFAULT_TIMEOUTS],
        pace,
        [part for part in PARTS if part in (parts or PARTS)],
    )
    for timeout in plan.timeouts:
        if not pace.real(timeout) <= LONGEST:
            raise OptionsError("--timeout", f"{timeout:g} s: {pace.model(LONGEST):g} s is the most at this speed")
    try:
        real = plan.real
    except PaceError as error:
        raise OptionsError("--speed" if speed > 1 else "--timeout", str(error)) from None
    if len(real) > MOST_NATS:
        raise OptionsError("--timeout", f"{len(real)} of them; {MOST_NATS} are the most that are measured at once")
    try:
        pace.timing(QUIET)
    except PaceError as error:
        raise OptionsError("--speed", str(error)) from None
    return plan
