"""What NAT traversal costs by its method, computed: keepalives an hour, and octets of each packet."""

from __future__ import annotations

from dataclasses import dataclass

from .record import KeepaliveCost

HOUR = 3600.0  # seconds
IP_HEADER, UDP_HEADER, MARKER = 20, 8, 8  # octets
KEEPALIVE = IP_HEADER + UDP_HEADER + 1  # octets: 0xFF (the draft, 4.3; RFC 3948, 2.3)


@dataclass(frozen=True, slots=True)
class Method:
    """Which mappings a tunnel needs, and how many of them see no traffic while ESP passes.

    `esp` and `ike` are the octets of each packet beyond those of plain ESP, and of IKE on port 500.
    """

    name: str
    mappings: int
    quiet: int
    esp: int
    ike: int


ONE_PORT = Method("500 alone (this draft)", mappings=1, quiet=0, esp=UDP_HEADER + MARKER, ike=0)
TWO_PORTS = Method("two ports (draft, 6.2)", mappings=2, quiet=1, esp=UDP_HEADER, ike=0)
RFC_3948 = Method("4500 alone (RFC 3948)", mappings=1, quiet=0, esp=UDP_HEADER, ike=4)
METHODS = (ONE_PORT, TWO_PORTS, RFC_3948)


def keepalive_cost(method: Method, interval: float) -> KeepaliveCost:
    """An hour of keepalives, each `interval` seconds: of an idle tunnel, and of one with ESP in every interval.

    Only mappings that see no traffic need them (the draft, 4.3); IKE's own traffic "is usually infrequent" (6.2).
    """
    each = HOUR / interval
    return KeepaliveCost(
        method=method.name,
        interval=interval,
        idle_packets=each * method.mappings,
        idle_octets=each * method.mappings * KEEPALIVE,
        busy_packets=each * method.quiet,
        busy_octets=each * method.quiet * KEEPALIVE,
    )


def break_even(interval: float) -> float:
    """ESP packets an hour at which the marker's 8 octets cost as much as a second mapping's keepalives."""
    return HOUR / interval * KEEPALIVE / MARKER
