"""The matrix: every way to run the scenarios, as cells; what is left out, and why; and which cells to take."""

from __future__ import annotations

import enum
import functools
import itertools
import math
import pathlib
import tomllib
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from .matrix_cells import NO_FAULT, UNIMPAIRED, Cell
from .matrix_rules import RULES, Exclusion, Value
from .nat.passthrough_presets import PASSTHROUGH
from .scenario import Scenario, ScenarioError
from .topology_files import scenarios_of, topology_files

__all__ = [
    "TABLE",
    "Axes",
    "Cell",
    "Exclusion",
    "Extent",
    "Matrix",
    "MatrixError",
    "load_axes",
    "pairs",
    "pairwise",
    "scenarios_in",
]

TABLE = pathlib.Path(__file__).with_name("matrix.toml")


class MatrixError(Exception):
    """The matrix cannot be made, or has no such cell; the message says why in one line."""


class Extent(enum.StrEnum):
    """How much of the matrix is run."""

    SMOKE = "smoke"
    """Every scenario in every mode once."""
    DEFAULT = "default"
    """All that `pairs` says: every pair of values that can occur, faults and impairments in each mode, IPsec-aware NATs
    once; in as few cells as a greedy choice finds."""
    FULL = "full"
    """Every cell."""


class Axes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The values of each axis, those that a smoke run takes first."""

    mode: tuple[str, ...]
    esp: tuple[str, ...]
    phase1: tuple[str, ...]
    clients: tuple[int, ...]
    nat: tuple[str, ...]
    rekey: tuple[str, ...]
    fault: tuple[str, ...] = (NO_FAULT,)
    impairment: tuple[str, ...] = (UNIMPAIRED,)


class Matrix:
    """All cells of some scenarios."""

    def __init__(self, scenarios: Sequence[type[Scenario]], axes: Axes | None = None) -> None:
        """Raises `MatrixError` for a scenario of which nothing would be left, and for two of the same letter."""
        self.axes = axes or load_axes()
        self.scenarios = {scenario.letter: scenario for scenario in scenarios}
        if len(self.scenarios) != len(scenarios):
            raise MatrixError("two scenarios have the same letter")
        axes_without = {"fault": self.axes.fault[:1], "impairment": self.axes.impairment[:1]}
        self.usual = [cell for one in scenarios for cell in self._cells(one, {**self._values, **axes_without}, {})]
        """The cells in which nothing goes wrong. No scenario is built for them, as for the rules of what goes wrong."""
        for scenario in scenarios:
            if not any(cell.scenario == scenario.letter for cell in self.usual):
                raise MatrixError(f"{scenario.letter}: the matrix has no cell for it; its axes are in {TABLE.name}")

    @property
    def cells(self) -> list[Cell]:
        """Those that can be run."""
        return self._all[0]

    @property
    def left_out(self) -> dict[Exclusion, int]:
        """How many others there are, by what excludes them."""
        return self._all[1]

    @functools.cached_property
    def _all(self) -> tuple[list[Cell], dict[Exclusion, int]]:
        left_out: dict[Exclusion, int] = {}
        cells = [cell for one in self.scenarios.values() for cell in self._cells(one, self._values, left_out)]
        return cells, left_out

    @property
    def _values(self) -> dict[str, tuple[Value, ...]]:
        return msgspec.structs.asdict(self.axes)

    def _cells(
        self, scenario: type[Scenario], axes: dict[str, tuple[Value, ...]], left_out: dict[Exclusion, int]
    ) -> list[Cell]:
        found = list(_possible(scenario, axes, left_out, {}))
        places = [{value: n for n, value in enumerate(values)} for values in axes.values()]
        found.sort(key=lambda values: [place[values[name]] for name, place in zip(axes, places, strict=True)])
        return [Cell(scenario.letter, **values) for values in found]  # type: ignore[arg-type]

    def take(self, extent: Extent) -> list[Cell]:
        """The cells of that extent, the same ones in the same order each time."""
        if extent is Extent.SMOKE:
            return self._smoke()
        if extent is Extent.DEFAULT:
            return pairwise(self.cells)
        return list(self.cells)

    def named(self, ids: Iterable[str]) -> list[Cell]:
        """The cells with these ids, in their order. Raises `MatrixError` for an id that no cell has."""
        ids = list(ids)
        known = {cell.id: cell for cell in self.usual}
        if not known.keys() >= set(ids):
            known = {cell.id: cell for cell in self.cells}
        for name in ids:
            if name not in known:
                raise MatrixError(f"no cell {name!r}; --full --list shows all")
        return [known[name] for name in ids]

    def _smoke(self) -> list[Cell]:
        first: dict[tuple[str, str], Cell] = {}
        for cell in self.usual:
            first.setdefault((cell.scenario, cell.mode), cell)
        return list(first.values())


def _possible(
    scenario: type[Scenario],
    axes: dict[str, tuple[Value, ...]],
    left_out: dict[Exclusion, int],
    known: dict[str, Value],
) -> Iterator[dict[str, Value]]:
    """The axes that rules look at first: what is left out is so before all that it would be multiplied by."""
    left = [name for name in (*RULES, *(name for name in axes if name not in RULES)) if name not in known]
    if not left:
        yield known
        return
    name, *others = left
    for value in axes[name]:
        values = {**known, name: value}
        if exclusion := RULES[name](scenario, values) if name in RULES else None:
            count = math.prod(len(axes[other]) for other in others)
            left_out[exclusion] = left_out.get(exclusion, 0) + count
        else:
            yield from _possible(scenario, axes, left_out, values)


Pair = tuple[str, object, str, object]  # two axes, each with its value


def pairs(cell: Cell) -> Iterator[Pair]:
    """What the default matrix owes to that cell.

    A cell with a fault or an impairment is an ordinary one with something more at its end, so that it costs no cell
    more. What that is makes no difference to suites, phase 1 and rekeys, which it finds begun anew: each is met in each
    mode. Behind an IPsec-aware NAT nothing is looked at but how clients fare: each is met once, and stands for no pair
    of anything else. `--full` has all of them with everything.
    """
    if cell.nat in PASSTHROUGH:
        yield "scenario", cell.scenario, "nat", cell.nat
        return
    yield from ((*one, *other) for one, other in itertools.combinations(cell.ordinary, 2))
    if cell.fault != NO_FAULT:
        yield "mode", cell.mode, "fault", cell.fault
    if cell.impairment != UNIMPAIRED:
        yield "mode", cell.mode, "impairment", cell.impairment


def pairwise(cells: Sequence[Cell]) -> list[Cell]:
    """Few of the cells, with every pair that is owed to any of them: the one with most new pairs next."""
    numbers: dict[Pair, int] = {}
    masks = [sum(1 << numbers.setdefault(pair, len(numbers)) for pair in pairs(cell)) for cell in cells]
    missing = (1 << len(numbers)) - 1
    chosen = []
    while missing:
        best = max(range(len(cells)), key=lambda n: (masks[n] & missing).bit_count())
        chosen.append(best)
        missing &= ~masks[best]
    return [cells[n] for n in sorted(chosen)]


def load_axes(file: pathlib.Path = TABLE) -> Axes:
    """Read the axes. Raises `MatrixError`."""
    try:
        axes = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Axes)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise MatrixError(f"{file}: {error}") from error
    for name in axes.__struct_fields__:
        values = getattr(axes, name)
        if not values or len(set(values)) != len(values):
            raise MatrixError(f"{file}: {name} needs values, each once")
    return axes


def scenarios_in(folder: pathlib.Path) -> list[type[Scenario]]:
    """The scenarios of a folder's topology files, in the order of their letters. Raises `MatrixError`."""
    try:
        found = [scenario for file in topology_files(folder) for scenario in scenarios_of(file)]
    except ScenarioError as error:
        raise MatrixError(str(error)) from error
    if not found:
        raise MatrixError(f"{folder}: no scenarios there")
    return sorted(found, key=lambda scenario: scenario.letter)
