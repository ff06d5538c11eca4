"""The matrix: every way to run the scenarios, as cells; what is left out, and why; and which cells to take."""

from __future__ import annotations

import enum
import inspect
import itertools
import pathlib
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import msgspec

from .nat.presets import PRESETS
from .runner import RunOptions
from .scenario import Scenario, ScenarioError
from .settings import Protection
from .topology_files import scenarios_of, topology_files

TABLE = pathlib.Path(__file__).with_name("matrix.toml")


class MatrixError(Exception):
    """The matrix cannot be made, or has no such cell; the message says why in one line."""


class Extent(enum.StrEnum):
    """How much of the matrix is run."""

    SMOKE = "smoke"
    """Every scenario in every mode once."""
    DEFAULT = "default"
    """Every pair of values that can occur, in as few cells as a greedy choice finds."""
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

    @property
    def values(self) -> tuple[str, ...]:
        """As words, in the order of the axes."""
        return tuple(str(getattr(self, field.name)) for field in fields(self))

    @property
    def id(self) -> str:
        """Its name, the same in every matrix: A-tunnel-aes128gcm16-main-psk-2-masquerade-both."""
        return "-".join(self.values)

    def options(self, seconds: int, results: pathlib.Path) -> RunOptions:
        """How `natbed.runner.Run` is told; `seconds` is the length of each iperf3 measurement."""
        exchange, _, authentication = self.phase1.partition("-")
        protection = Protection(esp_suite=self.esp, mode=self.mode, exchange=exchange, authentication=authentication)
        return RunOptions(self.clients, PRESETS[self.nat], protection, seconds, results, self.rekey)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Values that do not go together, and why."""

    what: str
    reason: str


Rule = Callable[[type[Scenario], Cell], Exclusion | None]


def _mode(scenario: type[Scenario], cell: Cell) -> Exclusion | None:
    if cell.mode in scenario.modes:
        return None
    reason = scenario.not_supported.get(cell.mode, "the scenario does not have this mode")
    return Exclusion(f"{cell.scenario}, {cell.mode}", reason)


def _clients(scenario: type[Scenario], cell: Cell) -> Exclusion | None:
    counts = scenario.client_counts if _varies(scenario, "clients") else scenario.client_counts[:1]
    if cell.clients in counts:
        return None
    if len(counts) == 1:
        reason = "the number of its clients does not vary"
    else:
        reason = f"it is made for {_listed(counts)} clients"
    return Exclusion(f"{cell.scenario}, clients: {cell.clients}", reason)


def _nat(scenario: type[Scenario], cell: Cell) -> Exclusion | None:
    nats = scenario.nats if _varies(scenario, "nat") else scenario.nats[:1]
    if cell.nat in nats:
        return None
    reason = f"its NATs can be {_listed(nats)}" if len(nats) > 1 else "what its NATs do does not vary"
    return Exclusion(f"{cell.scenario}, NAT: {cell.nat}", reason)


def _varies(scenario: type[Scenario], parameter: str) -> bool:
    return parameter in inspect.signature(scenario.build).parameters


RULES: tuple[Rule, ...] = (_mode, _clients, _nat)


class Matrix:
    """All cells of some scenarios: `cells` are those that can be run, `left_out` the others, by what excludes them."""

    def __init__(self, scenarios: Sequence[type[Scenario]], axes: Axes | None = None) -> None:
        """Raises `MatrixError` for a scenario of which nothing would be left, and for two of the same letter."""
        self.axes = axes or load_axes()
        self.scenarios = {scenario.letter: scenario for scenario in scenarios}
        if len(self.scenarios) != len(scenarios):
            raise MatrixError("two scenarios have the same letter")
        self.cells: list[Cell] = []
        self.left_out: dict[Exclusion, int] = {}
        for scenario in scenarios:
            self._add(scenario)

    def _add(self, scenario: type[Scenario]) -> None:
        axes = [getattr(self.axes, field) for field in self.axes.__struct_fields__]
        before = len(self.cells)
        for values in itertools.product(*axes):
            cell = Cell(scenario.letter, *values)
            exclusion = next((found for rule in RULES if (found := rule(scenario, cell))), None)
            if exclusion is None:
                self.cells.append(cell)
            else:
                self.left_out[exclusion] = self.left_out.get(exclusion, 0) + 1
        if len(self.cells) == before:
            raise MatrixError(f"{scenario.letter}: the matrix has no cell for it; its axes are in {TABLE.name}")

    def take(self, extent: Extent) -> list[Cell]:
        """The cells of that extent, the same ones in the same order each time."""
        if extent is Extent.SMOKE:
            return self._smoke()
        if extent is Extent.DEFAULT:
            return pairwise(self.cells)
        return list(self.cells)

    def named(self, ids: Iterable[str]) -> list[Cell]:
        """The cells with these ids, in their order. Raises `MatrixError` for an id that no cell has."""
        known = {cell.id: cell for cell in self.cells}
        ids = list(ids)
        for name in ids:
            if name not in known:
                raise MatrixError(f"no cell {name!r}; --full --list shows all")
        return [known[name] for name in ids]

    def _smoke(self) -> list[Cell]:
        first: dict[tuple[str, str], Cell] = {}
        for cell in self.cells:
            first.setdefault((cell.scenario, cell.mode), cell)
        return list(first.values())


def pairwise(cells: Sequence[Cell]) -> list[Cell]:
    """Few of the cells, with every pair of two axes' values that any of them has: the one with most new pairs next."""
    numbers: dict[tuple[int, str, int, str], int] = {}
    masks = []
    for cell in cells:
        mask = 0
        for (i, one), (j, other) in itertools.combinations(enumerate(cell.values), 2):
            mask |= 1 << numbers.setdefault((i, one, j, other), len(numbers))
        masks.append(mask)
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


def _listed(values: Iterable[object]) -> str:
    *most, last = [str(value) for value in values]
    return f"{', '.join(most)} or {last}" if most else last
