"""SAs as the data plane is told of them."""

from __future__ import annotations

from .ike.child_sa import ChildSa
from .ike.policy import Connection, Rebinding
from .messages import AddSa, Direction

SOFT_HERE, SOFT_THERE = 0.85, 0.95  # of a pair's octets: then it is replaced, first of all by who began it


def add_sa(child: ChildSa, direction: Direction, connection: Connection) -> AddSa:
    """One half of a pair."""
    inbound = direction == Direction.INBOUND
    return AddSa(
        spi=child.inbound_spi if inbound else child.outbound_spi,
        direction=direction,
        suite=child.suite.name,
        keymat=child.inbound_keymat if inbound else child.outbound_keymat,
        path=child.path,
        encapsulation=child.encapsulation,
        selector=child.selector,
        policy=child.policy,
        mode=child.mode,
        soft_octets=int(child.octets * (SOFT_HERE if child.initiator else SOFT_THERE)),
        hard_octets=child.octets,
        mapped=child.mapped,
        rebinding=connection.rebinding == Rebinding.AUTHENTICATED,
    )
