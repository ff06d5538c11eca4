"""Topology files: where they are, and the scenarios in them."""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import sys
from types import ModuleType

from .scenario import Scenario, ScenarioError


def load_scenarios() -> list[type[Scenario]]:
    """All scenarios of the topologies directory, in the order of their letters. Raises `ScenarioError`."""
    directory = topologies_directory()
    found: dict[str, type[Scenario]] = {}
    for file in topology_files(directory):
        for scenario in scenarios_of(file):
            if scenario.letter in found:
                other = inspect.getfile(found[scenario.letter])
                raise ScenarioError(f"{file} and {other} both have the letter {scenario.letter}")
            found[scenario.letter] = scenario
    return [found[letter] for letter in sorted(found)]


def find(letter: str) -> type[Scenario]:
    """The scenario of that letter, upper or lower case. Raises `ScenarioError` that says which there are."""
    scenarios = load_scenarios()
    for scenario in scenarios:
        if scenario.letter.lower() == letter.lower():
            return scenario
    raise ScenarioError(f"no scenario {letter!r}; there are {', '.join(one.letter for one in scenarios)}")


def scenarios_of(file: pathlib.Path) -> list[type[Scenario]]:
    """The scenarios that a topology file defines, those with a letter. Raises `ScenarioError`."""
    module = _load(file)
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Scenario)
        and value.letter
        and value.__module__ == module.__name__
    ]


def topology_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The Python files of a folder that are not hidden, private or tests."""
    return [
        file
        for file in sorted(folder.rglob("*.py"))
        if not any(part.startswith(("_", ".", "test_", "conftest")) for part in file.relative_to(folder).parts)
    ]


def topologies_directory() -> pathlib.Path:
    """Where the topology files are: beside harness/ in the repository, beside the package in an installed wheel."""
    package = pathlib.Path(__file__).resolve().parent
    candidates = (package.parents[1] / "topologies", package.parent / "natbed_topologies")
    for directory in candidates:
        if directory.is_dir():
            return directory
    raise ScenarioError(f"no topologies in {' or '.join(map(str, candidates))}")


def _load(file: pathlib.Path) -> ModuleType:
    name = f"natbed_topologies.{file.resolve().parent.name}.{file.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(file.resolve()):
        return loaded
    specification = importlib.util.spec_from_file_location(name, file.resolve())
    if specification is None or specification.loader is None:
        raise ScenarioError(f"{file} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ScenarioError(f"{file}: {type(error).__name__}: {error}") from error
    return module
