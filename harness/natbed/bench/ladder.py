"""The highest rate that a path carries: a search on a ladder of rates, each rung a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

LOWEST, HIGHEST, STEP = 10.0, 20_000.0, 1.12  # Mbit/s, and the factor from rung to rung


def _ladder() -> tuple[float, ...]:
    rungs = [LOWEST]
    while rungs[-1] < HIGHEST:
        rungs.append(rungs[-1] * STEP)
    return tuple(float(f"{rung:.3g}") for rung in rungs)


RUNGS = _ladder()


def highest_rung(holds: Callable[[float], bool], start: float, rungs: Sequence[float] = RUNGS) -> int:
    """The index of the highest rung that holds; -1 if none does. Above one that does not hold, none may.

    `start` is a guess of the rate: from there it goes up or down with growing steps, then halves what is left.
    """
    low, high = -1, len(rungs)  # the highest that holds, the lowest that does not
    at = max((n for n, rung in enumerate(rungs) if rung <= start), default=0)
    step = 1
    while high - low > 1:
        if holds(rungs[at]):
            low = at
        else:
            high = at
        if low >= 0 and high < len(rungs):
            at = (low + high) // 2
        else:
            at = min(low + step, high - 1) if low >= 0 else max(high - step, 0)
            step *= 2
    return low
