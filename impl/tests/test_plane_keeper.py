"""One plane after another: who replaces it when it has ended, how often, and what a new one must say."""

from __future__ import annotations

import pytest
from ike_world import INITIATOR

from espthrunat.ike.timers import Timers
from espthrunat.messages import (
    AddPolicy,
    Configure,
    FromPlane,
    Ready,
    ToPlane,
)
from espthrunat.plane_keeper import MAX_RESTARTS, RESTART_WINDOW, PlaneKeeper
from espthrunat.plane_process import PlaneError, PlaneProcess


class FakePlane(PlaneProcess):
    """A plane without a process."""

    def __init__(self, error: str = "") -> None:
        self.sent: list[ToPlane] = []
        self.alive = True
        self.stopped = False
        self._error = error

    @property
    def pid(self) -> int:
        return id(self)

    def configure(self, configure: Configure) -> None:
        self.send(configure)

    def send(self, message: ToPlane) -> None:
        if not self.alive:
            raise PlaneError("the data plane has ended (signal 9)")
        self.sent.append(message)

    def receive(self) -> FromPlane:
        if not self.alive:
            raise PlaneError("the data plane has ended (signal 9)")
        return Ready(self._error)

    def stop(self) -> None:
        self.stopped = True


CONFIGURE = Configure("192.0.2.1", 500, "esp0")


class Planes:
    """A keeper, and every plane that it has had."""

    def __init__(self) -> None:
        self.now = 0.0
        self.error = ""
        self.made = [FakePlane()]
        self.timers = Timers()
        self.keeper = PlaneKeeper(self.made[0], CONFIGURE, self.timers, self.make, lambda: self.now)

    def make(self) -> FakePlane:
        self.made.append(FakePlane(self.error))
        return self.made[-1]

    def lose(self) -> None:
        self.made[-1].alive = False
        assert self.keeper.receive() is None
        assert self.keeper.failure is not None
        self.keeper.restart()


def test_a_plane_that_has_ended_is_followed_by_another() -> None:
    planes = Planes()
    policy = AddPolicy("server", INITIATOR.selector)
    planes.made[0].alive = False
    planes.keeper.send(policy)
    assert "signal 9" in str(planes.keeper.failure), "noticed when it is spoken to, and no exception amid other work"
    planes.keeper.send(policy)
    planes.keeper.restart()
    planes.keeper.send(policy)
    assert planes.made[0].stopped
    assert planes.made[1].sent == [CONFIGURE, policy], "what the old one was told is for the caller to say again"
    assert planes.keeper.pid == planes.made[1].pid
    assert planes.keeper.restarts == 1


def test_a_plane_that_ends_again_and_again_is_given_up() -> None:
    planes = Planes()
    for _ in range(MAX_RESTARTS):
        planes.lose()
    with pytest.raises(PlaneError, match=r"signal 9\), for the 6th time within 60 s: giving up"):
        planes.lose()


def test_planes_that_end_now_and_then_are_not_given_up() -> None:
    planes = Planes()
    for _ in range(3 * MAX_RESTARTS):
        planes.lose()
        planes.now += RESTART_WINDOW / MAX_RESTARTS + 0.1
    assert planes.keeper.restarts == 3 * MAX_RESTARTS


def test_a_new_plane_without_devices_is_an_error() -> None:
    planes = Planes()
    planes.error = "UDP 192.0.2.1:500 cannot be opened"
    planes.lose()
    with pytest.raises(PlaneError, match=r"UDP 192\.0\.2\.1:500 cannot be opened"):
        planes.keeper.receive()


def test_a_new_plane_that_says_nothing_is_an_error() -> None:
    planes = Planes()
    planes.lose()
    due = planes.timers.next()
    assert due == 10.0
    with pytest.raises(PlaneError, match="not ready after 10 s"):
        planes.timers.run(due)


def test_a_new_plane_that_is_ready_in_time_stays() -> None:
    planes = Planes()
    planes.lose()
    assert planes.keeper.receive() is None, "Ready is the keeper's business"
    assert planes.timers.next() is None
