"""What tests of the lab need: a process in namespaces of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from two_nodes import Nodes, two_nodes

from natbed.isolation import IsolationError, isolate


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
