"""Can a responder still rekey when nothing has passed for longer than the NATs remember: with keepalives, and without.

The draft (3.2) says why there are keepalives: "otherwise rekey from the responder will fail". So both are looked at.
With them each NAT holds its mapping all the while, and the responder rekeys Quick Mode and phase 1 "to the same
destination" (5). Without them a many:1 NAT forgets the initiator behind it, and drops what the responder then sends: no
SA is made and none is harmed, until the initiator "begins the above process over again" (5). Where no NAT stands before
the initiator, or only such as let anybody in, the responder's own packets open the way, and it need not be kept.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from natbed.checks import PATTERN, CheckResult, Verdict
from natbed.conntrack import Mapping as NatMapping
from natbed.stacks.base import StackError

from .flows import End, FlowError, LabError, receive
from .sa_pairs import RekeyTarget, Step, await_replaced, pairs, spis

T = TypeVar("T")
Found = Mapping[str, Mapping[str, NatMapping]]  # by tunnel, by NAT

KEEPALIVE = 0.5  # seconds between keepalives; on a busy machine one may be two seconds late
KEPT = 3  # seconds after which a NAT forgets, while keepalives hold its mappings
FORGOTTEN = 1  # the same, where nothing holds them
KEPT_NAME, FORGOTTEN_NAME = "idle", "idle without keepalives"
_LONGER = 0.5  # seconds of idleness beyond the timeout
_SETTLE_SECONDS = 15.0  # for other traffic to end, for timeouts to take, for mappings to end
_ARRIVAL_SECONDS = 5.0  # for a datagram, for an end's status, for what a NAT has dropped
_REKEY_SECONDS = 15.0
_UNANSWERED_SECONDS = 1.2  # that a rekey may stay without an answer: the first message and one repetition
_REPEATED = 2  # messages of a rekey that a NAT must have dropped by then
_TRIES = 2  # of all that is to come nowhere; an initiator that speaks meanwhile has undone what was made ready
_LOOK = 0.1  # seconds between looks at conntrack
_KEEPALIVE_OCTETS = 29  # IP header, UDP header, 0xFF
_STEPS = (Step("responder", phase1=False), Step("responder", phase1=True))
_ANEW = Step("initiator", phase1=True)


class InitiatorSpokeError(FlowError):
    """Something came from the initiator's side although all was to be idle, and so the NAT has a mapping again."""


@dataclass(frozen=True, slots=True)
class IdleTunnel:
    """A tunnel to leave idle. `nats` translate on its way.

    `forgets` is the one among them that no longer lets the responder in once its mapping is gone, "" where none does.
    """

    target: RekeyTarget
    nats: tuple[str, ...]
    forgets: str

    @property
    def name(self) -> str:
        """The tunnel's."""
        return self.target.name


class Nats(Protocol):
    """The NATs on the tunnels' ways."""

    def forgetting_after(self, seconds: int) -> AbstractContextManager[None]:
        """For as long as the block lasts each forgets a mapping that idle; one takes that with its next packet."""

    def mappings(self) -> Found:
        """Of each tunnel, what each NAT on its way holds now; one that holds nothing is missing."""

    def refused(self) -> Mapping[str, int]:
        """How many UDP packets from outside each has dropped that were for no mapping."""


def check_kept(tunnels: Sequence[IdleTunnel], nats: Nats, *, one_flow: bool, timeout: int = KEPT) -> CheckResult:
    """All tunnels at once, their initiators sending keepalives: idle beyond `timeout` seconds, then rekeyed.

    FAILED when a NAT loses its mapping, for a rekey that does not work, and for traffic that does not pass after it.
    LAB_BROKEN when a NAT holds a mapping beyond its timeout although nothing passed.
    """
    details: dict[str, Any] = {"timeout_seconds": timeout}

    def judge() -> str:
        with nats.forgetting_after(timeout):
            _in_parallel(tunnels, lambda one: _talk(one.target, one_flow=one_flow))
            _await_timeouts(nats, timeout)
            details["idle_seconds"], details["keepalives"] = _keep_idle(tunnels, nats, timeout)
            before = nats.mappings()
            rekeys = _in_parallel(tunnels, lambda one: [_rekey(one.target, step) for step in _STEPS])
            details["rekeys"] = rekeys
            _hold(tunnels, before, nats.mappings(), "while the responder rekeyed")
        details["spis"] = [spi for done in rekeys.values() for spi in done[-1]["spis"]]
        _in_parallel(tunnels, lambda one: _talk(one.target, one_flow=one_flow, answered_first=not one_flow))
        count = sum(map(len, rekeys.values()))
        kept = f"{sum(details['keepalives'].values())} keepalives held the mappings"
        held = kept if any(before.values()) else "no NAT that could forget"
        return f"{details['idle_seconds']:.1f} s, timeout {timeout} s: {held}, {count} rekeys by responders worked"

    return _conclude(KEPT_NAME, tunnels, judge, details)


