"""Profiles that no rules make are refused in one line, before anything is built."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from natbed.nat import limits, presets, remembering, rules
from natbed.nat.profile import (
    Filtering,
    Forward,
    Hairpinning,
    Kind,
    Mapping,
    NatProfile,
    Pooling,
    Ports,
    Quirk,
    Refresh,
    ZeroChecksum,
)
from natbed.scenario import ScenarioError
from natbed.topology_files import find

PLAIN = presets.MASQUERADE
LASTING = msgspec.structs.replace(presets.FULL_CONE, hairpinning=Hairpinning.NONE)


def changed(profile: NatProfile, **axes: Any) -> NatProfile:
    return msgspec.structs.replace(profile, **axes)


@pytest.mark.parametrize(
    ("profile", "complaint"),
    [
        (changed(PLAIN, quirk=Quirk.PIN_500, addresses=2), "the quirk pin-500 is of a masquerade with one address"),
        (changed(PLAIN, mapping=Mapping.NONE), "only kind none has none"),
        (changed(PLAIN, filtering=Filtering.NONE), "only kind none has none"),
        (changed(presets.ROUTED, addresses=2), "a plain router has no addresses"),
        (changed(presets.ROUTED, zero_checksum=ZeroChecksum.DROPPED), "a plain router has no zero_checksum"),
        (changed(presets.ONE_TO_ONE, ports=Ports.RANDOM), "ports of a 1:1 NAT cannot be random"),
        (changed(presets.ONE_TO_ONE, filtering=Filtering.ADDRESS_DEPENDENT), "the filtering of a 1:1 NAT"),
        (changed(PLAIN, ports=Ports.OVERLOADED, filtering=Filtering.ENDPOINT_INDEPENDENT), "overloaded ports need"),
        (changed(PLAIN, ports=Ports.OVERLOADED, mapping=Mapping.ADDRESS_DEPENDENT), "overloaded ports are the inside"),
        (changed(PLAIN, ports=Ports.OVERLOADED, addresses=2, pooling=Pooling.ARBITRARY), "would not be one mapping"),
        (changed(PLAIN, ports=Ports.OVERLOADED, forwards=(Forward(500),)), "there are no forwards"),
        (changed(LASTING, udp_timeout=30), "udp_timeout must be udp_timeout_stream"),
        (changed(LASTING, refresh=Refresh.INBOUND), "with refresh inbound"),
        (changed(LASTING, refresh=Refresh.OUTBOUND, ports=Ports.RANDOM), "ports must be preserved"),
        (changed(presets.PORT_RESTRICTED_CONE, hairpinning=Hairpinning.EXTERNAL), "hairpinning needs"),
        (changed(LASTING, ports=Ports.CONTIGUOUS), "contiguous ports are of a range of 1024 at most"),
        (changed(LASTING, addresses=3), "with paired pooling there are 1, 2, 4, 8"),
        (changed(LASTING, addresses=13, pooling=Pooling.ARBITRARY), "12 outside addresses are the most"),
        (changed(LASTING, forwards=(Forward(500), Forward(500, 2))), "each forward is of another port"),
        (changed(LASTING, forwards=(Forward(0),)), "each forward is of another port"),
        (changed(LASTING, forwards=(Forward(500, 0),)), "counted from 1"),
        (
            changed(LASTING, forwards=(Forward(500),), mapping=Mapping.ADDRESS_DEPENDENT),
            "a forwarded port is its host's",
        ),
        (changed(LASTING, forwards=(Forward(500),), addresses=2), "forwards are made of one outside address"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_rules_make_is_refused_with_its_reason(profile: NatProfile, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        rules.render(profile, "w", "l")
    assert str(refused.value).startswith(f"NAT profile {profile.name}: ")
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=complaint):
        remembering.render(profile, "w", "l")
    with pytest.raises(ScenarioError, match=f"nat: NAT profile {profile.name}: "):
        find("A")(nat=profile)


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=lambda preset: preset.name)
def test_every_preset_can_be_made(preset: NatProfile) -> None:
    limits.check(preset)


def test_only_what_conntrack_does_not_do_by_itself_is_remembered() -> None:
    kept = {name for name, preset in presets.PRESETS.items() if limits.remembers(preset)}
    assert kept == set(presets.PRESETS) - {
        "masquerade",
        "one-to-one",
        "routed",
        "home-router",
        "symmetric",
        "cloud-nat-gateway",
    }
    assert not limits.remembers(changed(PLAIN, ports=Ports.OVERLOADED))
    assert limits.remembers(changed(PLAIN, ports=Ports.RANDOM))
    assert limits.remembers(changed(PLAIN, kind=Kind.MASQUERADE, refresh=Refresh.OUTBOUND))
