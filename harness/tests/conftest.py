"""What tests of the lab need: a process in namespaces of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from two_nodes import Nodes, two_nodes

from natbed.isolation import IsolationError, isolate


def pytest_sessionstart() -> None:
    """A shell has its background jobs ignore Ctrl-C, and their children with them: none of a test's may."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def isolated() -> None:
    """The test process, isolated; without the right to do so, the test is skipped."""
    try:
        isolate()
    except IsolationError as error:
        pytest.skip(str(error))


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Two nodes on one wire."""
    with two_nodes() as both:
        yield both
