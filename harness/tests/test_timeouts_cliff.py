"""The search for a cliff, wherever it is, and model seconds at every speed."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from natbed.bench.timeouts.cliff import Cliff, NoCliffError
from natbed.bench.timeouts.options import DEFAULT_TIMEOUTS, PARTS, QUIET, OptionsError, plan_of
from natbed.bench.timeouts.pace import Pace, PaceError
from natbed.stacks.base import Timing

LIMIT = 12.5
widths = st.integers(1, 30)
resolutions = st.floats(0.01, 2.0)


def search(cliff: Cliff, at: float, late: float = 0.0) -> int:
    """Ask until it is found, each trial `late` seconds after its time; the rounds that it took."""
    rounds = 0
    while points := cliff.points():
        assert points == sorted(points)
        rounds += 1
        assert rounds < 100, "it does not come nearer"
        for point in points:
            tried = point + late
            if tried < at:
                cliff.held(tried)
            else:
                cliff.lost(tried)
    return rounds


@given(at=st.floats(0.001, LIMIT), resolution=resolutions, width=widths)
@example(at=LIMIT, resolution=0.1, width=24)
def test_any_cliff_is_found_within_the_resolution(at: float, resolution: float, width: int) -> None:
    cliff = Cliff(LIMIT, resolution, width)
    rounds = search(cliff, at)
    assert cliff.done
    assert cliff.high is not None
    assert cliff.low < at <= cliff.high
    assert cliff.high - cliff.low <= resolution
    parts = math.log(max(LIMIT / width / resolution, 1), width + 1)
    assert rounds <= 1 + math.ceil(parts + 1e-9), "each round leaves one part of width + 1"


@given(at=st.floats(0.5, LIMIT), late=st.floats(0, 0.04), width=widths)
def test_trials_that_are_late_say_when_they_were_made(at: float, late: float, width: int) -> None:
    cliff = Cliff(LIMIT, 0.1, width)
    search(cliff, at, late)
    assert cliff.high is not None
    assert cliff.low < at <= cliff.high
    assert cliff.high - cliff.low <= 0.1


@given(at=st.floats(LIMIT + 0.001, 1000), width=widths)
def test_what_holds_for_as_long_as_is_looked_has_no_cliff(at: float, width: int) -> None:
    cliff = Cliff(LIMIT, 0.1, width)
    assert search(cliff, at) == 1
    assert (cliff.low, cliff.high, cliff.done) == (LIMIT, None, True)


def test_trials_that_say_nothing_are_asked_again() -> None:
    cliff = Cliff(LIMIT, 0.7, 4)
    first = cliff.points()
    assert first == cliff.points() == [3.125, 6.25, 9.375, 12.5]
    cliff.held(3.125)
    cliff.lost(9.375)
    assert cliff.points() == pytest.approx([4.375, 5.625, 6.875, 8.125])


def test_one_that_held_longer_than_another_lasted_is_no_cliff() -> None:
    cliff = Cliff(LIMIT, 0.1, 4)
    cliff.lost(5.0)
    with pytest.raises(NoCliffError, match=r"^it held for 6.00 s, but was lost after 5.00 s$"):
        cliff.held(6.0)
    cliff.held(4.0)
    with pytest.raises(NoCliffError, match=r"^it was lost after 3.00 s, but held for 4.00 s$"):
        cliff.lost(3.0)


# speed


@given(speed=st.floats(1, 900), timeout=st.floats(1, 10_000))
def test_a_timeout_is_the_nearest_that_can_be_had_or_none(speed: float, timeout: float) -> None:
    pace = Pace(speed)
    if timeout / speed < 1:
        with pytest.raises(PaceError, match=r"whole ones, 1 at least"):
            pace.timeout(timeout)
    else:
        real = pace.timeout(timeout)
        assert real >= 1
        assert abs(pace.model(real) - timeout) <= pace.step / 2 * 1.0001


def test_all_of_a_timing_is_shortened_alike() -> None:
    model = Timing(dpd=30, keepalive=20, keepalive_tail=300, ike_lifetime=86_400, esp_lifetime=3600, rekey_overlap=60)
    assert Pace(60).timing(model) == Timing(
        dpd=0.5, keepalive=1 / 3, keepalive_tail=5, ike_lifetime=1440, esp_lifetime=60, rekey_overlap=1
    )
    assert Pace(1).timing(model) == model
    assert Pace(60).timing(Timing(dpd=0, rebinding="never", start=True)) == Timing(
        dpd=0, rebinding="never", start=True
    ), "no dead peer detection stays none, and what is no time stays as it is"


def test_a_lifetime_that_no_implementation_takes_is_refused() -> None:
    reason = r"^at speed 200 an esp_lifetime of 3600 s is 18 real seconds; implementations take 30 at least$"
    with pytest.raises(PaceError, match=reason):
        Pace(200).timing(Timing(esp_lifetime=3600))


def test_what_stands_for_a_timeout_that_cannot_be_had() -> None:
    assert Pace(60).rounded([120, 150, 200]) == {150: 180, 200: 180}
    assert Pace(1).rounded([3, 10]) == {}


# options


def test_the_default_is_whole_real_seconds_at_any_speed() -> None:
    for speed in (1.0, 60.0, 7.3):
        plan = plan_of(None, speed, None)
        assert plan.real == [3, 5, 7, 10] == list(DEFAULT_TIMEOUTS)
        assert plan.parts == list(PARTS)
        assert not plan.pace.rounded(plan.timeouts)
    assert plan_of([120, 240], 60, ["costs", "lifetime"]).parts == ["lifetime", "costs"]
    assert plan_of([120, 240, 125], 60, None).real == [2, 4]


@pytest.mark.parametrize(
    ("timeouts", "speed", "parts", "option", "reason"),
    [
        ([30.0], 60, None, "--speed", "at speed 60 a timeout of 30 s is 0.5 real seconds"),
        ([0.5], 1, None, "--timeout", "a timeout of 0.5 s is 0.5 real seconds"),
        ([-3.0], 1, None, "--timeout", "a timeout of -3 s"),
        ([float("nan")], 1, None, "--timeout", "nan s: 3600 s is the most at this speed"),
        ([4000.0], 1, None, "--timeout", "4000 s: 3600 s is the most"),
        (None, 0.5, None, "--speed", "0.5: it is 1 at least"),
        (None, float("nan"), None, "--speed", "nan: it is 1 at least"),
        (None, float("inf"), None, "--speed", "inf: it is 1 at least"),
        (None, 2000, None, "--speed", "ike_lifetime of 86400 s is 43 real seconds"),
        (None, 1, ["cost"], "--part", "'cost'; there are lifetime, survival, costs"),
        ([float(n) for n in range(1, 16)], 1, None, "--timeout", "15 of them; 14 are the most"),
    ],
)
def test_options_that_make_no_sense_are_named(
    timeouts: list[float] | None, speed: float, parts: list[str] | None, option: str, reason: str
) -> None:
    with pytest.raises(OptionsError) as caught:
        plan_of(timeouts, speed, parts)
    assert caught.value.option == option
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert QUIET.dpd == QUIET.keepalive == 0
