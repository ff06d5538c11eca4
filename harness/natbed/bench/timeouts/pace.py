"""Model seconds and real ones: one factor shortens timeouts, keepalives, lifetimes and waits together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from natbed.stacks.base import Timing

SHORTEST_TIMEOUT = 1  # seconds: conntrack's are whole ones
SHORTEST_LIFETIMES = {"ike_lifetime": 60, "esp_lifetime": 30}  # seconds, real: what implementations take
_INTERVALS = ("dpd", "keepalive", "keepalive_tail", "rekey_overlap")  # may be fractions of a second


class PaceError(ValueError):
    """Something cannot be had at this speed; the message says what, in one line."""


@dataclass(frozen=True, slots=True)
class Pace:
    """`speed` model seconds pass in each real one."""

    speed: float = 1.0

    def real(self, model: float) -> float:
        """Real seconds for model ones."""
        return model / self.speed

    def model(self, real: float) -> float:
        """Model seconds for real ones."""
        return real * self.speed

    @property
    def step(self) -> float:
        """How far apart the timeouts are that a NAT can have here, in model seconds."""
        return self.model(SHORTEST_TIMEOUT)

    def timeout(self, model: float) -> int:
        """The real seconds, whole ones, that stand for a NAT's timeout of `model` seconds.

        Raises PaceError where that would be less than one.
        """
        real = self.real(model)
        if real < SHORTEST_TIMEOUT:
            raise PaceError(
                f"at speed {self.speed:g} a timeout of {model:g} s is {real:.2g} real seconds; a NAT's timeouts are "
                f"whole ones, 1 at least: {self.step:g} s here"
            )
        return max(int(real + 0.5), SHORTEST_TIMEOUT)

    def rounded(self, model: Sequence[float]) -> dict[float, float]:
        """Of those timeouts the ones that cannot be had as they are, and what stands for them, in model seconds."""
        had = {one: self.model(self.timeout(one)) for one in model}
        return {asked: found for asked, found in had.items() if abs(asked - found) > 1e-6 * asked}

    def timing(self, model: Timing) -> Timing:
        """An implementation's timing for one in model seconds; what it leaves to the implementation stays so.

        Raises PaceError where a lifetime would be shorter than implementations take.
        """
        scaled: dict[str, float | int] = {}
        for name in _INTERVALS:
            value = getattr(model, name)
            if value is not None:
                scaled[name] = self.real(value)
        for name, shortest in SHORTEST_LIFETIMES.items():
            value = getattr(model, name)
            if value is None:
                continue
            if self.real(value) < shortest:
                raise PaceError(
                    f"at speed {self.speed:g} an {name} of {value} s is {self.real(value):.2g} real seconds; "
                    f"implementations take {shortest} at least"
                )
            scaled[name] = int(self.real(value) + 0.5)
        return dataclasses.replace(model, **scaled)  # type: ignore[arg-type]
