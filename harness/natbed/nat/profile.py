"""What a NAT does, in the terms of RFC 4787."""

from __future__ import annotations

import enum

import msgspec


class Kind(enum.StrEnum):
    """Whom a NAT translates."""

    MASQUERADE = "masquerade"  # all inside hosts share its outside addresses
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


class Ports(enum.StrEnum):
    """Which outside port a new mapping gets (RFC 4787, 4.2.1)."""

    PRESERVED = "preserved"  # the inside one; another only where a different host has it
    OVERLOADED = "overloaded"  # the inside one, even where a different host has it
    CONTIGUOUS = "contiguous"  # the next of a range
    RANDOM = "random"  # any of a range


class Refresh(enum.StrEnum):
    """Whose packets keep a mapping alive (RFC 4787, 4.3)."""

    BOTH = "both"
    OUTBOUND = "outbound"
    INBOUND = "inbound"


class Hairpinning(enum.StrEnum):
    """What an inside host sees of another one that it dials at its outside address (RFC 4787, 6)."""

    NONE = "none"  # nothing comes through
    EXTERNAL = "external"  # the other one's outside address and port, as REQ-9 asks
    INTERNAL = "internal"  # the other one's inside address and port


class Pooling(enum.StrEnum):
    """Whether all flows of an inside host use one outside address where there are several (RFC 4787, 4.1)."""

    PAIRED = "paired"
    ARBITRARY = "arbitrary"


class Fragments(enum.StrEnum):
    """What becomes of fragments (RFC 4787, 11)."""

    FORWARDED = "forwarded"
    DROPPED = "dropped"


class Late(enum.StrEnum):
    """What becomes of a packet from outside for which there is no mapping, or none any more."""

    DROPPED = "dropped"
    REJECTED = "rejected"  # answered with ICMP port unreachable


class ZeroChecksum(enum.StrEnum):
    """What becomes of UDP without a checksum, as RFC 3948, 2.1 has it for ESP."""

    FORWARDED = "forwarded"
    DROPPED = "dropped"


class Quirk(enum.StrEnum):
    """What IPsec-aware NATs do to IKE and ESP beyond translation ("IPsec pass-through")."""

    PIN_500 = "pin-500"
    """Source port 500 stays 500 for every client, whoever else has it: the second one's packets are lost."""
    ONE_CLIENT = "one-client"
    """While one client uses port 500, everybody else's packets from port 500 are dropped."""
    FIRST_OWNS_500 = "first-owns-500"
    """All clients keep port 500, and whatever comes back goes to the one that used it first."""
    LAST_OWNS_500 = "last-owns-500"
    """All clients keep port 500, and whatever comes back from a remote end goes to the one that sent there last."""
    IKE_COOKIES = "ike-cookies"
    """All clients keep port 500, and what comes back is told apart by IKE's initiator cookie."""
    ESP_SPIS = "esp-spis"
    """Bare ESP is translated, each inbound SPI guessed to be that of whoever has sent one last."""
    DAMAGES_MARKER = "damages-marker"
    """The first 8 octets of what passes on port 500 are overwritten where they are zero."""
    SPLITS_MAPPINGS = "splits-mappings"
    """IKE and ESP of one port 500 get different mappings."""


class Forward(msgspec.Struct, frozen=True):
    """UDP to an outside port is for an inside host: `inside` is its place among the hosts of the LAN, 1 the first."""

    port: int
    inside: int = 1


class NatProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One NAT's behaviour on RFC 4787's axes; what is not said is what Linux does.

    The timeouts are in seconds, for UDP: `udp_timeout` while only one side has spoken or for the first two seconds,
    `udp_timeout_stream` from then on (RFC 4787, 4.3, asks for two minutes at least). `port_range` is the first and the
    last port of those that are given out where the inside one is not kept. `addresses` is how many outside addresses
    the NAT has. Raises ValueError for what cannot be.
    """

    name: str
    kind: Kind
    mapping: Mapping
    filtering: Filtering
    ports: Ports = Ports.PRESERVED
    port_range: tuple[int, int] = (1024, 65535)
    refresh: Refresh = Refresh.BOTH
    udp_timeout: int = 30
    udp_timeout_stream: int = 120
    hairpinning: Hairpinning = Hairpinning.NONE
    addresses: int = 1
    pooling: Pooling = Pooling.PAIRED
    fragments: Fragments = Fragments.FORWARDED
    late: Late = Late.DROPPED
    zero_checksum: ZeroChecksum = ZeroChecksum.FORWARDED
    forwards: tuple[Forward, ...] = ()
    quirk: Quirk | None = None

    def __post_init__(self) -> None:
        if self.udp_timeout < 1 or self.udp_timeout_stream < 1:
            raise ValueError(f"NAT profile {self.name}: a UDP timeout is one second at least")
        first, last = self.port_range
        if not 1 <= first <= last <= 0xFFFF:
            raise ValueError(f"NAT profile {self.name}: {first} to {last} is no range of ports")
        if self.addresses < 1:
            raise ValueError(f"NAT profile {self.name}: it needs an outside address")
