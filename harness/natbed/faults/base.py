"""What all faults share: where they happen, and the record of what they did and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from natbed.lab import Lab
from natbed.stacks.base import Daemon, Daemons

EFFECT_SECONDS = 5.0  # within which a fault must show its effect
_POLL = 0.002  # seconds between looks; what they look at says nothing unasked


class FaultError(Exception):
    """A fault that did not happen, and so proves nothing: the lab's fault, never the implementation's."""


class FaultRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A fault that has happened and was seen to: `happened` is for people, after "recovered 1.9 s after ...".

    `began` and `ended` are time.monotonic(), `at` seconds since the epoch when it began.
    """

    fault: str
    happened: str
    began: float
    ended: float
    at: float
    details: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Scene:
    """Where faults happen: a lab that is up, and the implementations that run in it, by host."""

    lab: Lab
    daemons: Daemons = field(default_factory=dict)

    def daemon(self, host: str) -> Daemon:
        """The implementation on that host. Raises `FaultError` where there is none."""
        if host not in self.daemons:
            raise FaultError(f"nothing runs on {host!r}; there are {', '.join(self.daemons) or 'none'}")
        return self.daemons[host]


class Fault(Protocol):
    """One fault that can be made to happen, as often as one likes."""

    def strike(self, scene: Scene) -> FaultRecord:
        """Let it happen, and see that it has. Raises `FaultError`, or an error of the part of the lab concerned."""


class Moment:
    """When a fault begins; `record` is its end."""

    def __init__(self) -> None:
        self.at = time.time()
        self.began = time.monotonic()

    def record(self, fault: Fault, happened: str, **details: object) -> FaultRecord:
        """The record of a fault that ends now."""
        name, ended = type(fault).__name__, time.monotonic()
        return FaultRecord(fault=name, happened=happened, began=self.began, ended=ended, at=self.at, details=details)


def await_effect(look: Callable[[], str], seconds: float = EFFECT_SECONDS) -> None:
    """Look until nothing is missing any more. Raises `FaultError` with what was missing last."""
    until = time.monotonic() + seconds
    while missing := look():
        if time.monotonic() > until:
            raise FaultError(f"{missing} after {seconds:g} s")
        time.sleep(_POLL)
