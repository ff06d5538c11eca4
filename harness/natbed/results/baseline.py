"""results/baseline.json: the figures that runs are compared with, by kind of machine. `natbed baseline` renews them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import statistics
from collections.abc import Iterable, Sequence

import msgspec

from natbed.checks.throughput import Spread, UsualRatio

from .store import StoreError, default_folder

FILE = "baseline.json"
REFERENCE = "A"
"""The scenario that is measured with every suite."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What a ratio depends on besides the machine."""

    stack: str
    scenario: str  # letter
    mode: str
    esp: str  # suite
    encapsulation: str  # udp, or none

    def __str__(self) -> str:
        """For people, in one line."""
        encapsulation = "ESP in UDP" if self.encapsulation == "udp" else "plain ESP"
        return f"{self.stack}, {self.scenario}, {self.mode}, {self.esp}, {encapsulation}"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: Mbit/s of both paths, by direction."""

    tunnel_forward: float
    tunnel_reverse: float
    plain_forward: float
    plain_reverse: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one case: the usual ratio, the median rates in Mbit/s behind it for the reader, and how it was measured."""

    case: Case
    ratio: UsualRatio
    rates: Sample
    seconds: int  # of each iperf3 measurement
    measured: str  # date, ISO 8601
    kernel: str
    python: str

    @classmethod
    def of(
        cls, case: Case, samples: Sequence[Sample], *, seconds: int, measured: str, kernel: str, python: str
    ) -> Figures:
        """What some samples, at least one, come to.

        The best rate of the plain path stands for all of them: whatever slows it now and then, it is not IPsec, and a
        ratio to less would promise of the tunnel what it does not do on a quiet machine.
        """
        medians = {
            field: round(statistics.median(getattr(sample, field) for sample in samples), 1)
            for field in Sample.__struct_fields__
        }
        forward, reverse = max(one.plain_forward for one in samples), max(one.plain_reverse for one in samples)
        ratio = UsualRatio(
            forward=spread([one.tunnel_forward / forward for one in samples]),
            reverse=spread([one.tunnel_reverse / reverse for one in samples]),
        )
        return cls(
            case=case,
            ratio=ratio,
            rates=Sample(**medians),
            seconds=seconds,
            measured=measured,
            kernel=kernel,
            python=python,
        )


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one kind of machine."""

    kind: str
    figures: list[Figures]


class Baseline(msgspec.Struct, frozen=True):
    """All figures that are kept."""

    machines: list[Machine] = []

    def figures(self, kind: str) -> dict[Case, Figures]:
        """Those of one kind of machine."""
        return {one.case: one for machine in self.machines if machine.kind == kind for one in machine.figures}

    def usual(self, kind: str, case: Case) -> UsualRatio | str:
        """The usual ratio; or why there is none, in words.

        Of a scenario that was measured with another suite only, it is put together: what the scenario adds to the time
        that an octet takes in the reference, it adds with each suite. None takes less than the reference.
        """
        known = {case: figures.ratio for case, figures in self.figures(kind).items()}
        if not known:
            return f"no baseline for this kind of machine ({kind})"
        same_suite = known.get(_reference(case))
        same_scenario = [other for other in known if other == msgspec.structs.replace(case, esp=other.esp)]
        for other in sorted(same_scenario, key=lambda one: one != case):
            reference = known.get(_reference(other))
            if same_suite and reference:
                return UsualRatio(
                    forward=_with_the_extra(same_suite.forward, known[other].forward, reference.forward),
                    reverse=_with_the_extra(same_suite.reverse, known[other].reverse, reference.reverse),
                )
        return known.get(case, f"no baseline for {case}")

    def renewed(self, kind: str, figures: Iterable[Figures]) -> Baseline:
        """With these figures in place of their cases' old ones; other cases and other kinds of machines stay."""
        cases = self.figures(kind) | {one.case: one for one in figures}
        machine = Machine(kind=kind, figures=[cases[case] for case in sorted(cases, key=str)])
        others = [other for other in self.machines if other.kind != kind]
        return Baseline(sorted([*others, machine], key=lambda one: one.kind))


def _reference(case: Case) -> Case:
    return msgspec.structs.replace(case, scenario=REFERENCE)


def _with_the_extra(suite: Spread, scenario: Spread, reference: Spread) -> Spread:
    """The ratio with the suite's time an octet, and the time by which the scenario exceeds the reference."""

    def ratio(of: float, there: float, here: float) -> float:
        return round(1 / (1 / of + max(1 / there - 1 / here, 0)), 5)

    return Spread(
        low=ratio(suite.low, scenario.low, reference.low),
        median=ratio(suite.median, scenario.median, reference.median),
        high=ratio(suite.high, scenario.high, reference.high),
        samples=min(suite.samples, scenario.samples, reference.samples),
    )


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of at least one sample."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return Spread(low=round(low, 5), median=round(median, 5), high=round(high, 5), samples=len(samples))


def default_file() -> pathlib.Path:
    """Where the figures of this checkout are, or of the current folder elsewhere, wherever evidence goes."""
    return default_folder() / FILE


def load(file: pathlib.Path) -> Baseline:
    """Read the figures; where there is no file, there are none. StoreError when it is damaged or cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Baseline)
    except FileNotFoundError:
        return Baseline()
    except OSError as error:
        raise StoreError(f"{file}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise StoreError(f"{file}: not a baseline: {error}") from error


def save(file: pathlib.Path, baseline: Baseline) -> None:
    """Write the figures, all or nothing. StoreError when they cannot be written."""
    new = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.format(msgspec.json.encode(baseline), indent=2) + b"\n")
        os.replace(new, file)  # noqa: PTH105 - both are in one folder
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise StoreError(f"{file}: cannot be written: {error.strerror}") from error
