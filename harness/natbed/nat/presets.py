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

ONE_TO_ONE = NatProfile(
    name="one-to-one",
    kind=Kind.ONE_TO_ONE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ENDPOINT_INDEPENDENT,
)
"""Pure address translation: each inside host has a public address of its own and keeps its ports; it can be reached."""

ROUTED = NatProfile(name="routed", kind=Kind.NONE, mapping=Mapping.NONE, filtering=Filtering.NONE)
"""No NAT: the control, in which nothing may be found to be translated."""

PRESETS = {preset.name: preset for preset in (MASQUERADE, ONE_TO_ONE, ROUTED)}
