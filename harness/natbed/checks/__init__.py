"""Checks: each judges one thing about a run and says with evidence why. Here: the words that all of them use."""

from __future__ import annotations

import enum
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

T = TypeVar("T")

PATTERN = b"natbed plaintext" * 2
"""What the checks' flows carry and no public wire may show. Its period of 16 octets is what `ping -p` can send."""


class Verdict(enum.StrEnum):
    """What a check concludes. A broken lab never counts against the implementation, nor for it."""

    PASSED = "passed"
    FAILED = "failed"
    LAB_BROKEN = "lab broken"


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One check's verdict: `reason` is one line for people, `details` the facts behind it, ready for JSON."""

    name: str
    verdict: Verdict
    reason: str
    details: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the check was judged and found good."""
        return self.verdict is Verdict.PASSED


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