def check_forgotten(
    tunnels: Sequence[IdleTunnel], nats: Nats, *, one_flow: bool, timeout: int = FORGOTTEN
) -> CheckResult:
    """All tunnels at once, their initiators sending nothing of their own accord: idle until no mapping is left.

    FAILED when a rekey by the responder works where the NAT before the initiator forgets, or does not where it does
    not; when it is not heard of there; when it harms the SAs; and when the initiator's phase 1 does not mend all.
    LAB_BROKEN when a NAT does not forget although nothing passed. Where an initiator's side speaks by itself once the
    NAT has forgotten it, all is done once more, and `spoke` in the details says so.
    """
    details: dict[str, Any] = {"timeout_seconds": timeout}
    cut_off = [one for one in tunnels if one.forgets]
    reachable = [one for one in tunnels if not one.forgets]

    def judge() -> str:
        _in_parallel(tunnels, lambda one: _talk(one.target, one_flow=one_flow))
        with nats.forgetting_after(timeout):
            for tries_left in reversed(range(_TRIES)):
                # one way only: on a busy machine an echo may be late enough to find no mapping
                _in_parallel(tunnels, lambda one: _knock(one.target))
                _await_timeouts(nats, timeout)
                details["idle_seconds"] = _await_forgotten(nats, timeout)
                try:
                    details["refused"] = _try_all_in_vain(cut_off, nats)
                    break
                except InitiatorSpokeError as error:
                    if not tries_left:
                        raise
                    details["spoke"] = str(error)
                    _in_parallel(cut_off, lambda one: _rekey(one.target, _ANEW))
            details["rekeys"] = _in_parallel(reachable, lambda one: [_rekey(one.target, step) for step in _STEPS])
        details["mended"] = _in_parallel(cut_off, lambda one: _rekey(one.target, _ANEW))
        _in_parallel(tunnels, lambda one: _talk(one.target, one_flow=one_flow, answered_first=not one_flow))
        return "; ".join(_summary(details, cut_off, reachable))

    return _conclude(FORGOTTEN_NAME, tunnels, judge, details)


def _summary(details: dict[str, Any], cut_off: Sequence[IdleTunnel], reachable: Sequence[IdleTunnel]) -> list[str]:
    said = []
    if cut_off:
        nats = " and ".join(sorted({one.forgets for one in cut_off}))
        slowest = max(done["milliseconds"] for done in details["mended"].values())
        if "spoke" in details:
            said.append(f"once more, since at first {details['spoke']}")
        said.append(
            f"{nats} forgot and let no rekey by a responder in; the initiator's phase 1 mended all, {slowest:.0f} ms"
        )
    if reachable:
        count = sum(map(len, details["rekeys"].values()))
        said.append(f"{count} rekeys by responders worked, as no NAT before the initiator shuts them out")
    return said


def _conclude(
    name: str, tunnels: Sequence[IdleTunnel], judge: Callable[[], str], details: dict[str, Any]
) -> CheckResult:
    verdict = Verdict.PASSED
    try:
        if not tunnels:
            raise LabError("there is no tunnel to leave idle")
        reason = judge()
    except LabError as error:
        verdict, reason = Verdict.LAB_BROKEN, str(error)
    except (FlowError, StackError) as error:
        verdict, reason = Verdict.FAILED, str(error)
    return CheckResult(name=name, verdict=verdict, reason=reason, details=details)


def _in_parallel(tunnels: Sequence[IdleTunnel], work: Callable[[IdleTunnel], T]) -> dict[str, T]:
    """Do it for all at once; the results by tunnel. Raises the first one's error, named."""
    if not tunnels:
        return {}
    with ThreadPoolExecutor(len(tunnels), thread_name_prefix="idle") as pool:
        running = {one.name: pool.submit(work, one) for one in tunnels}
    done = {}
    for name, future in running.items():
        try:
            done[name] = future.result()
        except InitiatorSpokeError as error:
            raise InitiatorSpokeError(f"{name}: {error}") from error
        except (FlowError, StackError) as error:
            raise FlowError(f"{name}: {error}") from error
    return done


# what passes


