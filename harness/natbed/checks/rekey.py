"""Does a rekey cost packets: numbered UDP streams both ways through every tunnel while its SAs are replaced.

Receivers listen before their senders begin. The sender of a reply stream answers to where the client's stream came
from, which in transport mode is the only way back through a NAT.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from natbed.checks import CheckResult, Verdict
from natbed.stacks.base import CountsPackets, Daemon, StackError, TunnelStatus

from .flows import FlowError, LabError
from .sa_pairs import RekeyTarget, Step, await_replaced, pairs, spis
from .streams import WINDOW, Stream, judge_stream
from .tunnel_streams import LEAD, begin, tunnel_streams

T = TypeVar("T")

_ARRIVAL_SECONDS = 5.0  # for an end's status to show its new SAs, and for these to carry something
_REKEY_SECONDS = 15.0
_POLL = 0.005  # seconds between looks at a status, which says nothing unasked


def steps(side: str) -> list[Step]:
    """Of `side` initiator, responder or both: Quick Mode by each, then phase 1 by each."""
    sides = ["initiator", "responder"] if side == "both" else [side]
    return [Step(one, phase1) for phase1 in (False, True) for one in sides]


@dataclass
class _Rekeys:
    """What the rekeys of one tunnel did."""

    name: str
    done: list[dict[str, object]] = field(default_factory=list)
    spis: list[str] = field(default_factory=list)  # of all new SAs
    problem: str = ""


def check_rekey(
    targets: Sequence[RekeyTarget],
    planned: Sequence[Step],
    *,
    one_flow: bool,
    name: str = "rekey",
) -> CheckResult:
    """Rekey all tunnels at once, step by step, under traffic of `RATE` datagrams a second in each direction.

    With `one_flow` the server's stream answers on the client's own flow (transport mode); else both are independent.
    FAILED for any datagram lost, doubled or late beyond `WINDOW`, a rekey that is refused, and SAs that did not change.
    """
    if not targets or not planned:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason="there is nothing to rekey")
    rekeys = [_Rekeys(target.name) for target in targets]
    problem = ""
    try:
        with tunnel_streams(targets, one_flow=one_flow) as streams:
            try:
                begin(streams, one_flow=one_flow)
                with ThreadPoolExecutor(len(targets), thread_name_prefix=name) as pool:
                    own = zip(streams[::2], streams[1::2], strict=True)
                    list(pool.map(_rekey, targets, rekeys, itertools.repeat(planned), own))
                for stream in streams:
                    stream.await_arrivals(LEAD)
            except FlowError as error:
                problem = str(error)
    except LabError as error:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason=str(error))
    return _conclude(name, streams, rekeys, problem, _dropped(targets))


def _rekey(target: RekeyTarget, rekeys: _Rekeys, planned: Sequence[Step], streams: Sequence[Stream]) -> None:
    for step in planned:
        try:
            before = pairs(target)
            seconds = step.take(target, _REKEY_SECONDS)
            after = await_replaced(target, before, _ARRIVAL_SECONDS)
            _await_use(target, after, streams)
        except (StackError, FlowError) as error:
            rekeys.problem = f"{target.name}: {step}: {error}"
            return
        new = spis(after)
        rekeys.done.append({"step": str(step), "milliseconds": round(seconds * 1000, 1), "spis": new})
        rekeys.spis += new


def _await_use(target: RekeyTarget, pair: Sequence[TunnelStatus], streams: Sequence[Stream]) -> None:
    """Wait until the new pair has carried something both ways: a stream may pause, and then nobody has seen it used."""
    for stream in streams:
        stream.await_arrivals(WINDOW)
    for daemon, status in zip((target.initiator, target.responder), pair, strict=True):
        if isinstance(daemon, CountsPackets):
            _await(lambda daemon=daemon, spi=status.inbound_spi: _used(daemon, spi))  # type: ignore[misc]


def _used(daemon: CountsPackets, spi: str) -> tuple[list[str], str]:
    """The SPI, if something came by it, or why not."""
    came = {int(one, 0): number for one, number in daemon.received_packets().items()}.get(int(spi, 0), 0)
    return ([spi], "") if came else ([], f"nothing came by the new SA {spi}")


def _await(look: Callable[[], tuple[list[T], str]]) -> list[T]:
    until = time.monotonic() + _ARRIVAL_SECONDS
    while True:
        found, missing = look()
        if found:
            return found
        if time.monotonic() > until:
            raise FlowError(missing)
        time.sleep(_POLL)


def _dropped(targets: Sequence[RekeyTarget]) -> dict[str, dict[str, int]]:
    """What each end's implementation says that it has dropped; an end of several tunnels is named by the first."""
    dropped: dict[str, dict[str, int]] = {}
    asked: list[Daemon] = []
    for target in targets:
        for side, daemon in (("initiator", target.initiator), ("responder", target.responder)):
            if isinstance(daemon, CountsPackets) and daemon not in asked:
                asked.append(daemon)
                with contextlib.suppress(StackError):  # what it had to say of its rekeys counts more
                    dropped[f"{side} of {target.name}"] = dict(daemon.dropped_packets())
    return {end: counts for end, counts in dropped.items() if counts}


def _conclude(
    name: str,
    streams: Sequence[Stream],
    rekeys: Sequence[_Rekeys],
    problem: str,
    dropped: dict[str, dict[str, int]],
) -> CheckResult:
    receptions = [judge_stream(stream.name, stream.sent, stream.arrivals) for stream in streams]
    details = {
        "streams": msgspec.to_builtins(receptions),
        "rekeys": {one.name: one.done for one in rekeys},
        "spis": [spi for one in rekeys for spi in one.spis],
        "dropped": dropped,
    }
    problems = [one.problem for one in rekeys if one.problem]
    problems += [f"{one.stream}: {one.problem}" for one in receptions if one.problem]
    problems += [problem] * bool(problem) + [f"{one.name}: {one.problem}" for one in streams if one.problem]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return CheckResult(name=name, verdict=Verdict.FAILED, reason=problems[0] + more, details=details)
    sent = sum(one.sent for one in receptions)
    gap = max(one.longest_gap for one in receptions)
    count = sum(len(one.done) for one in rekeys)
    reason = f"{count} rekeys, {sent} datagrams, none lost or doubled; longest gap {gap:.0f} ms"
    return CheckResult(name=name, verdict=Verdict.PASSED, reason=reason, details=details)


def confirm_on_the_wire(result: CheckResult, found: Collection[str]) -> CheckResult:
    """Fail a passed result whose new SAs were not all seen in the captures, which showed these SPIs."""
    seen = {int(spi, 0) for spi in found}
    missing = [spi for spi in result.details.get("spis", []) if int(spi, 0) not in seen]
    if not result.passed or not missing:
        return result
    reason = f"no packet of the new SA {missing[0]} was on the wire"
    return msgspec.structs.replace(result, verdict=Verdict.FAILED, reason=reason)
