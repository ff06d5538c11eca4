"""Runs that go on at once, and one of them that wants to measure: who waits for whom."""

from __future__ import annotations

import pathlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from natbed.turns import Turn

AT_MOST = 20.0  # seconds that anything here may take
SHORTLY = 0.2  # seconds in which what must not happen does not


@pytest.fixture
def turn(tmp_path: pathlib.Path) -> Callable[..., Turn]:
    for name in ("runs", "door"):
        (tmp_path / name).touch()

    def made(waiting: Callable[[], None] = lambda: None, longest: float = AT_MOST) -> Turn:
        return Turn(waiting, runs=tmp_path / "runs", door=tmp_path / "door", longest=longest)

    return made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def undisturbed(turn: Turn, has_it: threading.Event, until: threading.Event) -> None:
    with turn.undisturbed():
        has_it.set()
        assert until.wait(AT_MOST)


def test_runs_go_on_at_once(turn: Callable[..., Turn]) -> None:
    with turn(), turn(), turn():
        pass


def test_who_wants_to_be_undisturbed_waits_for_the_others_and_nobody_begins(
    turn: Callable[..., Turn], pool: ThreadPoolExecutor
) -> None:
    alone, enough, begun = threading.Event(), threading.Event(), threading.Event()
    said: queue.SimpleQueue[str] = queue.SimpleQueue()

    def begin() -> None:
        with turn(lambda: said.put("waiting")):
            begun.set()

    with turn() as mine:
        with turn():
            measuring = pool.submit(undisturbed, mine, alone, enough)
            assert not alone.wait(SHORTLY), "another is under way"
            late = pool.submit(begin)
            assert said.get(timeout=AT_MOST) == "waiting"
            assert not begun.is_set()
        assert alone.wait(AT_MOST), "it has ended"
        assert not begun.wait(SHORTLY)
        enough.set()
        assert begun.wait(AT_MOST)
        done(measuring, late)


def test_two_that_want_it_have_it_one_after_the_other(turn: Callable[..., Turn], pool: ThreadPoolExecutor) -> None:
    events = [threading.Event() for _ in range(2)]
    enough = [threading.Event() for _ in range(2)]

    def run(which: int) -> None:
        with turn() as mine:
            both.wait(AT_MOST)
            undisturbed(mine, events[which], enough[which])

    both = threading.Barrier(2)
    runs = [pool.submit(run, which) for which in range(2)]
    while not any(event.wait(0.01) for event in events):
        assert not any(one.done() for one in runs)
    (first,) = (which for which in range(2) if events[which].is_set())
    assert not events[1 - first].wait(SHORTLY)
    enough[first].set()
    assert events[1 - first].wait(AT_MOST)
    enough[1 - first].set()
    done(*runs)


def test_nobody_waits_for_ever(turn: Callable[..., Turn], pool: ThreadPoolExecutor) -> None:
    alone, enough = threading.Event(), threading.Event()
    with turn(longest=0.1) as mine, turn():
        measuring = pool.submit(undisturbed, mine, alone, enough)
        assert alone.wait(AT_MOST), "the other has not ended"
        with turn(longest=0.1):
            pass
        enough.set()
        done(measuring)


def done(*futures: Future[None]) -> None:
    for future in futures:
        future.result(AT_MOST)
