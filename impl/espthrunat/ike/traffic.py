"""Quick Mode's identities: which addresses an SA is for (RFC 2407, 4.6.2; RFC 2409, 5.5)."""

from __future__ import annotations

import ipaddress

from ..wire.payloads import Identification, IdType


def payload_of(network: str) -> Identification:
    """The ID payload of a network; a single address travels as an address."""
    parsed = ipaddress.IPv4Network(network)
    if parsed.prefixlen == 32:
        return Identification(IdType.IPV4_ADDR, parsed.network_address.packed)
    return Identification(IdType.IPV4_ADDR_SUBNET, parsed.network_address.packed + parsed.netmask.packed)


def network_of(payload: Identification) -> str | None:
    """The network that an ID payload names, "10.0.0.0/24"; None if it names none, or also a protocol or port."""
    if payload.protocol or payload.port:
        return None
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
