"""A NAT proves itself: what it does is measured from outside before a verdict is based on it."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from natbed.checks import CheckResult, Verdict
from natbed.node_like import NodeLike

PROBE_PORT = 40_000  # the same on every client, so that their mappings must differ
REFLECTOR_PORT = 4_999
DEADLINE = 2.0  # seconds


def check_translation(
    clients: Sequence[tuple[NodeLike, str]], server: NodeLike, server_address: str, public_address: str | None
) -> CheckResult:
    """Send one datagram from each client (node, address) and look at what reaches the server.

    `public_address` is what the server must see in place of every client's; None where nothing may be translated. Two
    clients never share a source port there. LAB_BROKEN when the network is not what was declared, or cannot be used.
    """
    try:
        return _translation(clients, server, server_address, public_address)
    except OSError as error:
        return _broken(f"no datagram could be sent or received: {error}")


def _translation(
    clients: Sequence[tuple[NodeLike, str]], server: NodeLike, server_address: str, public_address: str | None
) -> CheckResult:
    reflector = server.call(lambda: _bound(server_address, REFLECTOR_PORT))
    seen: dict[str, tuple[str, int]] = {}
    with reflector:
        for node, address in clients:
            probe = node.call(lambda where=address: _bound(where, PROBE_PORT))  # type: ignore[misc]
            with probe:
                probe.sendto(node.name.encode(), (server_address, REFLECTOR_PORT))
                try:
                    data, source = reflector.recvfrom(64)
                except TimeoutError:
                    return _broken(f"nothing from {node.name} reached the server within {DEADLINE:g} s")
            seen[data.decode(errors="replace")] = source
    for node, address in clients:
        if node.name not in seen:
            return _broken(f"the server saw {seen}, nothing from {node.name}")
        expected = public_address or address
        if seen[node.name][0] != expected:
            return _broken(f"{node.name} shows as {seen[node.name][0]}, declared was {expected}")
    if len(set(seen.values())) != len(seen):
        return _broken(f"clients share a mapping: {seen}")
    what = f"all clients show as {public_address}" if public_address else "nothing is translated"
    details = {"seen": {name: f"{host}:{port}" for name, (host, port) in seen.items()}}
    return CheckResult(name="NAT", verdict=Verdict.PASSED, reason=what, details=details)


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