def _talk(target: RekeyTarget, *, one_flow: bool, answered_first: bool = False) -> None:
    """A datagram and its echo, begun by the client, with `answered_first` by the server. Raises `FlowError`."""
    client, server = _ends(target)
    begin, end = (server, client) if answered_first else (client, server)
    with end.open(socket.SOCK_DGRAM) as far, begin.open(socket.SOCK_DGRAM) as near:
        there = (end.seen, far.getsockname()[1])
        stage = f"a datagram from {begin} did not come to {end}"
        try:
            near.sendto(PATTERN, there)
            far.settimeout(_ARRIVAL_SECONDS)
            # through a NAT in transport mode the client's port is one of its own choice
            _, back = far.recvfrom(1 << 16)
            stage = f"a datagram from {begin} came to {end}, but its echo not back"
            far.sendto(PATTERN, back)
            receive(near, PATTERN, there, _ARRIVAL_SECONDS)
        except OSError as error:
            raise FlowError(f"{stage} ({error})") from error


def _knock(target: RekeyTarget) -> None:
    """A datagram from the client, which nothing answers. Raises `FlowError`."""
    client, server = _ends(target)
    with server.open(socket.SOCK_DGRAM) as far, client.open(socket.SOCK_DGRAM) as near:
        far.settimeout(_ARRIVAL_SECONDS)
        try:
            near.sendto(PATTERN, (server.seen, far.getsockname()[1]))
            far.recv(1 << 16)
        except OSError as error:
            raise FlowError(f"a datagram from {client} did not come to {server} ({error})") from error


def _ends(target: RekeyTarget) -> tuple[End, End]:
    client = End(target.client, target.client_address, target.client_seen)
    return client, End(target.server, target.server_address, target.server_seen)


# what the NATs hold


def _await_timeouts(nats: Nats, timeout: int) -> None:
    """Wait until no mapping would outlast the timeout. Raises `LabError`."""
    until = time.monotonic() + _SETTLE_SECONDS
    while longest := [
        (name, nat, one.seconds)
        for name, held in nats.mappings().items()
        for nat, one in held.items()
        if one.seconds > timeout
    ]:
        if time.monotonic() > until:
            name, nat, seconds = longest[0]
            raise LabError(f"{name}: {nat} would hold its mapping for {seconds} s more; its timeout is {timeout} s")
        time.sleep(_LOOK)


def _keep_idle(tunnels: Sequence[IdleTunnel], nats: Nats, timeout: int) -> tuple[float, dict[str, int]]:
    """Wait until nothing but keepalives has passed for longer than the timeout: how long, and how many, by tunnel.

    Raises `FlowError` when a mapping is lost, `LabError` when one is held that nothing has used.
    """
    was, begin = nats.mappings(), time.monotonic()
    until = begin + timeout + _SETTLE_SECONDS
    _hold(tunnels, {}, was, "before it was idle")
    while True:
        time.sleep(_LOOK)
        looked, now = time.monotonic(), nats.mappings()
        _hold(tunnels, was, now, f"after {looked - begin:.1f} s in which nothing but keepalives was to pass")
        passed = _passed(was, now)
        if any(octets != packets * _KEEPALIVE_OCTETS for packets, octets in passed.values()):
            if looked > until:
                name, (packets, octets) = next(iter(passed.items()))
                raise LabError(f"{name} is never idle: {packets} packets of {octets} octets passed")
            was, begin = now, time.monotonic()
        elif looked - begin > timeout + _LONGER:
            for name, (packets, _) in passed.items():
                if not packets:
                    raise LabError(
                        f"{name}: nothing passed for {looked - begin:.1f} s, and a NAT still has its mapping"
                    )
            return round(looked - begin, 2), {name: packets for name, (packets, _) in passed.items()}


def _passed(was: Found, now: Found) -> dict[str, tuple[int, int]]:
    """Packets and octets since then, by tunnel: the most that any NAT on its way has seen less the fewest, or more."""
    passed = {}
    for name, held in now.items():
        grown = [
            (one.packets - was[name][nat].packets, one.octets - was[name][nat].octets) for nat, one in held.items()
        ]
        if grown:
            passed[name] = max(grown, key=lambda pair: pair[1])
    return passed


def _hold(tunnels: Sequence[IdleTunnel], was: Found, now: Found, when: str) -> None:
    """See that each NAT has its mapping, and the same as before where there was one. Raises `FlowError`."""
    for tunnel in tunnels:
        for nat in tunnel.nats:
            before, after = was.get(tunnel.name, {}).get(nat), now.get(tunnel.name, {}).get(nat)
            what = f"{tunnel.name}: {nat} lost the mapping"
            if before is not None:
                what += f" {before.public[0]}:{before.public[1]} of {before.inside[0]}:{before.inside[1]}"
            if after is None:
                raise FlowError(f"{what} {when}: no keepalive held it")
            if before is not None and (after.identifier != before.identifier or after.packets < before.packets):
                raise FlowError(f"{what} {when}: there is another one in its place")


