"""Profiles with names: what each NAT does, where such were observed, and what that means for who uses IPsec there."""

from __future__ import annotations

from dataclasses import dataclass

from .profile import Filtering, Forward, Hairpinning, Kind, Late, Mapping, NatProfile, Pooling, Ports

_ALL = (1024, 65535)


@dataclass(frozen=True, slots=True)
class Preset:
    """A profile, the devices or documents that it is taken from, and what an IPsec user notices."""

    profile: NatProfile
    observed: str
    means: str


MASQUERADE = NatProfile(
    name="masquerade",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
)
"""Linux's own: the first client keeps its port, a second one with the same port gets another (below 512 for 500)."""

ONE_TO_ONE = NatProfile(
    name="one-to-one",
    kind=Kind.ONE_TO_ONE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ENDPOINT_INDEPENDENT,
)
"""Pure address translation: each inside host has a public address of its own and keeps its ports; it can be reached."""

ROUTED = NatProfile(name="routed", kind=Kind.NONE, mapping=Mapping.NONE, filtering=Filtering.NONE)
"""No NAT: the control, in which nothing may be found to be translated."""

HOME_ROUTER = NatProfile(
    name="home-router",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    udp_timeout=60,
    udp_timeout_stream=180,
    late=Late.REJECTED,
)
"""A home router that runs Linux, and answers what comes too late."""

PORT_FORWARD = NatProfile(
    name="port-forward",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    udp_timeout=180,
    udp_timeout_stream=180,
    forwards=(Forward(port=500, inside=1),),
)
"""A home router whose owner has forwarded IKE's port to the first host."""

FULL_CONE = NatProfile(
    name="full-cone",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ENDPOINT_INDEPENDENT,
    udp_timeout=300,
    udp_timeout_stream=300,
    hairpinning=Hairpinning.EXTERNAL,
)
"""Whoever knows a mapped port reaches the host behind it, other inside hosts too."""

ADDRESS_RESTRICTED_CONE = NatProfile(
    name="address-restricted-cone",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_DEPENDENT,
    udp_timeout=300,
    udp_timeout_stream=300,
)
"""One mapping for all destinations, open to the addresses that the host has sent to, from any of their ports."""

PORT_RESTRICTED_CONE = NatProfile(
    name="port-restricted-cone",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    port_range=(10_000, 65_535),
    udp_timeout=300,
    udp_timeout_stream=300,
)
"""One mapping for all destinations, never shared with another host's, open to the ports that the host has sent to."""

SYMMETRIC = NatProfile(
    name="symmetric",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    ports=Ports.RANDOM,
    port_range=_ALL,
    udp_timeout=120,
    udp_timeout_stream=120,
)
"""Another random port for each destination."""

CARRIER_GRADE = NatProfile(
    name="carrier-grade",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ENDPOINT_INDEPENDENT,
    ports=Ports.RANDOM,
    port_range=_ALL,
    udp_timeout=300,
    udp_timeout_stream=300,
    hairpinning=Hairpinning.EXTERNAL,
    addresses=2,
    pooling=Pooling.PAIRED,
)
"""A provider's NAT as RFC 6888 wants it: several outside addresses, always the same one for a subscriber."""

MOBILE_CARRIER = NatProfile(
    name="mobile-carrier",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    ports=Ports.CONTIGUOUS,
    port_range=(16_384, 17_407),
    udp_timeout=60,
    udp_timeout_stream=60,
    addresses=4,
    pooling=Pooling.PAIRED,
)
"""A cellular provider's symmetric NAT: the next port of a block for each flow, soon forgotten."""

HOTEL = NatProfile(
    name="hotel",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ADDRESS_DEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    ports=Ports.RANDOM,
    port_range=_ALL,
    udp_timeout=30,
    udp_timeout_stream=30,
    late=Late.REJECTED,
)
"""A guest network's gateway: another port for each address, forgotten after half a minute."""

CLOUD_NAT_GATEWAY = NatProfile(
    name="cloud-nat-gateway",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    ports=Ports.RANDOM,
    port_range=_ALL,
    udp_timeout=350,
    udp_timeout_stream=350,
)
"""What a cloud gives a private subnet to reach the Internet by: symmetric."""

CORPORATE_FIREWALL = NatProfile(
    name="corporate-firewall",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    ports=Ports.PRESERVED,
    udp_timeout=120,
    udp_timeout_stream=120,
)
"""Each flow its own port, the inside one for the first."""

ABOUT = (
    Preset(
        MASQUERADE,
        "Linux 5 and later: `MASQUERADE`, conntrack's default timeouts",
        "the first client keeps port 500, the next gets one below 512; keepalives at least every two minutes",
    ),
    Preset(
        ONE_TO_ONE,
        "static NAT; a cloud's public address for one machine",
        "ports stay; a server may begin, a responder's rekey always arrives",
    ),
    Preset(ROUTED, "no NAT", "none may be found; ESP goes without UDP"),
    Preset(
        HOME_ROUTER,
        "OpenWrt: `MASQUERADE` with conntrack's timeouts set to 60 s and 180 s; its firewall rejects",
        "as masquerade; a responder that comes late is told so by ICMP",
    ),
    Preset(
        PORT_FORWARD,
        "any home router with a forward of UDP 500 to one host",
        "that host is reached though it has sent nothing; no other client ever has port 500",
    ),
    Preset(
        FULL_CONE,
        "RFC 3489, 5; what RFC 4787 wants (REQ-1, REQ-8, REQ-9)",
        "a peer whose address changes reaches the client at its old mapped port",
    ),
    Preset(
        ADDRESS_RESTRICTED_CONE,
        "RFC 3489, 5; RFC 4787, REQ-8, where filtering has to be stricter",
        "a server that answers from another port is heard, from another address not",
    ),
    Preset(
        PORT_RESTRICTED_CONE,
        "RFC 3489, 5",
        "a server is heard from the port that was dialed alone; a second client's port is high",
    ),
    Preset(
        SYMMETRIC,
        "RFC 3489, 5; `MASQUERADE --random-fully`",
        "no client keeps port 500; what one server sees says nothing about another",
    ),
    Preset(
        CARRIER_GRADE,
        "RFC 6888, REQ-1, REQ-2 and REQ-7; RFC 4787, REQ-5 (five minutes are recommended)",
        "no client keeps port 500; clients of one network may show with different addresses",
    ),
    Preset(
        MOBILE_CARRIER,
        "symmetric NATs among those of cellular networks that Richter et al. measured (IMC 2016); the figures are ours",
        "no client keeps port 500; keepalives at least every minute",
    ),
    Preset(
        HOTEL,
        "no device in particular: mapping and timeout are those that RFC 4787 (REQ-1, REQ-5) forbids",
        "keepalives at least every 30 s: RFC 3948's 20 s do, two minutes do not",
    ),
    Preset(
        CLOUD_NAT_GATEWAY,
        "AWS NAT gateway: idle after 350 s (Azure: 4 minutes; Google Cloud NAT: 30 s)",
        "no client keeps port 500; nothing can be begun from outside",
    ),
    Preset(
        CORPORATE_FIREWALL,
        "Cisco ASA and Threat Defense: PAT that keeps a free source port, UDP idle after 2 minutes",
        "the first client keeps port 500 to its first server alone; keepalives at least every two minutes",
    ),
)

PRESETS = {preset.profile.name: preset.profile for preset in ABOUT}
