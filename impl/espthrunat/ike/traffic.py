"""Quick Mode's identities: which traffic an SA is for (RFC 2407, 4.6.2; RFC 2409, 5.5; the draft, 4.3 and 5).

In tunnel mode they are the networks. In transport mode the traffic is that of the two hosts, whose addresses Main Mode
has shown; behind a NAT names stand in their place, and nobody compares them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace

from ..messages import Mode, Selector
from ..wire.payloads import Identification, IdType
from .ike_sa import IkeSa
from .nat_traversal import NatStatus
from .policy import Connection

_HOST_TO_HOST = Identification(IdType.IPV4_ADDR, bytes(4))  # what it means to send no identities (RFC 2409, 5.5)


def payload_of(network: str, protocol: int = 0, port: int = 0) -> Identification:
    """The ID payload of a network; a single address travels as an address. 0 is any protocol or port."""
    parsed = ipaddress.IPv4Network(network)
    if parsed.prefixlen == 32:
        return Identification(IdType.IPV4_ADDR, parsed.network_address.packed, protocol, port)
    data = parsed.network_address.packed + parsed.netmask.packed
    return Identification(IdType.IPV4_ADDR_SUBNET, data, protocol, port)


def network_of(payload: Identification) -> str | None:
    """The network that an ID payload names, "10.0.0.0/24"; None if it names none."""
    if payload.id_type == IdType.IPV4_ADDR:
        return f"{ipaddress.IPv4Address(payload.data)}/32"
    if payload.id_type == IdType.IPV4_ADDR_SUBNET:
        address, mask = ipaddress.IPv4Address(payload.data[:4]), ipaddress.IPv4Address(payload.data[4:])
        try:
            network = ipaddress.IPv4Network(f"{address}/{mask}")
        except ValueError:
            return None
        return str(network) if network.netmask == mask else None  # a wildcard mask is no netmask
    return None


def own_selector(sa: IkeSa, connection: Connection) -> Selector:
    """The traffic of an SA that is begun here."""
    if connection.mode == Mode.TUNNEL:
        return connection.selector
    configured = next((c for c in sa.candidates if c.name == connection.name), connection)
    uncertain = sa.nat == NatStatus.DETECTED and configured.remote is None
    return _between_hosts(sa, connection, 0 if uncertain else connection.selector.remote_port)


def identities(sa: IkeSa, connection: Connection) -> list[Identification]:
    """IDci and IDcr of a Quick Mode that is begun here.

    In transport mode an address stands only where it is real: where discovery has found a NAT, both ends are named as
    they were in phase 1 (the draft, 4.3).
    """
    wanted = connection.selector
    local = payload_of(wanted.local if connection.mode == Mode.TUNNEL else f"{sa.path.local}/32")
    remote = payload_of(wanted.remote if connection.mode == Mode.TUNNEL else f"{sa.path.remote}/32")
    if connection.mode == Mode.TRANSPORT and sa.nat == NatStatus.DETECTED:
        assert sa.identity is not None
        local, remote = connection.local_identity.to_payload(), sa.identity.to_payload()
    return [
        replace(local, protocol=wanted.protocol, port=wanted.local_port),
        replace(remote, protocol=wanted.protocol, port=wanted.remote_port),
    ]


def allowed_selector(sa: IkeSa, connection: Connection, asked: Sequence[Identification]) -> Selector | None:
    """The traffic of an SA that the peer begins with these identities; None where the connection has other traffic."""
    if connection.mode == Mode.TUNNEL:
        if len(asked) != 2:
            return None
        there, here = asked
        same = (
            network_of(here) == connection.selector.local
            and network_of(there) == connection.selector.remote
            and _exactly(connection, asked)
        )
        return connection.selector if same else None
    there, here = asked or (_HOST_TO_HOST, _HOST_TO_HOST)
    wanted = connection.selector
    if not (here.protocol == there.protocol == wanted.protocol and _ports_fit(sa, connection, here.port, there.port)):
        return None
    if sa.nat != NatStatus.DETECTED:
        return _between_hosts(sa, connection, wanted.remote_port)
    certain = connection.remote is not None and there.port == wanted.remote_port
    return _between_hosts(sa, connection, wanted.remote_port if certain else 0)


def by_fit(connections: Sequence[Connection], asked: Sequence[Identification]) -> list[Connection]:
    """Connections, those first whose protocol and ports are exactly what the peer asks for."""
    return sorted(connections, key=lambda connection: not (len(asked) == 2 and _exactly(connection, asked)))


def describe(asked: Sequence[Identification]) -> str:
    """What a peer asks for, for messages, seen from here."""
    there, here = (_describe_end(payload) for payload in asked)
    return f"{here} (here) and {there} (there)"


def _between_hosts(sa: IkeSa, connection: Connection, remote_port: int) -> Selector:
    wanted = connection.selector
    return Selector(f"{sa.path.local}/32", f"{sa.path.remote}/32", wanted.protocol, wanted.local_port, remote_port)


def _exactly(connection: Connection, asked: Sequence[Identification]) -> bool:
    there, here = asked
    wanted = connection.selector
    return (there.protocol, here.protocol, here.port, there.port) == (
        wanted.protocol,
        wanted.protocol,
        wanted.local_port,
        wanted.remote_port,
    )


def _ports_fit(sa: IkeSa, connection: Connection, here: int, there: int) -> bool:
    """Whether the ports are the policy's; a NAT's inside port is nothing that both ends know alike (the draft, 5).

    Who has a fixed address for the peer is taken for the inside: the peer may know no port of it. Who has none, or was
    called in phase 1, is taken for the outside: it ignores the peer's port.
    """
    wanted, nat = connection.selector, sa.nat == NatStatus.DETECTED
    inside = nat and connection.remote is not None
    outside = nat and (connection.remote is None or not sa.initiator or wanted.remote_port == 0)
    return (here == wanted.local_port or (inside and here == 0)) and (there == wanted.remote_port or outside)


def _describe_end(payload: Identification) -> str:
    text = network_of(payload) or "a host"
    if payload.protocol:
        text += f" protocol {payload.protocol}"
    if payload.port:
        text += f" port {payload.port}"
    return text
