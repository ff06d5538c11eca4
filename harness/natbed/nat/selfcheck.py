"""A NAT proves itself: what it does is measured from outside before a verdict is based on it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from natbed.checks import CheckResult, Verdict
from natbed.node_like import NodeLike

PROBE_PORT = 40_000  # the same on every client, so that their mappings must differ
REFLECTOR_PORT = 4_999
DEADLINE = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Probe:
    """One datagram: from a node and its address, to a `reflector` node's address, by the address that is `dialed`.

    `expected` is the source that the reflector must see, None where nothing may be translated. `through` are the NATs
    that this proves, for people.
    """

    node: NodeLike
    address: str
    reflector: NodeLike
    reflector_address: str
    dialed: str
    expected: str | None
    through: str = ""


def check_translation(
    clients: Sequence[tuple[NodeLike, str]], server: NodeLike, server_address: str, public_address: str | None
) -> CheckResult:
    """Send one datagram from each client (node, address) and look at what reaches the server.

    `public_address` is what the server must see in place of every client's; None where nothing may be translated.
    """
    return check_probes(
        [Probe(node, address, server, server_address, server_address, public_address) for node, address in clients]
    )


def check_probes(probes: Sequence[Probe]) -> CheckResult:
    """Send each probe and look at what reaches its reflector. Two clients never share a source port there.

    LAB_BROKEN when the network is not what was declared, or cannot be used.
    """
    reflectors: dict[tuple[str, str], list[Probe]] = {}
    for probe in probes:
        reflectors.setdefault((probe.reflector.name, probe.reflector_address), []).append(probe)
    seen: dict[str, str] = {}
    for group in reflectors.values():
        try:
            problem, found = _translation(group)
        except OSError as error:
            return _broken(f"no datagram could be sent or received: {error}")
        if problem:
            return _broken(problem)
        # a client that probes several NATs is listed with what each of them makes of it
        for probe in group:
            host, port = found[probe.node.name]
            key = probe.node.name if probe.node.name not in seen else f"{probe.node.name} at {probe.reflector.name}"
            seen[key] = f"{host}:{port}"
    expected = sorted({probe.expected for probe in probes if probe.expected})
    what = f"all clients show as {', '.join(expected)}" if expected else "nothing is translated"
    return CheckResult(name="NAT", verdict=Verdict.PASSED, reason=what, details={"seen": seen})


def _translation(probes: Sequence[Probe]) -> tuple[str, dict[str, tuple[str, int]]]:
    """Of probes to one reflector: what is not as declared, or nothing, and what it saw."""
    where, what = probes[0].reflector, probes[0].reflector_address
    reflector = where.call(lambda: _bound(what, REFLECTOR_PORT))
    seen: dict[str, tuple[str, int]] = {}
    with reflector:
        for one in probes:
            probe = one.node.call(lambda where=one.address: _bound(where, PROBE_PORT))  # type: ignore[misc]
            with probe:
                probe.sendto(one.node.name.encode(), (one.dialed, REFLECTOR_PORT))
                try:
                    data, source = reflector.recvfrom(64)
                except TimeoutError:
                    return f"nothing from {one.node.name} reached {_the(where)} within {DEADLINE:g} s", seen
            seen[data.decode(errors="replace")] = source
    for one in probes:
        name = one.node.name
        if name not in seen:
            return f"{_the(where)} saw {seen}, nothing from {name}", seen
        expected = one.expected or one.address
        if seen[name][0] != expected:
            through = f" behind {one.through}" if one.through else ""
            return f"{name} shows as {seen[name][0]}{through}, declared was {expected}", seen
    if len(set(seen.values())) != len(seen):
        return f"clients share a mapping: {seen}", seen
    return "", seen


def _the(reflector: NodeLike) -> str:
    return "the server" if reflector.name == "server" else reflector.name


def _bound(address: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        bound.settimeout(DEADLINE)
        bound.bind((address, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _broken(reason: str) -> CheckResult:
    return CheckResult(name="NAT", verdict=Verdict.LAB_BROKEN, reason=reason)
