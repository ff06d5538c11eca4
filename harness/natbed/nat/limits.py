"""What kernel rules cannot make of a profile: refused in one line, never made silently different."""

from __future__ import annotations

from collections.abc import Iterator

from . import quirks
from .profile import Filtering, Hairpinning, Kind, Mapping, NatProfile, Pooling, Ports, Refresh

PAIRED_ADDRESSES = (1, 2, 4, 8)  # a host's outside address is chosen by the last bits of its own
MOST_CONTIGUOUS = 1024  # each is an element of a rule
MOST_ADDRESSES = 12  # what one /28 of RFC 5737's has for a NAT besides its first, less the router's


def check(profile: NatProfile) -> None:
    """Raise ValueError for a profile that rules cannot make real, or that contradicts itself."""
    quirks.check(profile)
    if problem := next(_problems(profile), ""):
        raise ValueError(f"NAT profile {profile.name}: {problem}")


def remembers(profile: NatProfile) -> bool:
    """Whether the NAT must know its mappings apart from the flows that conntrack knows.

    It need not where it is what Linux does anyway, and where each flow has a mapping of its own, or no choice of one.
    """
    if profile.kind is not Kind.MASQUERADE or profile.ports is Ports.OVERLOADED:
        return False
    plain = (
        profile.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT
        and profile.refresh is Refresh.BOTH
        and profile.hairpinning is Hairpinning.NONE
        and profile.addresses == 1
        and not profile.forwards
    )
    return not (plain and (as_linux(profile) or by_flow(profile)))


def as_linux(profile: NatProfile) -> bool:
    """Whether its mappings and ports are MASQUERADE's own."""
    return (profile.mapping, profile.ports, profile.port_range) == (
        Mapping.ENDPOINT_INDEPENDENT,
        Ports.PRESERVED,
        (1024, 65535),
    )


def by_flow(profile: NatProfile) -> bool:
    """Whether each flow gets any port, whatever others have."""
    return profile.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT and profile.ports is Ports.RANDOM


def _problems(profile: NatProfile) -> Iterator[str]:
    if profile.kind is Kind.NONE:
        yield from _of_a_router(profile)
        return
    if profile.mapping is Mapping.NONE or profile.filtering is Filtering.NONE:
        yield "a NAT has a mapping and a filtering; only kind none has none"
    if profile.kind is Kind.ONE_TO_ONE:
        yield from _of_one_to_one(profile)
        return
    if profile.ports is Ports.OVERLOADED:
        yield from _of_overloading(profile)
    if remembers(profile) and profile.udp_timeout != profile.udp_timeout_stream:
        yield "it remembers mappings apart from flows, which have one timeout: udp_timeout must be udp_timeout_stream"
    if profile.refresh is Refresh.INBOUND:
        yield "with refresh inbound an outbound packet would make another mapping, but the kernel still has its flow"
    if profile.refresh is Refresh.OUTBOUND and profile.ports is not Ports.PRESERVED:
        yield (
            "with refresh outbound a mapping may end while the kernel still has its flow, "
            "which then goes on with the same port: ports must be preserved"
        )
    if profile.hairpinning is not Hairpinning.NONE and profile.filtering is not Filtering.ENDPOINT_INDEPENDENT:
        yield "hairpinning needs endpoint-independent filtering: whom an inside host may answer is not known inside"
    first, last = profile.port_range
    if profile.ports is Ports.CONTIGUOUS and last - first >= MOST_CONTIGUOUS:
        yield f"contiguous ports are of a range of {MOST_CONTIGUOUS} at most"
    yield from _of_addresses(profile)
    yield from _of_forwards(profile)


def _of_a_router(profile: NatProfile) -> Iterator[str]:
    plain = NatProfile(name=profile.name, kind=Kind.NONE, mapping=Mapping.NONE, filtering=Filtering.NONE)
    for axis in profile.__struct_fields__:
        if getattr(profile, axis) != getattr(plain, axis) and not axis.startswith("udp_timeout"):
            yield f"a plain router has no {axis}"


def _of_one_to_one(profile: NatProfile) -> Iterator[str]:
    usual = NatProfile(
        name=profile.name,
        kind=Kind.ONE_TO_ONE,
        mapping=Mapping.ENDPOINT_INDEPENDENT,
        filtering=profile.filtering,
        udp_timeout=profile.udp_timeout,
        udp_timeout_stream=profile.udp_timeout_stream,
        fragments=profile.fragments,
        late=profile.late,
        zero_checksum=profile.zero_checksum,
    )
    if profile.filtering is Filtering.ADDRESS_DEPENDENT:
        yield "the filtering of a 1:1 NAT is endpoint-independent or address-and-port-dependent"
    for axis in profile.__struct_fields__:
        if getattr(profile, axis) != getattr(usual, axis):
            yield f"{axis} of a 1:1 NAT cannot be {getattr(profile, axis)}"


def _of_overloading(profile: NatProfile) -> Iterator[str]:
    if profile.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT:
        yield "overloaded ports need address-and-port-dependent filtering: the rest does not say whom a packet is for"
    if profile.mapping is not Mapping.ENDPOINT_INDEPENDENT:
        yield "overloaded ports are the inside ones, so their mapping is endpoint-independent"
    if profile.addresses > 1 and profile.pooling is Pooling.ARBITRARY:
        yield "overloaded ports with arbitrary pooling would not be one mapping"
    if profile.forwards or profile.hairpinning is not Hairpinning.NONE:
        yield "with overloaded ports there are no forwards and no hairpinning"


def _of_addresses(profile: NatProfile) -> Iterator[str]:
    if profile.addresses > MOST_ADDRESSES:
        yield f"{MOST_ADDRESSES} outside addresses are the most"
    if profile.pooling is Pooling.PAIRED and profile.addresses not in PAIRED_ADDRESSES:
        yield f"with paired pooling there are {', '.join(map(str, PAIRED_ADDRESSES))} outside addresses"


def _of_forwards(profile: NatProfile) -> Iterator[str]:
    ports = [forward.port for forward in profile.forwards]
    if any(not 1 <= port <= 0xFFFF for port in ports) or len(set(ports)) != len(ports):
        yield "each forward is of another port, from 1 to 65535"
    if any(forward.inside < 1 for forward in profile.forwards):
        yield "the hosts of a LAN are counted from 1"
    if ports and profile.mapping is not Mapping.ENDPOINT_INDEPENDENT:
        yield "a forwarded port is its host's towards everybody, so the mapping is endpoint-independent"
    if ports and profile.addresses > 1:
        yield "forwards are made of one outside address"