def _await_forgotten(nats: Nats, timeout: int) -> float:
    """Wait until no NAT has a mapping of any tunnel; the seconds. Raises `LabError`; `FlowError` when one is used."""
    was, begin = nats.mappings(), time.monotonic()
    first = was
    until = begin + timeout + _SETTLE_SECONDS
    while left := {name: held for name, held in was.items() if held}:
        if time.monotonic() > until:
            name, held = next(iter(left.items()))
            nat, one = next(iter(held.items()))
            more = one.packets - first[name][nat].packets if nat in first.get(name, {}) else one.packets
            if more:
                raise FlowError(
                    f"{name}: {more} packets passed {nat} though keepalives and dead peer detection are off"
                )
            raise LabError(f"{name}: {nat} still has its mapping, though nothing passed; its timeout is {timeout} s")
        time.sleep(_LOOK)
        was = nats.mappings()
    return round(time.monotonic() - begin, 2)


# rekeys


def _rekey(target: RekeyTarget, step: Step) -> dict[str, Any]:
    """One that must work, and show at both ends. Raises `FlowError` or `StackError`."""
    before = pairs(target)
    try:
        seconds = step.take(target, _REKEY_SECONDS)
        after = await_replaced(target, before, _ARRIVAL_SECONDS)
    except (FlowError, StackError) as error:
        raise FlowError(f"{step}: {error}") from error
    return {"step": str(step), "milliseconds": round(seconds * 1000, 1), "spis": spis(after)}


def _try_all_in_vain(tunnels: Sequence[IdleTunnel], nats: Nats) -> dict[str, Any]:
    """Every rekey by the responders, none of which may come through or harm anything: what became of each.

    Raises `FlowError`.
    """
    before = {one.name: pairs(one.target) for one in tunnels}
    refused = {str(step): _try_in_vain(tunnels, nats, step) for step in _STEPS}
    for one in tunnels:
        _unharmed(one, before[one.name])
    return refused


def _try_in_vain(tunnels: Sequence[IdleTunnel], nats: Nats, step: Step) -> dict[str, Any]:
    """One that must not get past the NATs: what the responders say, and how many messages each NAT dropped."""
    before = nats.refused()
    said = _in_parallel(tunnels, lambda one: _unanswered(one, nats, step))
    until = time.monotonic() + _ARRIVAL_SECONDS
    while True:
        dropped = {nat: count - before[nat] for nat, count in nats.refused().items()}
        missing = [one for one in tunnels if dropped[one.forgets] < _REPEATED * _initiators(tunnels, one.forgets)]
        if not missing:
            break
        if time.monotonic() > until:
            one = missing[0]
            raise FlowError(f"{one.name}: {step}: only {dropped[one.forgets]} of its messages came to {one.forgets}")
        time.sleep(_LOOK)
    held = nats.mappings()
    for one in tunnels:
        mapping = held.get(one.name, {}).get(one.forgets)
        if mapping is not None and mapping.forwarded:
            raise FlowError(f"{one.name}: {step}: {one.forgets} let the responder in")
        if mapping is not None:
            raise InitiatorSpokeError(f"{one.name}: {step}: {_spoke(one)}")
    return {"said": said, "dropped": {nat: count for nat, count in dropped.items() if count}}


def _initiators(tunnels: Sequence[IdleTunnel], nat: str) -> int:
    return len({id(one.target.initiator) for one in tunnels if one.forgets == nat})


def _unanswered(tunnel: IdleTunnel, nats: Nats, step: Step) -> str:
    try:
        step.take(tunnel.target, _UNANSWERED_SECONDS)
    except StackError as error:
        return str(error)
    mapping = nats.mappings().get(tunnel.name, {}).get(tunnel.forgets)
    if mapping is not None and not mapping.forwarded:
        raise InitiatorSpokeError(f"{step}: {_spoke(tunnel)}")
    raise FlowError(f"{step}: it worked, though {tunnel.forgets} had forgotten the mapping")


def _spoke(tunnel: IdleTunnel) -> str:
    return f"{tunnel.forgets} has a mapping again, since the initiator's side spoke though all was to be idle"


def _unharmed(tunnel: IdleTunnel, before: Sequence[Any]) -> None:
    now = pairs(tunnel.target)
    if spis(now) != spis(before) or len(now) != len(before):
        was, are = ", ".join(spis(before)), ", ".join(spis(now)) or "none"
        raise FlowError(f"{tunnel.name}: the responder's rekeys came nowhere, yet its SAs were {was} and are {are}")
