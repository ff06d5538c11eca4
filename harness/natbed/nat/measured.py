"""What was measured of a NAT, as a record; and the profile that it amounts to."""

from __future__ import annotations

import msgspec

from . import limits
from .profile import Filtering, Hairpinning, Kind, Late, Mapping, NatProfile, Pooling, Ports, ZeroChecksum

UNSEEN = {
    "name": "a NAT does not say what it is called",
    "port_range": "a handful of ports does not say where a range ends; where they are contiguous, a block around them "
    "is taken",
    "refresh": "it would take several timeouts more, one after the other",
    "addresses": "a pool that pairs shows one inside host a single address; else as many are taken as were met",
    "fragments": "the reflector answers with 32 octets, so that nobody can use it to flood others",
    "forwards": "only the host that a port is forwarded to could see it, by trying all 65,535",
    "quirk": "it is about IKE and ESP on port 500, which is left alone: that port needs privileges, and may be in use; "
    "in a lab a check of its own sees it",
}
"""What a fingerprint says nothing about, and why; a profile made of one has there what Linux does."""

NOT_ASKED = "this takes as long as it is, and was not asked for"
_TIMEOUTS = ("udp_timeout", "udp_timeout_stream")


def unseen(profile: NatProfile, *, timeouts: bool = True) -> dict[str, str]:
    """What a fingerprint of a NAT with that profile cannot tell, and why; `timeouts` says whether it measures these."""
    found = dict(UNSEEN)
    if profile.kind is not Kind.MASQUERADE and profile.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT:
        found["late"] = "whatever comes is let in, so nothing is seen to be kept out"
        found |= dict.fromkeys(_TIMEOUTS, "nothing that could be forgotten is needed for a packet to arrive")
    elif not timeouts:
        found |= dict.fromkeys(_TIMEOUTS, NOT_ASKED)
    return found


class Span(msgspec.Struct, frozen=True):
    """A UDP timeout in seconds: idle for `survived` a mapping was still there, for `lost` no more.

    `lost` is None where the mapping outlived every trial.
    """

    survived: float
    lost: float | None

    @property
    def seconds(self) -> int:
        """The timeout as a whole number, one second at least: the middle."""
        return max(1, round((self.survived + (self.lost or self.survived)) / 2))

    def __str__(self) -> str:
        if self.lost is None:
            return f"more than {self.survived:g} s"
        return f"about {self.seconds} s ({self.survived:g} to {self.lost:g})"


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """One NAT as it was found. `late` is None where it lets in whatever comes; timeouts are None if not asked for."""

    inside: str
    outside: str
    mapping: Mapping
    filtering: Filtering
    ports: Ports
    port_samples: tuple[tuple[int, int], ...]  # inside and outside
    addresses: tuple[str, ...]  # outside ones of several sockets
    one_to_one: bool
    hairpinning: Hairpinning
    zero_checksum: ZeroChecksum
    late: Late | None = None
    udp_timeout: Span | None = None
    udp_timeout_stream: Span | None = None

    def profile(self, name: str) -> NatProfile:
        """What natbed needs to behave like it; what was not measured is what Linux does, where rules can make that."""
        kind = Kind.ONE_TO_ONE if self.one_to_one else Kind.MASQUERADE
        if self.mapping is Mapping.NONE:
            return NatProfile(name=name, kind=Kind.NONE, mapping=Mapping.NONE, filtering=Filtering.NONE)
        usual = NatProfile(name=name, kind=kind, mapping=self.mapping, filtering=self.filtering)
        found = msgspec.structs.replace(
            usual,
            ports=self.ports,
            port_range=self._port_range(usual.port_range),
            addresses=len(self.addresses),
            pooling=Pooling.ARBITRARY if len(self.addresses) > 1 else Pooling.PAIRED,
            hairpinning=self.hairpinning,
            zero_checksum=self.zero_checksum,
            late=self.late or usual.late,
            udp_timeout=_or_usual(self.udp_timeout, usual.udp_timeout),
            udp_timeout_stream=_or_usual(self.udp_timeout_stream, usual.udp_timeout_stream),
        )
        if self.udp_timeout is None and limits.remembers(found):
            # such a NAT has one timeout for both; one that was measured otherwise is refused, with that reason
            return msgspec.structs.replace(found, udp_timeout=found.udp_timeout_stream)
        return found

    def _port_range(self, usual: tuple[int, int]) -> tuple[int, int]:
        """A block of contiguous ports is not seen whole, and what rules can make has an end: the samples' own."""
        if self.ports is not Ports.CONTIGUOUS:
            return usual
        first = max(
            min(outside for _, outside in self.port_samples) // limits.MOST_CONTIGUOUS * limits.MOST_CONTIGUOUS,
            usual[0],
        )
        return first, first + limits.MOST_CONTIGUOUS - 1


def _or_usual(span: Span | None, usual: int) -> int:
    """The timeout that was measured; of one that was not, or not seen to end, the usual one or what it survived."""
    if span is None:
        return usual
    return span.seconds if span.lost is not None else max(usual, span.seconds)
