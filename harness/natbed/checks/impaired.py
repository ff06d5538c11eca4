"""Is a tunnel of use over a link that harms packets: what is lost is what the link loses, and nothing else goes wrong.

Over such a link not all that is else asked of a tunnel makes sense. A TCP connection must carry everything, since its
ends repeat what is lost. Of numbered datagrams so many may be missing as the link takes; one that the link has doubled
must come once (the replay window), and one that it has damaged never (the integrity check). That each ping is answered,
and that a rekey loses nothing, is asked of links that lose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from natbed.checks import CheckResult, Verdict
from natbed.impairments.base import Impairment

from .connectivity import tcp
from .flows import End, Flow, FlowError, LabError
from .sa_pairs import RekeyTarget
from .streams import Reception, judge_stream
from .tunnel_streams import begin, tunnel_streams

NAME = "impaired"
DATAGRAMS = 300  # of each stream that must arrive
_TCP_OCTETS = 128 << 10
_TCP_SECONDS = 20.0
_SIGMAS = 5.0
_TRAIN = 10  # packets that may be lost as one: what a busy sender catches up with is one train to the link


def check_impaired(
    target: RekeyTarget, impairment: Impairment, *, what: str, one_flow: bool, name: str = NAME
) -> CheckResult:
    """Judge a tunnel whose way is impaired so in both directions; `what` is that for people.

    With `one_flow` the client begins, and the server answers to where that comes from (transport mode).
    """
    client = End(target.client, target.client_address, target.client_seen)
    server = End(target.server, target.server_address, target.server_seen)
    ways = [(client, server)] if one_flow else [(client, server), (server, client)]
    flows = [tcp(*way, _TCP_OCTETS, _TCP_SECONDS) for way in ways]
    try:
        with tunnel_streams([target], one_flow=one_flow) as streams:
            try:
                begin(streams, one_flow=one_flow, lead=DATAGRAMS)
            except FlowError as error:
                return CheckResult(name=name, verdict=Verdict.FAILED, reason=f"{what}: {error}")
    except LabError as error:
        return CheckResult(name=name, verdict=Verdict.LAB_BROKEN, reason=str(error))
    received = [judge_stream(stream.name, stream.sent, stream.arrivals) for stream in streams]
    return _conclude(name, what, flows, received, impairment)


def may_be_lost(sent: int, impairment: Impairment) -> int:
    """How many of so many datagrams such a link may cost one way, by chance too; damaged ones are lost to a tunnel."""
    share = (1 / impairment.every_nth if impairment.every_nth else impairment.loss) + impairment.corrupt
    share = min(share, 1.0)
    return math.ceil(sent * share + _SIGMAS * math.sqrt(_TRAIN * sent * share * (1 - share)))


def _conclude(
    name: str, what: str, flows: Sequence[Flow], received: Sequence[Reception], impairment: Impairment
) -> CheckResult:
    details = {"flows": msgspec.to_builtins(flows), "streams": msgspec.to_builtins(received)}
    broken = [flow for flow in flows if flow.lab_broken]
    problems = [f"{flow.kind} {flow.path}: {flow.problem}" for flow in (*broken, *flows) if not flow.passed]
    problems += [f"{one.stream}: {problem}" for one in received if (problem := _problem(one, impairment))]
    if problems:
        verdict = Verdict.LAB_BROKEN if broken else Verdict.FAILED
        return CheckResult(name=name, verdict=verdict, reason=f"{what}: {problems[0]}", details=details)
    lost, sent = sum(one.lost for one in received), sum(one.sent for one in received)
    reason = f"{what}: {lost} of {sent} datagrams lost, none twice, none damaged; TCP carried all"
    return CheckResult(name=name, verdict=Verdict.PASSED, reason=reason, details=details)


def _problem(one: Reception, impairment: Impairment) -> str:
    if one.doubled or one.foreign:
        return f"{one.doubled} of {one.sent} datagrams came twice, {one.foreign} were never sent"
    if one.lost > (most := may_be_lost(one.sent, impairment)):
        return f"{one.lost} of {one.sent} datagrams were lost, and the link accounts for {most} at most"
    return ""
