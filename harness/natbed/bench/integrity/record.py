"""What a benchmark of integrity has found: of each transfer both digests, and of each link what it did to packets."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from natbed.bench.record import Machine
from natbed.checks import Verdict
from natbed.impairments.base import ImpairmentRecord

MEGA = 1_000_000  # octets


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Random octets over one TCP connection; the digests are SHA-256 of what was sent and of what arrived, in hex."""

    way: str
    octets: int  # that arrived
    seconds: float
    sent_digest: str
    arrived_digest: str
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether all arrived as it was sent."""
        return not self.problem and self.sent_digest == self.arrived_digest

    @property
    def megabits_per_second(self) -> float:
        """Of what arrived, from the first octet to the last."""
        return 8 * self.octets / self.seconds / 1e6 if self.seconds else 0.0


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """Transfers both ways at once over one kind of link; `links` says what that was measured to do, and did."""

    link: str  # in the words of an impairment, or UNIMPAIRED
    transfers: list[Transfer] = []
    links: list[ImpairmentRecord] = []
    verdict: Verdict
    reason: str


class IntegrityRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Everything, until now."""

    started: str
    scenario: str
    suite: str
    octets: int  # of each transfer
    took: float  # seconds
    machine: Machine
    passages: list[Passage]
    verdict: Verdict
    reason: str


def judge(transfers: Sequence[Transfer], octets: int) -> tuple[Verdict, str]:
    """The verdict on one passage, with the first reason."""
    for one in transfers:
        if one.problem:
            return Verdict.FAILED, f"{one.way}: {one.problem}"
        if not one.passed:
            return Verdict.FAILED, f"{one.way}: what arrived is not what was sent"
    return Verdict.PASSED, f"{octets / MEGA:g} MB each way arrived as sent"


def conclude(passages: Sequence[Passage], missing: int) -> tuple[Verdict, str]:
    """The verdict on all: failed if any is, else broken if any is or if some are missing."""
    for verdict in (Verdict.FAILED, Verdict.LAB_BROKEN):
        for one in passages:
            if one.verdict is verdict:
                return verdict, f"{one.link}: {one.reason}"
    if missing:
        return Verdict.LAB_BROKEN, f"{missing} of {missing + len(passages)} links were not tried"
    return Verdict.PASSED, "all of it arrived as it was sent"
