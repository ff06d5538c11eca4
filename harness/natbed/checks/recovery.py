"""How long does traffic stay away after a fault: numbered streams both ways through every tunnel while it happens.

Traffic flows again from the first datagram on behind which none is lost any more. The draft (5) has the initiator
begin the whole process again where its packets no longer reach the peer; that it finds out is dead peer detection's
work, and so what that takes bounds the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from natbed.checks import CheckResult, Verdict

from .flows import FlowError, LabError
from .sa_pairs import RekeyTarget
from .streams import RATE, Reception, Stream, judge_stream
from .tunnel_streams import begin, tunnel_streams

NAME = "recovery"
WITHIN = 10.0  # seconds in which traffic must flow again, unless declared otherwise
SETTLED = RATE // 2  # datagrams of each stream that must come without a gap before it is believed
_GRACE = 1.0  # seconds for the last of them, on a busy machine
_POLL = 0.01  # seconds between looks at what has arrived


class Happening(Protocol):
    """A fault that has happened: what it was, for people, and from when until when, in terms of time.monotonic()."""

    @property
    def happened(self) -> str:
        """As it is said behind "recovered 1.9 s after"."""

    @property
    def ended(self) -> float:
        """The moment from which on traffic may flow again."""


def check_recovery(
    targets: Sequence[RekeyTarget],
    strike: Callable[[], Happening],
    *,
    one_flow: bool,
    within: float = WITHIN,
    name: str = NAME,
) -> CheckResult:
    """Let the fault happen under traffic of `RATE` datagrams a second in each direction of every tunnel.

    With `one_flow` the server's stream answers to where the client's comes from at the time (transport mode). FAILED
    when any stream does not flow again within so many seconds after the fault's end, and for a datagram that comes
    twice or was never sent. What `strike` raises is raised here.
    """
    if not targets:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason="there is no tunnel that could recover")
    try:
        with tunnel_streams(targets, one_flow=one_flow, persistent=True) as streams:
            try:
                begin(streams, one_flow=one_flow)
            except FlowError as error:
                return CheckResult(name=name, verdict=Verdict.FAILED, reason=f"before anything happened: {error}")
            happening = strike()
            _await_settled(streams, happening.ended + within, one_flow=one_flow)
    except LabError as error:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason=str(error))
    return _conclude(name, streams, happening, within)


def _await_settled(streams: Sequence[Stream], until: float, *, one_flow: bool) -> None:
    """Wait until all flow without a gap, or time is up."""
    sent = [stream.sent for stream in streams]
    until += SETTLED / RATE + _GRACE
    while time.monotonic() < until:
        if one_flow:
            for there, back in zip(streams[::2], streams[1::2], strict=True):
                if there.latest_source is not None:
                    back.aim(there.latest_source)
        if all(settled(stream.arrivals, number) for stream, number in zip(streams, sent, strict=True)):
            return
        time.sleep(_POLL)


def settled(arrivals: Sequence[tuple[int, float]], sent: int, wanted: int = SETTLED) -> bool:
    """Whether the last `wanted` were all sent after the first `sent`, and none of them is missing."""
    newest = {number for number, _ in arrivals[-wanted:]}
    return len(newest) == wanted and min(newest) >= sent and max(newest) - min(newest) == wanted - 1


def away_seconds(sent: int, arrivals: Sequence[tuple[int, float]], ended: float) -> float | None:
    """Seconds from `ended` until the first datagram of `sent` behind which none was lost; None where there is none."""
    seen = {number for number, _ in arrivals}
    last_lost = max((number for number in range(sent) if number not in seen), default=None)
    if last_lost is None:
        return 0.0
    back = [when for number, when in arrivals if last_lost < number < sent]
    return round(max(min(back) - ended, 0.0), 3) if back else None


def _conclude(name: str, streams: Sequence[Stream], happening: Happening, within: float) -> CheckResult:
    receptions = [judge_stream(stream.name, stream.sent, stream.arrivals) for stream in streams]
    away = {stream.name: away_seconds(stream.sent, stream.arrivals, happening.ended) for stream in streams}
    lost = sum(one.lost for one in receptions)
    details = {
        "within_seconds": within,
        "away_seconds": away,
        "lost": lost,
        "fault": msgspec.to_builtins(happening),
        "streams": msgspec.to_builtins(receptions),
    }
    problems = _problems(away, within, happening.happened)
    problems += [f"{one.stream}: {_strange(one)}" for one in receptions if one.doubled or one.foreign]
    problems += [f"{one.name}: {one.problem}" for one in streams if one.problem]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return CheckResult(name=name, verdict=Verdict.FAILED, reason=problems[0] + more, details=details)
    seconds = max(one or 0.0 for one in away.values())
    reason = f"recovered {seconds:.1f} s after {happening.happened}, {lost} datagrams lost"
    return CheckResult(name=name, verdict=Verdict.PASSED, reason=reason, details=details)


def _problems(away: dict[str, float | None], within: float, happened: str) -> list[str]:
    found = []
    for stream, seconds in away.items():
        if seconds is None:
            found.append(f"{stream}: nothing came through within {within:g} s after {happened}")
        elif seconds > within:
            found.append(f"{stream}: recovered only {seconds:.1f} s after {happened}; {within:g} s were declared")
    return found


def _strange(one: Reception) -> str:
    return f"{one.doubled} of {one.sent} datagrams came twice, {one.foreign} were never sent"
