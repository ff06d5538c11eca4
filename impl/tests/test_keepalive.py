"""Keepalives go where nothing else went, and nowhere else."""

from __future__ import annotations

import pytest

from espthrunat.messages import Path
from espthrunat.plane.keepalive import Keepalives

PATH = Path("10.0.0.2", 500, "192.0.2.1", 500)
OTHER = Path("10.0.0.2", 500, "192.0.2.1", 4500)
REMOTE, OTHER_REMOTE = ("192.0.2.1", 500), ("192.0.2.1", 4500)


class Clock:
    """Seconds, which pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keepalives(clock: Clock) -> Keepalives:
    return Keepalives(clock)


def run(keepalives: Keepalives, clock: Clock, until: float) -> list[tuple[float, Path]]:
    """Do what the plane's loop does, up to and with `until`: when which keepalive went out."""
    went: list[tuple[float, Path]] = []
    for _ in range(1000):
        due = keepalives.due()
        if due is None or due > until:
            clock.now = until
            return went
        clock.now = max(clock.now, due)
        went += [(clock.now, path) for path in keepalives.take_due()]
    pytest.fail("something is due for ever: the plane would never sleep")


@pytest.mark.draft("KA-2")
def test_a_silent_path_gets_one_each_interval(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    assert run(keepalives, clock, 1059) == [(1020, PATH), (1040, PATH)]


def test_without_an_order_none_is_ever_due(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.sent(REMOTE)
    assert keepalives.due() is None
    clock.now += 1e6
    assert keepalives.take_due() == []


@pytest.mark.draft("KA-2", "KA-6")
def test_traffic_puts_it_off(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    for _ in range(10):
        assert run(keepalives, clock, clock.now + 19) == []
        keepalives.sent(REMOTE)  # IKE or ESP, they are all the same here
    assert run(keepalives, clock, 1190 + 39) == [(1190 + 20, PATH)]


def test_traffic_that_went_on_before_the_order_is_forgotten(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.sent(REMOTE)
    clock.now += 15
    keepalives.set(PATH, 20)
    assert run(keepalives, clock, 1036) == [(1035, PATH)]


@pytest.mark.draft("KA-2")
def test_traffic_to_elsewhere_does_not(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    clock.now += 10
    for remote in (OTHER_REMOTE, ("192.0.2.2", 500), ("10.0.0.2", 500)):
        keepalives.sent(remote)
    assert run(keepalives, clock, 1020) == [(1020, PATH)]


def test_none_comes_early(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    clock.now = 1019.999
    assert keepalives.take_due() == []
    clock.now = 1020
    assert keepalives.take_due() == [PATH]
    assert keepalives.take_due() == []


def test_a_late_call_makes_one_and_not_many(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    clock.now += 100
    assert keepalives.take_due() == [PATH]
    assert run(keepalives, clock, 1139) == [(1120, PATH)]


def test_each_path_has_its_own_interval(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    keepalives.set(OTHER, 15)
    assert run(keepalives, clock, 1045) == [(1015, OTHER), (1020, PATH), (1030, OTHER), (1040, PATH), (1045, OTHER)]


@pytest.mark.draft("KA-6")
def test_paths_to_one_remote_share_one_stream(keepalives: Keepalives, clock: Clock) -> None:
    twin = Path("10.0.0.3", 500, *REMOTE)
    keepalives.set(PATH, 20)
    keepalives.set(twin, 20)
    assert [at for at, _ in run(keepalives, clock, 1060)] == [1020, 1040, 1060]
    keepalives.set(PATH, 0)
    assert run(keepalives, clock, 1080) == [(1080, twin)]


def test_zero_ends_it(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    keepalives.set(OTHER, 30)
    keepalives.set(PATH, 0)
    assert run(keepalives, clock, 1059) == [(1030, OTHER)]
    keepalives.set(OTHER, 0)
    keepalives.set(OTHER, 0)  # what is not there may be ended
    assert keepalives.due() is None


def test_after_an_end_it_begins_anew(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    keepalives.set(PATH, 0)
    clock.now += 100
    keepalives.set(PATH, 20)
    assert run(keepalives, clock, 1120) == [(1120, PATH)]


def test_setting_it_again_puts_off_nothing(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    clock.now += 19
    keepalives.set(PATH, 20)
    assert run(keepalives, clock, 1020) == [(1020, PATH)]
    keepalives.set(PATH, 5)  # and another interval counts at once
    assert run(keepalives, clock, 1026) == [(1025, PATH)]


@pytest.mark.parametrize("interval", [-1.0, float("nan")])
def test_nonsense_is_refused_and_changes_nothing(keepalives: Keepalives, clock: Clock, interval: float) -> None:
    keepalives.set(PATH, 20)
    with pytest.raises(ValueError, match="no interval of keepalives"):
        keepalives.set(PATH, interval)
    assert run(keepalives, clock, 1020) == [(1020, PATH)]


def test_a_peer_that_moved_is_followed(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    clock.now += 10
    keepalives.moved(PATH, OTHER)
    keepalives.sent(REMOTE)  # to where it was: no matter
    assert run(keepalives, clock, 1041) == [(1020, OTHER), (1040, OTHER)]
    keepalives.sent(OTHER_REMOTE)
    assert run(keepalives, clock, 1061) == [(1061, OTHER)]


def test_a_peer_that_moved_onto_another_path_keeps_the_shorter_interval(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    keepalives.set(OTHER, 5)
    keepalives.moved(PATH, OTHER)
    assert run(keepalives, clock, 1010) == [(1005, OTHER), (1010, OTHER)]


def test_a_move_of_what_has_no_keepalives_makes_none(keepalives: Keepalives) -> None:
    keepalives.moved(PATH, OTHER)
    assert keepalives.due() is None


def test_a_move_to_the_same_place_is_none(keepalives: Keepalives, clock: Clock) -> None:
    keepalives.set(PATH, 20)
    keepalives.moved(PATH, PATH)
    assert run(keepalives, clock, 1020) == [(1020, PATH)]
