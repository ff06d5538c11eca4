"""Several faults in a row, each at its time: what a scenario's `timeline` says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from .base import Fault, FaultError, FaultRecord, Moment, Scene


@dataclass(frozen=True, slots=True)
class At:
    """A fault, so many seconds after the timeline began."""

    seconds: float
    fault: Fault


def at(seconds: float, fault: Fault) -> At:
    """`at(5.0, NatReboot("nat"))`: the fault, 5 s after traffic has begun. Raises ValueError."""
    if seconds < 0:
        raise ValueError(f"at {seconds} s: before the beginning")
    return At(seconds, fault)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Faults in the order of their times."""

    steps: tuple[At, ...]
    late: float = 0.5  # seconds by which one may begin late

    def strike(self, scene: Scene) -> FaultRecord:
        """Let each happen at its time. Raises `FaultError` where one began late: the one before took too long."""
        moment = Moment()
        records: list[FaultRecord] = []
        for step in in_order(self.steps):
            due = moment.began + step.seconds
            time.sleep(max(due - time.monotonic(), 0))
            record = step.fault.strike(scene)
            if record.began - due > self.late:
                raise FaultError(f"{record.happened} {record.began - due:.1f} s later than at {step.seconds:g} s")
            records.append(record)
        return moment.record(
            self,
            ", then ".join(record.happened for record in records),
            steps=[
                {"planned": step.seconds, "seconds": round(one.began - moment.began, 3), **msgspec.to_builtins(one)}
                for step, one in zip(in_order(self.steps), records, strict=True)
            ],
        )


def in_order(steps: Sequence[At]) -> list[At]:
    """By their times."""
    return sorted(steps, key=lambda step: step.seconds)
