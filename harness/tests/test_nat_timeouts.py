"""Timeouts are measured in hardly more time than they are."""

from __future__ import annotations

import pathlib
import time

import pytest
from lab_world import CLIENTS, home
from nat_survey import PATIENCE, inside, reflecting

from natbed.nat.measured import Fingerprint, Span
from natbed.nat.profile import Filtering, Kind, Mapping, NatProfile
from natbed.nat.timeouts import SETTLE, idle_times, measure_timeouts

pytestmark = pytest.mark.usefixtures("isolated")

SHORT = NatProfile(
    name="short",
    kind=Kind.MASQUERADE,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    udp_timeout=2,
    udp_timeout_stream=4,
)


def test_both_timeouts_are_found_side_by_side(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    with home(tmp_path, 1, SHORT) as world, reflecting(world) as reflector:
        server = (reflector.addresses[0], reflector.ports[0])
        begin = time.monotonic()
        unreplied, replied = measure_timeouts(
            inside(world.lab["client1"], CLIENTS[0]), server, PATIENCE, 20, said.append
        )
        seconds = time.monotonic() - begin
    # conntrack ends a flow up to a tenth of a second late, never early
    assert (unreplied, replied) == (Span(1.5, 2.5), Span(3.5, 4.5))
    assert (unreplied.seconds, replied.seconds) == (2, 4)
    assert seconds < SETTLE + 4 + 5
    assert said, "a user sees that it goes on"


def test_a_nat_that_forgets_nobody_is_believed_after_the_longest_time(tmp_path: pathlib.Path) -> None:
    with home(tmp_path, 1) as world, reflecting(world) as reflector:
        server = (reflector.addresses[0], reflector.ports[0])
        unreplied, replied = measure_timeouts(inside(world.lab["client1"], CLIENTS[0]), server, PATIENCE, 2)
    assert (unreplied, replied) == (Span(2.5, None), Span(2.5, None))
    assert str(unreplied) == "more than 2.5 s"


def test_idle_times_lie_between_the_usual_timeouts() -> None:
    times = idle_times(600)
    assert times == sorted(set(times))
    assert not {30, 60, 120, 180, 300, 600} & set(times)
    for usual in (30, 60, 120, 180, 300, 350):
        below, above = max(t for t in times if t < usual), min(t for t in times if t > usual)
        assert Span(below, above).seconds == usual


def test_a_profile_has_no_timeout_shorter_than_what_was_seen_to_end() -> None:
    found = Fingerprint(
        inside=CLIENTS[0],
        outside="203.0.113.2",
        mapping=SHORT.mapping,
        filtering=SHORT.filtering,
        ports=SHORT.ports,
        port_samples=(),
        addresses=("203.0.113.2",),
        one_to_one=False,
        hairpinning=SHORT.hairpinning,
        zero_checksum=SHORT.zero_checksum,
        udp_timeout=Span(2.5, None),
        udp_timeout_stream=Span(3.5, 4.5),
    )
    profile = found.profile("mine")
    assert (profile.udp_timeout, profile.udp_timeout_stream) == (30, 4)
