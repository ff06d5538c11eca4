"""What a phase 1 SA and the connections of one peer have to do with each other."""

from __future__ import annotations

from .ike_sa import IkeSa
from .nat_traversal import NatStatus
from .policy import Connection, EncapsulationPolicy


def siblings(one: Connection, other: Connection) -> bool:
    """Whether one phase 1 can serve both connections: the same peer, known by the same means."""

    def phase1_of(c: Connection) -> tuple[object, ...]:
        return (
            c.remote,
            c.remote_port,
            c.local_identity,
            c.remote_identity,
            c.secret,
            c.credentials,
            c.exchange,
            c.authentication,
            c.ike_suites,
        )

    return phase1_of(one) == phase1_of(other)


def serves(sa: IkeSa, connection: Connection) -> bool:
    """Whether an established phase 1 may make pairs for a connection."""
    return sa.connection.name == connection.name or any(c.name == connection.name for c in sa.candidates)


def needs_keepalives(sa: IkeSa) -> bool:
    """Whether anything between may forget the path: a NAT, or what a policy of encapsulation "always" suspects."""
    forced = sa.connection.encapsulation == EncapsulationPolicy.ALWAYS
    return sa.nat == NatStatus.DETECTED or (forced and sa.peer_knows_method)
