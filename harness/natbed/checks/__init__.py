"""Checks: each judges one thing about a run and says with evidence why. Here: the words that all of them use."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

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
