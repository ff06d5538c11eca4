"""A lab's NATs are measured from the inside before a cell relies on them, and compared with what was declared."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from natbed.checks import CheckResult, Verdict
from natbed.node_like import NodeLike

from .fingerprint import FingerprintError, Open, Surveyor, opener
from .profile import Kind, NatProfile
from .reflector import Reflector
from .timeouts import measure_timeouts

PATIENCE = 0.05  # seconds that a packet may take through a lab, which has no impairments yet
PORTS = (4_996, 4_997)
NAME = "NAT behaviour"


@dataclass(frozen=True, slots=True)
class Subject:
    """One NAT: its name, what was declared, one or two inside hosts with their addresses, and what is outside.

    `addresses` are two of the `outside` node's own.
    """

    name: str
    profile: NatProfile
    inside: tuple[tuple[NodeLike, str], ...]
    outside: NodeLike
    addresses: tuple[str, str]


def check_behaviour(subjects: Sequence[Subject], *, timeouts: bool = False, patience: float = PATIENCE) -> CheckResult:
    """Measure mapping, filtering and port assignment of each; with `timeouts` these too, which takes so long.

    LAB_BROKEN where one is not what was declared, or cannot be measured. What has a quirk is not measured: it breaks
    these rules, and proves itself otherwise.
    """
    begin = time.monotonic()
    measured: dict[str, dict[str, str]] = {}
    for subject in subjects:
        if subject.profile.quirk is not None:
            continue
        try:
            found = _measure(subject, timeouts, patience)
        except (FingerprintError, OSError) as error:
            return CheckResult(name=NAME, verdict=Verdict.LAB_BROKEN, reason=f"{subject.name}: {error}")
        measured[subject.name] = found
        declared = _declared(subject.profile, timeouts)
        if wrong := [key for key in found if found[key] != declared[key]]:
            listed = "; ".join(f"{key}: declared {declared[key]}, measured {found[key]}" for key in wrong)
            reason = f"{subject.name} is not {subject.profile.name}: {listed}"
            return CheckResult(name=NAME, verdict=Verdict.LAB_BROKEN, reason=reason, details={"measured": measured})
    what = ", ".join(f"{name}: {'/'.join(found.values())}" for name, found in measured.items())
    return CheckResult(
        name=NAME,
        verdict=Verdict.PASSED,
        reason=what or "no NAT to measure",
        details={"measured": measured, "seconds": round(time.monotonic() - begin, 3)},
    )


def _measure(subject: Subject, timeouts: bool, patience: float) -> dict[str, str]:
    hosts = [opener_on(node, address) for node, address in subject.inside]
    with subject.outside.call(lambda: Reflector(subject.addresses, PORTS)) as reflector:
        server = (subject.addresses[0], reflector.ports[0])
        surveyor = Surveyor(hosts[0], server, patience, second=hosts[1] if len(hosts) > 1 else None)
        mapping, filtering, ports = surveyor.behaviour()
        found = {"mapping": str(mapping), "filtering": str(filtering), "ports": str(ports)}
        if timeouts and subject.profile.kind is Kind.MASQUERADE:
            longest = max(subject.profile.udp_timeout, subject.profile.udp_timeout_stream) + 1
            unreplied, replied = measure_timeouts(hosts[0], server, patience, longest)
            found["udp_timeout"], found["udp_timeout_stream"] = str(unreplied.seconds), str(replied.seconds)
    return found


def _declared(profile: NatProfile, timeouts: bool) -> dict[str, str]:
    declared = {"mapping": str(profile.mapping), "filtering": str(profile.filtering), "ports": str(profile.ports)}
    if timeouts:
        declared["udp_timeout"] = str(profile.udp_timeout)
        declared["udp_timeout_stream"] = str(profile.udp_timeout_stream)
    return declared


def opener_on(node: NodeLike, address: str) -> Open:
    """Opens sockets on an inside host of a lab, at this address of its own."""

    def make(port: int) -> socket.socket:
        return node.call(lambda: opener(address)(port))

    return make
