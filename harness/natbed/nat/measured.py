"""What was measured of a NAT, as a record; and the profile that it amounts to."""

from __future__ import annotations

import msgspec

from .profile import Filtering, Hairpinning, Kind, Late, Mapping, NatProfile, Ports, ZeroChecksum


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
    one_to_one: bool
    hairpinning: Hairpinning
    zero_checksum: ZeroChecksum
    late: Late | None = None
    udp_timeout: Span | None = None
    udp_timeout_stream: Span | None = None

    def profile(self, name: str) -> NatProfile:
        """What natbed needs to behave like it; what was not measured is what Linux does."""
        kind = Kind.ONE_TO_ONE if self.one_to_one else Kind.MASQUERADE
        if self.mapping is Mapping.NONE:
            return NatProfile(name=name, kind=Kind.NONE, mapping=Mapping.NONE, filtering=Filtering.NONE)
        usual = NatProfile(name=name, kind=kind, mapping=self.mapping, filtering=self.filtering)
        return msgspec.structs.replace(
            usual,
            ports=self.ports,
            hairpinning=self.hairpinning,
            zero_checksum=self.zero_checksum,
            late=self.late or usual.late,
            udp_timeout=_or_usual(self.udp_timeout, usual.udp_timeout),
            udp_timeout_stream=_or_usual(self.udp_timeout_stream, usual.udp_timeout_stream),
        )


def _or_usual(span: Span | None, usual: int) -> int:
    """The timeout that was measured; of one that was not, or not seen to end, the usual one or what it survived."""
    if span is None:
        return usual
    return span.seconds if span.lost is not None else max(usual, span.seconds)
