"""A cell of the matrix: one value of each axis, the name that these give it, and how a run is told."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass, fields

from .nat.passthrough_presets import PASSTHROUGH
from .nat.presets import PRESETS
from .nat.profile import NatProfile
from .run_options import RunOptions
from .settings import Protection

NO_FAULT, UNIMPAIRED = "no-fault", "unimpaired"
"""The values of these axes for which a cell's name has no word."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of each axis: one way to run a scenario."""

    scenario: str
    mode: str
    esp: str
    phase1: str
    clients: int
    nat: str
    rekey: str
    fault: str = NO_FAULT
    impairment: str = UNIMPAIRED

    @property
    def values(self) -> tuple[str, ...]:
        """As words, in the order of the axes."""
        return tuple(str(getattr(self, name)) for name in _NAMES)

    @property
    def ordinary(self) -> list[tuple[str, object]]:
        """The axes by their names, and its values, but for what goes wrong."""
        return [(name, getattr(self, name)) for name in _ORDINARY]

    @property
    def id(self) -> str:
        """Its name, the same in every matrix: A-tunnel-aes128gcm16-main-psk-2-masquerade-both-reboot."""
        return "-".join(value for value in self.values if value not in (NO_FAULT, UNIMPAIRED))

    def options(self, seconds: int, results: pathlib.Path) -> RunOptions:
        """How `natbed.runner.Run` is told; `seconds` is the length of each iperf3 measurement."""
        exchange, _, authentication = self.phase1.partition("-")
        return RunOptions(
            clients=self.clients,
            nat=profile_of(self.nat),
            protection=Protection(esp_suite=self.esp, mode=self.mode, exchange=exchange, authentication=authentication),
            seconds=seconds,
            results=results,
            rekey=self.rekey,
            fault=words(self.fault, NO_FAULT),
            impairment=words(self.impairment, UNIMPAIRED),
            anew=True,
        )


_NAMES = tuple(field.name for field in fields(Cell))
_ORDINARY = tuple(name for name in _NAMES if name not in ("fault", "impairment"))


def profile_of(nat: str) -> NatProfile:
    """The NAT profile of that value of the axis. Raises KeyError."""
    return PASSTHROUGH[nat].profile if nat in PASSTHROUGH else PRESETS[nat]


def words(value: str, usual: str) -> str:
    """A fault or an impairment as the command line and the shell have it; nothing for the usual value."""
    return "" if value == usual else value.replace("-", " ")
