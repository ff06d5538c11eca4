"""pytest and natbed: scenarios are collected from topology files as test items, each in isolation from the machine."""

from __future__ import annotations

import pytest

ISOLATED = pytest.StashKey[str]()  # "" once isolated, else the reason why not


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--natbed`, for repositories that keep scenarios of their own; `natbed_isolate` makes it the default of one."""
    group = parser.getgroup("natbed")
    group.addoption("--natbed", action="store_true", help="collect natbed scenarios and isolate the process for them")
    parser.addini("natbed_isolate", "isolate test processes as natbed needs it", type="bool", default=False)


def wanted(config: pytest.Config) -> bool:
    """Whether this run has anything to do with natbed."""
    return bool(config.getoption("--natbed") or config.getini("natbed_isolate"))


def pytest_configure(config: pytest.Config) -> None:
    """Isolate the process while it has one thread only: an xdist worker, or pytest itself where there are none."""
    controls_workers = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not wanted(config) or controls_workers:
        return
    from .isolation import IsolationError, isolate

    try:
        isolate()
    except IsolationError as error:
        config.stash[ISOLATED] = str(error)
    else:
        config.stash[ISOLATED] = ""
