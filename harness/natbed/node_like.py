"""What everything above the lab needs of a node, so that nothing above it depends on Mininet."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class NodeLike(Protocol):
    """What the checks need of a node: its name, and ways to act inside its network namespace."""

    @property
    def name(self) -> str:
        """The node's name in the scenario."""
        ...

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread of the node's namespaces; its exception is raised here."""
        ...

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a program in the node's namespaces; it dies with the node."""
        ...

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the node's namespaces to its end, within `timeout` seconds."""
        ...
