"""How fast TCP runs through a tunnel, set against the plain path beside it and against what is usual there.

The plain path is the lab's own measure: if iperf3 cannot run there, the lab is broken; on the tunnel's path it is the
implementation that failed, unless it was iperf3 that died.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from natbed.checks import CheckResult, Verdict
from natbed.checks.iperf import IperfDied, IperfError, IperfPath, PathRates, Rate, measure_path

ATTEMPTS = 3
"""How often a ratio below its floor is measured before that counts: something else may have taken the processors."""
TOLERANCE = 1 / 3
"""What share of the usual ratio's lower quartile is the floor: a tunnel three times slower than usual is noticed."""
DIRECTIONS = ("forward", "reverse")


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Some samples of one figure: their median, their lower and upper quartile, and how many there were."""

    low: float
    median: float
    high: float
    samples: int


class UsualRatio(msgspec.Struct, frozen=True, kw_only=True):
    """How tunnel and plain path usually compare: tunnel / plain, in each direction."""

    forward: Spread
    reverse: Spread

    @property
    def floor(self) -> dict[str, float]:
        """By direction: what no tunnel may fall below."""
        return {"forward": TOLERANCE * self.forward.low, "reverse": TOLERANCE * self.reverse.low}

    def allows(self, ratio: dict[str, float]) -> bool:
        """Whether both directions reach the floor."""
        return all(ratio[way] >= floor for way, floor in self.floor.items())

    def exceeded_by(self, ratio: dict[str, float]) -> bool:
        """Whether both are so fast that the figures describe another implementation."""
        return all(ratio[way] * TOLERANCE > getattr(self, way).high for way in DIRECTIONS)

    def share(self, ratio: dict[str, float]) -> str:
        """For people: of the usual ratio, in both directions."""
        return " / ".join(f"{ratio[way] / getattr(self, way).median:.0%}" for way in DIRECTIONS)


def measure(
    tunnel: IperfPath,
    plain: IperfPath | PathRates,
    *,
    name: str = "throughput",
    duration: int = 2,
    usual: UsualRatio | str = "",
    alone: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    undisturbed: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> CheckResult:
    """Measure both paths and set the tunnel against the plain one; `plain` may have been measured before.

    `details` hold the rates, `ratio` (tunnel / plain) of each direction, and how many `attempts` there were.
    LAB_BROKEN when the plain path cannot be measured or iperf3 dies; FAILED when the tunnel cannot, or when its ratio
    stays below the floor of `usual`: of several attempts the best rates of either path count. Without a usual ratio,
    `usual` says why there is none, and every ratio will do. Each attempt is made inside `alone()`, all but the first
    inside `undisturbed()` too.
    """
    reference: PathRates | None = None
    rates: PathRates | None = None
    details: dict[str, Any] = {}
    ratio: dict[str, float] = {}

    def result(verdict: Verdict, reason: str) -> CheckResult:
        return CheckResult(name=name, verdict=verdict, reason=reason, details=details)

    with contextlib.ExitStack() as stack:
        for attempt in range(1, ATTEMPTS + 1):
            details["attempts"] = attempt
            if attempt == 2:
                stack.enter_context(undisturbed())
            with alone():
                try:
                    again = plain if isinstance(plain, PathRates) else measure_path(plain, duration=duration)
                except IperfError as error:
                    return result(Verdict.LAB_BROKEN, f"plain path: {error}")
                reference = _best(reference, again)
                details["plain"] = msgspec.to_builtins(reference)
                try:
                    rates = _best(rates, measure_path(tunnel, duration=duration))
                except IperfDied as error:
                    return result(Verdict.LAB_BROKEN, f"tunnel: {error}")
                except IperfError as error:
                    return result(Verdict.FAILED, f"tunnel: {error}")
            ratio = {way: round(_rate(rates, way) / _rate(reference, way), 4) for way in DIRECTIONS}
            details |= {"tunnel": msgspec.to_builtins(rates), "ratio": ratio}
            if isinstance(usual, str) or usual.allows(ratio):
                break
    found = f"tunnel {_both(details['tunnel'])}, plain {_both(details['plain'])}"
    if isinstance(usual, str):
        return result(Verdict.PASSED, f"{found}; {usual}" if usual else found)
    details |= {"usual": msgspec.to_builtins(usual), "floor": {way: round(it, 5) for way, it in usual.floor.items()}}
    found += f"; their ratio is {usual.share(ratio)} of the baseline's"
    if not usual.allows(ratio):
        return result(Verdict.FAILED, f"{found}, below {TOLERANCE:.0%} of it in {ATTEMPTS} attempts")
    if usual.exceeded_by(ratio):
        found += ": faster than it knows, `natbed baseline` renews it"
    return result(Verdict.PASSED, found)


def _best(one: PathRates | None, other: PathRates) -> PathRates:
    """The faster of two measurements, direction by direction."""
    if one is None:
        return other
    return PathRates(
        forward=max(one.forward, other.forward, key=_speed), reverse=max(one.reverse, other.reverse, key=_speed)
    )


def _speed(rate: Rate) -> float:
    return rate.megabits_per_second


def _rate(rates: PathRates, way: str) -> float:
    return _speed(rates.forward if way == "forward" else rates.reverse)


def _both(rates: dict[str, Any]) -> str:
    return " / ".join(f"{rates[way]['megabits_per_second']:.0f}" for way in DIRECTIONS) + " Mbit/s"
