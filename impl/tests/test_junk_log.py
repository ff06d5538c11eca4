"""What anybody can cause fills no log: one line a second for each kind, and a count of what was not said."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from espthrunat.junk_log import JunkLog


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def junk(clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[JunkLog]:
    with caplog.at_level(logging.WARNING, "espthrunat.test"):
        yield JunkLog(logging.getLogger("espthrunat.test"), clock)


def test_the_first_is_said_at_once(junk: JunkLog, caplog: pytest.LogCaptureFixture) -> None:
    junk.note("datagram malformed", "from 192.0.2.1:500: too short")
    assert caplog.messages == ["datagram malformed: from 192.0.2.1:500: too short"]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_flood_gives_one_line_a_second_that_counts_the_rest(
    junk: JunkLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    start = clock.now
    for number in range(3001):  # a thousand a second
        clock.now = start + number / 1000
        junk.note("malformed", f"datagram {number}")
    assert caplog.messages == [
        "malformed: datagram 0",
        "malformed: datagram 1000 (999 more were not logged)",
        "malformed: datagram 2000 (999 more were not logged)",
        "malformed: datagram 3000 (999 more were not logged)",
    ]


def test_one_kind_does_not_silence_another(junk: JunkLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        junk.note("malformed", "first")
        junk.note("not authentic", "second")
    assert caplog.messages == ["malformed: first", "not authentic: second"]


def test_after_a_pause_nothing_is_counted_twice(junk: JunkLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for text in ("one", "two"):
        junk.note("malformed", text)
    for text in ("three", "four"):
        clock.now += 60
        junk.note("malformed", text)
    assert caplog.messages == ["malformed: one", "malformed: three (1 more were not logged)", "malformed: four"]


def test_a_clock_that_starts_at_zero_hides_nothing(
    junk: JunkLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Monotonic clocks begin when the machine does."""
    clock.now = 0.0
    junk.note("malformed", "early")
    assert caplog.messages == ["malformed: early"]
