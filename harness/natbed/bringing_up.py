"""A scenario's tunnels, brought up by the implementation at both ends, started anew, and stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .scenario import Scenario
from .stacks.base import Daemons, StackError, Timing

UP_SECONDS = 40.0
RESPONDER_SECONDS = 5.0  # that a responder may be up, or know of an end, later than its initiator
_POLL = 0.005  # seconds between questions; a stack says nothing unasked


def bring_up(scenario: Scenario, daemons: Daemons) -> dict[str, float]:
    """Bring all tunnels up at once; the seconds that each took, by its name.

    Raises StackError with the first reason why one does not come up.
    """
    tunnels = scenario.tunnels()
    with ThreadPoolExecutor(len(tunnels)) as pool:
        waiting = {t.name: pool.submit(daemons[t.initiator].up, t.name, UP_SECONDS) for t in tunnels}
    seconds = {name: future.result() for name, future in waiting.items()}
    wanted = {(tunnel.responder, tunnel.name) for tunnel in tunnels}
    # An initiator is up with Quick Mode message 3 sent, a responder with it received.
    _await(lambda: sorted(wanted - _up(scenario, daemons)), "not up {} after the initiator")
    return seconds


def start_anew(scenario: Scenario, daemons: Daemons, timing: Timing) -> None:
    """End the initiators in order, start them with that timing, and bring all tunnels up again. Raises StackError."""
    names = dict.fromkeys(tunnel.initiator for tunnel in scenario.tunnels())
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: daemons[name].stop(), names))
        _await(lambda: sorted(_up(scenario, daemons)), "still up {} after the initiator's end")
        list(pool.map(lambda name: daemons[name].restart(timing), names))
    bring_up(scenario, daemons)


def stop_all(daemons: Daemons) -> list[str]:
    """Stop them, the last started first; what was wrong with each."""
    problems = []
    for daemon in reversed(list(daemons.values())):
        try:
            daemon.stop()
        except StackError as error:
            problems.append(str(error))
    return problems


def _up(scenario: Scenario, daemons: Daemons) -> set[tuple[str, str]]:
    """What is up at responders: host and tunnel."""
    responders = {tunnel.responder for tunnel in scenario.tunnels()}
    return {(host, status.name) for host in responders for status in daemons[host].status()}


def _await(left: Callable[[], list[tuple[str, str]]], complaint: str) -> None:
    """Wait until nothing is left. Raises StackError."""
    until = time.monotonic() + RESPONDER_SECONDS
    while found := left():
        if time.monotonic() > until:
            listed = ", ".join(f"{tunnel} on {host}" for host, tunnel in found)
            raise StackError(f"{complaint.format(f'{RESPONDER_SECONDS:g} s')}: {listed}")
        time.sleep(_POLL)
