"""Tunnels that are begun anew while the way of the first of them is impaired, and what they are good for then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from .checks import CheckResult, Verdict
from .checks.impaired import NAME, check_impaired
from .checks.sa_pairs import RekeyTarget
from .impairments.base import Impairment
from .impairments.link import ImpairedLink
from .impairments.names import parse_impairment
from .lab import Lab, LabError
from .scenario import Scenario
from .stacks.base import Daemons, StackError, Timing
from .tunnels import begin_all, end_all


def asked(scenario: Scenario, words: str) -> tuple[str, str, Impairment]:
    """The Internet, who has its link on the first initiator's side, and what is to happen there both ways.

    Raises ImpairmentNameError for what is no impairment, and LabError where there is no such link.
    """
    if scenario.internet_name is None or not scenario.tunnels():
        raise LabError("the scenario has no tunnel over an Internet, whose link could be impaired")
    initiator = scenario.tunnels()[0].initiator
    routers = scenario.routers_before(initiator)
    return parse_impairment(f"{scenario.internet_name} {routers[-1].name if routers else initiator} {words}")


def judge_impaired(
    lab: Lab, daemons: Daemons, target: Callable[[], RekeyTarget], words: str, timing: Timing, *, one_flow: bool
) -> CheckResult:
    """End all in order, impair, begin again with that timing, and use the first tunnel, which `target` finds then.

    Ended before: the word of an end is not repeated when it is lost. IKE must come through by its own repetitions.
    Raises StackError, and what an impairment raises that cannot be made or does not prove itself.
    """
    internet, neighbour, impairment = asked(lab.scenario, words)
    tunnels, what = lab.scenario.tunnels(), f"{words} between {internet} and {neighbour}"
    end_all(tunnels, daemons)
    with contextlib.ExitStack() as stack:
        ways = ((internet, neighbour), (neighbour, internet))
        records = [stack.enter_context(ImpairedLink(lab, *way, impairment)) for way in ways]
        try:
            seconds = begin_all(tunnels, daemons, timing)
        except StackError as error:
            return CheckResult(name=NAME, verdict=Verdict.FAILED, reason=f"{what}: {error}")
        found = check_impaired(target(), impairment, what=what, one_flow=one_flow)
    details = {**found.details, "links": msgspec.to_builtins(records), "connect_seconds": seconds}
    return msgspec.structs.replace(found, details=details)
