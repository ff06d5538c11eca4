"""An implementation on every host of a lab, and its tunnels up."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from .lab import Lab
from .plans import Tunnel
from .stacks.base import Daemon, Daemons, HostSettings, Stack, StackError, Timing

UP_SECONDS = 40.0
RESPONDER_SECONDS = 5.0  # that a responder may be up, or know of an end, later than its initiator
_POLL = 0.005  # seconds between questions; a stack says nothing unasked


class EndedBadlyError(StackError):
    """An implementation that did not end in order on some host."""


@contextlib.contextmanager
def running(
    stack: Stack, lab: Lab, settings: Mapping[str, HostSettings], folder: pathlib.Path
) -> Iterator[dict[str, Daemon]]:
    """Daemons by host, each with a folder of evidence; stopped in order at the end, which is checked too.

    Raises EndedBadlyError with all that the daemons say of why, and the block's StackError where they end well.
    """
    daemons: dict[str, Daemon] = {}
    try:
        for name, host in settings.items():
            daemons[name] = stack.start(lab[name], host, folder / name)
        yield daemons
    except StackError as error:
        if problems := _stop(daemons):
            # one end may only have noticed that the other has died, which says why
            raise EndedBadlyError("; ".join([str(error), *problems])) from error
        raise
    except BaseException:
        _stop(daemons)
        raise
    if problems := _stop(daemons):
        raise EndedBadlyError("; ".join(problems))


def connect(tunnels: Sequence[Tunnel], daemons: Daemons) -> dict[str, float]:
    """Bring all tunnels up at once: the seconds of each. Raises StackError with the first reason why one does not."""
    with ThreadPoolExecutor(len(tunnels)) as pool:
        waiting = {t.name: pool.submit(daemons[t.initiator].up, t.name, UP_SECONDS) for t in tunnels}
    seconds = {name: future.result() for name, future in waiting.items()}
    wanted = {(tunnel.responder, tunnel.name) for tunnel in tunnels}
    # An initiator is up with Quick Mode message 3 sent, a responder with it received.
    _await(lambda: sorted(wanted - _up(tunnels, daemons)), "not up {} after the initiator")
    return seconds


def start_anew(tunnels: Sequence[Tunnel], daemons: Daemons, timing: Timing) -> None:
    """End the initiators in order, start them with that timing, and connect again. Raises StackError."""
    names = dict.fromkeys(tunnel.initiator for tunnel in tunnels)
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: daemons[name].stop(), names))
        _await(lambda: sorted(_up(tunnels, daemons)), "still up {} after the initiator's end")
        list(pool.map(lambda name: daemons[name].restart(timing), names))
    connect(tunnels, daemons)


def end_all(tunnels: Sequence[Tunnel], daemons: Daemons) -> None:
    """End all in order, responders last: nothing is left of what was. Raises StackError."""
    initiators = dict.fromkeys(tunnel.initiator for tunnel in tunnels)
    with ThreadPoolExecutor(len(daemons)) as pool:
        list(pool.map(lambda name: daemons[name].stop(), initiators))
        list(pool.map(lambda name: daemons[name].stop(), daemons.keys() - initiators))


def begin_all(tunnels: Sequence[Tunnel], daemons: Daemons, timing: Timing) -> dict[str, float]:
    """Start all that have ended, with that timing, and connect: the seconds of each tunnel. Raises StackError."""
    with ThreadPoolExecutor(len(daemons)) as pool:
        list(pool.map(lambda name: daemons[name].restart(timing), daemons))
    return connect(tunnels, daemons)


def _up(tunnels: Sequence[Tunnel], daemons: Daemons) -> set[tuple[str, str]]:
    """What is up at responders: host and tunnel."""
    return {(host, status.name) for host in {t.responder for t in tunnels} for status in daemons[host].status()}


def _await(left: Callable[[], list[tuple[str, str]]], complaint: str) -> None:
    """Wait until nothing is left. Raises StackError."""
    until = time.monotonic() + RESPONDER_SECONDS
    while found := left():
        if time.monotonic() > until:
            listed = ", ".join(f"{tunnel} on {host}" for host, tunnel in found)
            raise StackError(f"{complaint.format(f'{RESPONDER_SECONDS:g} s')}: {listed}")
        time.sleep(_POLL)


def _stop(daemons: Daemons) -> list[str]:
    """Stop them, the last started first; what was wrong with each."""
    problems = []
    for daemon in reversed(list(daemons.values())):
        try:
            daemon.stop()
        except StackError as error:
            problems.append(str(error))
    return problems
