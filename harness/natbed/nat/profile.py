"""What a NAT does, in the terms of RFC 4787."""

from __future__ import annotations

import dataclasses
import enum


class Kind(enum.StrEnum):
    """How a NAT is made."""

    MASQUERADE = "masquerade"  # iptables MASQUERADE on the outside interface
    ONE_TO_ONE = "one-to-one"  # each inside host has an outside address of its own, in both directions
    NONE = "none"  # a plain router: nothing is translated, nothing filtered


class Mapping(enum.StrEnum):
    """When two flows of one inside address and port share an outside one (RFC 4787, 4.1)."""

    NONE = "none"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Filtering(enum.StrEnum):
    """Who outside may send to a mapping (RFC 4787, 5)."""

    NONE = "none"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


@dataclasses.dataclass(frozen=True)
class NatProfile:
    """One NAT's behaviour. `mapping` and `filtering` say what follows from `kind`; they do not choose it.

    The timeouts are in seconds, for UDP: `udp_timeout` while only one side has spoken or for the first two seconds,
    `udp_timeout_stream` from then on (RFC 4787, 4.3, asks for two minutes at least). The defaults are Linux's.
    """

    name: str
    kind: Kind
    mapping: Mapping
    filtering: Filtering
    udp_timeout: int = 30
    udp_timeout_stream: int = 120

    def __post_init__(self) -> None:
        if self.udp_timeout < 1 or self.udp_timeout_stream < 1:
            raise ValueError(f"NAT profile {self.name}: a UDP timeout is one second at least")
