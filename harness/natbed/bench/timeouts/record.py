"""What a benchmark of timeouts leaves. All times are model seconds, unless they say otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from natbed.bench.record import Machine
from natbed.checks import Verdict

SILENT, KEPT = "without keepalives", "with keepalives"
KINDS = (SILENT, KEPT)
"""What a tunnel does while nothing is to be carried: nothing, or its initiator sends keepalives."""

STRICT, AUTHENTICATED = "strict", "authenticated"
POLICIES = (STRICT, AUTHENTICATED)
"""What ends make of a peer's packets that come from elsewhere: nothing, or they follow those that it has protected."""

SENDERS = ("client", "server")
"""Whose datagrams go through a tunnel while a fault happens."""


class Between(msgspec.Struct, frozen=True, kw_only=True):
    """A cliff: what held at `low` was lost at `high`. Without `high` it held for as long as was looked."""

    low: float
    high: float | None

    @property
    def middle(self) -> float | None:
        """The figure to show."""
        return None if self.high is None else (self.low + self.high) / 2

    @property
    def within(self) -> float:
        """How far it may be from that figure, either way."""
        return 0.0 if self.high is None else (self.high - self.low) / 2


class Lifetime(msgspec.Struct, frozen=True, kw_only=True):
    """How long a NAT remembered a mapping of one state, and what it was configured to."""

    state: str  # unreplied, replied
    configured: float
    cliff: Between
    probes: int


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One tunnel left idle, and then used by its server's side: first data, then a rekey.

    `keepalive` is 0 where none were sent. `silence` is the longest time in which no packet passed the NAT, by its
    capture, on which the verdict is based. A trial that is `void` says nothing, and why.
    """

    round: int
    client: str
    kind: str
    timeout: float
    keepalive: float
    idle: float
    silence: float
    data: bool
    rekey: bool
    void: str = ""


class Survival(msgspec.Struct, frozen=True, kw_only=True):
    """What silence a tunnel survives behind a NAT of this timeout: without keepalives, or between two of them."""

    kind: str
    timeout: float
    cliff: Between
    trials: int


class KeepaliveCost(msgspec.Struct, frozen=True, kw_only=True):
    """Computed: what keeps the mappings of one method of NAT traversal, an hour; octets with IP headers."""

    method: str
    interval: float
    idle_packets: float
    idle_octets: float
    busy_packets: float  # while ESP passes in every interval
    busy_octets: float


class KeepalivesSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Measured: the keepalives of one client of the bundled implementation."""

    client: str
    busy: bool
    nat: bool
    interval: float  # configured
    watched: float
    packets: int
    octets: int  # of all of them, with IP headers
    mean: float | None  # time from one to the next
    longest: float | None

    @property
    def hourly(self) -> float:
        """Packets an hour, at that interval."""
        return 3600 / (self.mean or self.watched) if self.packets else 0.0


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    """Measured: octets of one packet, IP headers included: inside, as plain ESP, and in UDP as the draft has it.

    `zeros` are the octets before the SPI in the datagram.
    """

    inner: int
    plain: int
    in_udp: int
    zeros: int


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """One fault under traffic. `away` is the time from its end until traffic flows again, None where that was too long.

    `lasted` is how long the fault itself took, `happened` says what it was, and `mappings` what the tunnel's was on the
    NAT's outside before and after.
    """

    fault: str
    policy: str
    sender: str
    round: int
    client: str
    happened: str
    lasted: float
    away: float | None
    lost: int
    sent: int
    mappings: list[str]


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """All outages, and under which conditions: intervals of dead peer detection and keepalives, and the bound.

    `interval` is the time from one datagram of a stream to the next: what comes back is known no better.
    """

    dpd: float
    keepalive: float
    within: float
    interval: float
    outages: list[Outage]


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong in one part."""

    part: str
    verdict: Verdict
    reason: str


class TimeoutsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One `natbed bench timeouts`."""

    started: str  # ISO 8601, with zone
    took: float  # real seconds
    speed: float  # model seconds in a real one
    timeouts: list[float]
    rounded: dict[str, float]  # timeouts that were asked for, and what stood for them
    parts: list[str]
    machine: Machine
    lifetimes: list[Lifetime]
    survival: list[Survival]
    trials: list[Trial]
    costs: list[KeepaliveCost]
    keepalives: list[KeepalivesSeen]
    overheads: list[Overhead]
    recovery: Recovery | None
    troubles: list[Trouble]
    verdict: Verdict
    reason: str


def conclude(parts: Sequence[str], done: Sequence[str], troubles: Sequence[Trouble]) -> tuple[Verdict, str]:
    """Broken if the lab was, failed if the implementation did what it should not, passed if all parts are done."""
    for verdict in (Verdict.LAB_BROKEN, Verdict.FAILED):
        for trouble in troubles:
            if trouble.verdict is verdict:
                return verdict, f"{trouble.part}: {trouble.reason}"
    if missing := [part for part in parts if part not in done]:
        return Verdict.LAB_BROKEN, f"not measured: {', '.join(missing)}"
    return Verdict.PASSED, "everything was measured"
