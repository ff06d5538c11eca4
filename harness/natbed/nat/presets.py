"""Profiles with names."""

from __future__ import annotations

from .profile import Filtering, Kind, Mapping, NatProfile

MASQUERADE = NatProfile(
    name="masquerade",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
)
"""Linux's own: the first client keeps its port, a second one with the same port gets another (below 512 for 500)."""

ROUTED = NatProfile(name="routed", kind=Kind.NONE, mapping=Mapping.NONE, filtering=Filtering.NONE)
"""No NAT: the control, in which nothing may be found to be translated."""

PRESETS = {preset.name: preset for preset in (MASQUERADE, ROUTED)}
