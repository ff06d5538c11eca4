"""What tests of the lab need: a process in namespaces of its own."""

from __future__ import annotations

import pytest

from natbed.isolation import IsolationError, isolate


@pytest.fixture(scope="session")
def isolated() -> None:
    """The test process, isolated; without the right to do so, the test is skipped."""
    try:
        isolate()
    except IsolationError as error:
        pytest.skip(str(error))
