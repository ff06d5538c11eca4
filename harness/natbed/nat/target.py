"""What rules are put into, and what is raised when they do not take."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol


class NatError(Exception):
    """The NAT does not have the rules that its profile asks for: a broken lab."""


class RulesTarget(Protocol):
    """What rules are put into: a node."""

    name: str

    def run(self, argv: Sequence[str], *, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; raise when its exit code is not 0."""
        ...

    def sysctl(self, settings: Mapping[str, object]) -> None:
        """Write and read back settings."""
        ...
