"""Does a NAT that is known to harm do the harm that is known, no less and no more: each client as declared."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from natbed.checks import CheckResult, Verdict
from natbed.nat.passthrough_presets import Expected, Traffic

from .flows import End, random_with_pattern

NAME = "as declared"
_PATIENCE = 1.0  # seconds for datagrams that are sent at once
_OCTETS = 96  # more than the patterns that are in front


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one client: `said` is all that the implementation said at both ends, its last words last."""

    client: str
    connected: bool
    traffic: Traffic
    said: str


@dataclass(frozen=True, slots=True)
class Talk:
    """One client's conversation through its tunnel."""

    client: End
    server: End


def traffic(talks: Sequence[Talk]) -> list[Traffic]:
    """Which way datagrams pass: each client sends one, the next when that has arrived, and then the server one to each.

    So what a NAT has learned of the first client may be the last one's by the time of its answer; and nobody has the
    time to send anything else, such as the question of dead peer detection, which would change what the NAT knows.
    Raises LabError where an end cannot bind its address.
    """
    with contextlib.ExitStack() as stack:

        def opened(end: End) -> socket.socket:
            return stack.enter_context(end.open(socket.SOCK_DGRAM))

        near, far = [opened(talk.client) for talk in talks], [opened(talk.server) for talk in talks]
        dialed = [(talk.server.seen, one.getsockname()[1]) for talk, one in zip(talks, far, strict=True)]
        sources = [_pass([one], [ear], [at])[0] for one, ear, at in zip(near, far, dialed, strict=True)]
        known = [(talk.client.seen, one.getsockname()[1]) for talk, one in zip(talks, near, strict=True)]
        answers = _pass(far, near, [source or address for source, address in zip(sources, known, strict=True)])
    return [_WAYS[out is not None, back is not None] for out, back in zip(sources, answers, strict=True)]


_WAYS = {
    (True, True): Traffic.BOTH,
    (True, False): Traffic.OUTBOUND,
    (False, True): Traffic.INBOUND,
    (False, False): Traffic.NONE,
}


def _pass(
    senders: Sequence[socket.socket], receivers: Sequence[socket.socket], to: Sequence[tuple[str, int]]
) -> list[tuple[str, int] | None]:
    """One datagram from each sender, in order: whom each receiver saw as its sender, None where it did not arrive."""
    sent = [random_with_pattern(_OCTETS) for _ in senders]
    for sender, data, address in zip(senders, sent, to, strict=True):
        sender.sendto(data, address)
    until = time.monotonic() + _PATIENCE
    return [_source(receiver, data, until) for receiver, data in zip(receivers, sent, strict=True)]


def _source(receiver: socket.socket, expected: bytes, until: float) -> tuple[str, int] | None:
    while select.select([receiver], [], [], max(until - time.monotonic(), 0))[0]:
        data, source = receiver.recvfrom(2048)
        if data == expected:
            return str(source[0]), int(source[1])
    return None


def check_as_declared(nat: str, expected: Sequence[Expected], outcomes: Sequence[Outcome]) -> CheckResult:
    """Compare what became of each client with what is declared of the NAT profile of that name.

    Passed says what the NAT does to whom; failed says the first difference. What is better than declared fails too:
    then the declaration is wrong.
    """
    details = {"declared": msgspec.to_builtins(list(expected)), "found": msgspec.to_builtins(list(outcomes))}
    for one, outcome in zip(expected, outcomes, strict=True):
        if problem := _difference(one, outcome):
            reason = f"{nat}: {outcome.client} {problem}"
            return CheckResult(name=NAME, verdict=Verdict.FAILED, reason=reason, details=details)
    what = "; ".join(f"{outcome.client} {_summary(one)}" for one, outcome in zip(expected, outcomes, strict=True))
    return CheckResult(name=NAME, verdict=Verdict.PASSED, reason=f"{nat}: {what}", details=details)


def _difference(expected: Expected, outcome: Outcome) -> str:
    last = f", its last words: {outcome.said.strip().splitlines()[-1]}" if outcome.said.strip() else ""
    if outcome.connected != expected.connects:
        return f"connected, and was not to{last}" if outcome.connected else f"did not connect, and was to{last}"
    if outcome.traffic != expected.traffic:
        return f"has traffic {outcome.traffic}, declared was {expected.traffic}{last}"
    if expected.says not in outcome.said:
        return f"never said {expected.says!r}{last}"
    return ""


def _summary(expected: Expected) -> str:
    what = f"connects, traffic {expected.traffic}" if expected.connects else "does not connect"
    return f"{what} ({expected.says!r})" if expected.says else what
