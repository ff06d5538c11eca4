"""A process dies, and what it carried comes back: planes by their daemon, peers by asking whether they live."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
from daemon_world import Host, has_ended, pair, running
from plane_world import DEADLINE, INNER, Namespace, two_namespaces, what_is_missing

missing = what_is_missing()
Condition = Callable[[dict[str, Any]], bool]

pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def is_up(status: dict[str, Any]) -> bool:
    return bool(status["sas"])


def has_new(before: dict[str, Any]) -> Condition:
    old = {sa["inbound_spi"] for sa in before["sas"]}
    return lambda status: bool(status["sas"]) and not old & {sa["inbound_spi"] for sa in status["sas"]}


def restarted(times: int) -> Condition:
    return lambda status: bool(status["plane"]["restarts"] == times)


def more_keepalives(than: int) -> Condition:
    return lambda stats: bool(stats["counters"].get("keepalive_in", 0) > than)


def network(inside: Namespace) -> list[str]:
    """Everything that a plane could leave behind."""
    return [
        inside.run("ip", "-oneline", "link"),
        inside.run("ip", "-4", "rule"),
        inside.run("ip", "-4", "route", "show", "table", "all"),
    ]


def ping(inside: Namespace, number: int) -> None:
    inside.run("ping", "-c", "1", "-W", "5", "-I", INNER[number], INNER[1 - number])


@pytest.mark.parametrize("victim", [0, 1], ids=["initiator", "responder"])
def test_a_killed_plane_is_replaced_and_traffic_flows_again(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, victim: int
) -> None:
    with pair(sides, tmp_path) as ends:
        ends[0].ask("up", connection="peer")
        ends[1].wait(is_up)
        before = [end.ask("status") for end in ends]
        daemon = ends[victim]
        killed = daemon.plane
        os.kill(killed, signal.SIGKILL)
        daemon.log.wait_for("the data plane has ended (signal 9): starting another")
        after = daemon.wait(has_new(before[victim]))
        assert has_ended(killed)
        assert after["plane"] == {"pid": daemon.plane, "restarts": 1}
        assert daemon.plane != killed
        for number, end in enumerate(ends):
            end.wait(has_new(before[number]))
            assert len(end.wait(lambda status: not status["retired"])["sas"]) == 1
        for number in range(2):  # only now: a responder answers when it has seen message 3
            ping(sides[number], number)
        assert ends[1 - victim].ask("status")["plane"]["restarts"] == 0
        assert daemon.stop() == 0


def test_no_key_of_a_killed_plane_is_used_again(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """Its sequence numbers, which are the nonces of AES-GCM, are lost with it."""
    keys = tmp_path / "keys"
    with pair(sides, tmp_path, "--keylog", str(keys)) as (left, right):
        left.ask("up", connection="peer")
        right.wait(is_up)
        before = left.ask("status")
        os.kill(left.plane, signal.SIGKILL)
        left.wait(has_new(before))
        secrets = [line.split(",")[5] for line in (keys / "esp_sa").read_text().splitlines()]
        assert len(secrets) == len(set(secrets)) == 4
        used = {sa["spi"] for sa in left.ask("stats")["sas"]}
        assert not used & {before["sas"][0]["inbound_spi"], before["sas"][0]["outbound_spi"]}


@pytest.mark.draft("KA-2")
def test_a_new_plane_sends_the_keepalives_of_the_old_one(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    lines = ('encapsulation = "always"', "keepalive = 0.2")
    with pair(sides, tmp_path, connection=lines) as (left, right):
        left.ask("up", connection="peer")
        right.wait(more_keepalives(0), "stats")
        before = left.ask("status")
        os.kill(left.plane, signal.SIGKILL)
        left.wait(has_new(before))
        right.wait(more_keepalives(right.ask("stats")["counters"]["keepalive_in"] + 2), "stats")


def test_who_asked_the_old_plane_is_told(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    with running(sides[0], Host(0, tmp_path)) as daemon, socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(DEADLINE)
        plane = daemon.plane
        os.kill(plane, signal.SIGSTOP)
        asking.connect(str(daemon.host.control))
        asking.sendall(b'{"command": "stats"}\n')
        assert daemon.ask("status")["plane"]["pid"] == plane, "a plane that hangs keeps nobody else waiting"
        os.kill(plane, signal.SIGKILL)
        told = {"ok": False, "error": "the data plane has ended; another one was started"}
        assert json.loads(asking.recv(4096)) == told
        assert daemon.ask("stats")["counters"] is not None


def test_a_plane_that_ends_again_and_again_ends_the_daemon_with_one_clear_line(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    before = network(sides[0])
    with running(sides[0], Host(0, tmp_path)) as daemon:
        for restarts in range(6):
            daemon.wait(restarted(restarts))
            os.kill(daemon.plane, signal.SIGKILL)
        assert daemon.ended() == 1
        log = daemon.log.wait_for_end()
        assert "Traceback" not in log
        last = log.splitlines()[-1]
        assert last == "espthrunat: the data plane has ended (signal 9), for the 6th time within 60 s: giving up"
        assert not daemon.host.control.exists()
    assert network(sides[0])[0] == before[0], "no device"


def test_a_killed_daemon_leaves_no_device_rule_or_route(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    before = network(here)
    with pair(sides, tmp_path) as (left, _):
        left.ask("up", connection="peer")
        assert network(here) != before
        plane = left.plane
        left.process.kill()
        left.ended()
        assert has_ended(plane)
        assert network(here) == before


def test_a_peer_whose_daemon_was_killed_comes_back_by_itself(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    """The initiator finds out that nobody answers, and begins anew as long as it takes."""
    lines = ("dpd = 1", "start = true", "retry = 0.5")
    here, there = (Host(number, tmp_path, connection=lines if number == 0 else ("dpd = 1",)) for number in (0, 1))
    with running(sides[0], here) as left:
        with running(sides[1], there) as right:
            before = left.wait(is_up)
            right.process.kill()
            right.ended()
        left.log.wait_for("the peer does not answer")
        with running(sides[1], there) as right:
            left.wait(has_new(before))
            right.wait(is_up)
            ping(sides[0], 0)
            ping(sides[1], 1)


def test_a_restarted_initiator_replaces_what_it_has_forgotten(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, there = Host(0, tmp_path, connection=("start = true",)), Host(1, tmp_path, connection=("dpd = 0",))
    with running(sides[1], there) as right:
        with running(sides[0], here) as left:
            left.wait(is_up)
            before = right.wait(is_up)
            left.process.kill()
            left.ended()
        with running(sides[0], here) as left:
            left.wait(is_up)
            after = right.wait(has_new(before))
            assert len(after["sas"]) == len(after["ike_sas"]) == 1, "the old ones are not kept"
            ping(sides[1], 1)
