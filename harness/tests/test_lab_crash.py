"""Processes are killed without a word: traffic comes back by itself, and what they leave behind is cleared away."""

from __future__ import annotations

import pathlib
import re
import time
from collections.abc import Iterator

import pytest
from lab_flows import Pings, ping
from lab_world import CLIENTS, INNER, Daemon, World, home

from natbed.isolation import runtime_directory
from natbed.node import Node

pytestmark = pytest.mark.usefixtures("isolated")

RESTART_SECONDS = 10.0


def programs(node: Node) -> list[str]:
    """The processes of espthrunat in a node."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "ns" / "net").stat().st_ino == node.namespace
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if inside and b"-m" in words:
            found.append(words[words.index(b"-m") + 1].decode())
    return sorted(found)


def footprint(node: Node) -> dict[str, list[str]]:
    """Everything of espthrunat in a node that outlives a process, tables without their numbers; and its processes."""
    commands = {
        "links": ["ip", "-brief", "link"],
        "rules": ["ip", "rule"],
        "routes": ["ip", "route", "show", "table", "all"],
    }
    shown = {name: node.run(command).stdout for name, command in commands.items()}
    # A table's number has its device's in it, and each device has a number of its own.
    texts = {name: re.sub(r"\b1157\d{6}\b", "TABLE", text) for name, text in shown.items()}
    texts["links"] = "\n".join(line.split()[0] for line in texts["links"].splitlines())
    sockets = sorted(path.name for path in runtime_directory().glob(f"{node.name}*"))
    lines = {name: sorted(text.splitlines()) for name, text in texts.items()}
    return {**lines, "sockets": sockets, "programs": programs(node)}


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    with home(tmp_path) as world:
        yield world


@pytest.mark.parametrize("process", ["daemon", "plane"])
@pytest.mark.parametrize("victim", ["client1", "server"])
def test_traffic_flows_again_after_a_crash_and_nothing_is_left_behind(world: World, victim: str, process: str) -> None:
    nodes = world.lab["client1"], world.lab["server"]
    empty = [footprint(node) for node in nodes]
    client, server = world.start_pair({"dpd": 1.0, "start": True, "retry": 0.5}, {"dpd": 1.0})
    client.wait(lambda status: bool(status["sas"]))
    ping(nodes[0], INNER, CLIENTS[0])
    running = [footprint(node) for node in nodes]
    assert [one["programs"] for one in running] == [["espthrunat", "espthrunat.plane"]] * 2
    daemon = world.daemons[victim]
    with Pings(nodes[0], INNER, CLIENTS[0]) as outward, Pings(nodes[1], CLIENTS[0], INNER) as inward:
        outward.answer_after(0.0)
        inward.answer_after(0.0)
        moment = crash(daemon, process)
        seconds = [pings.answer_after(moment, RESTART_SECONDS).received - moment for pings in (outward, inward)]
        outward.answer_after(time.time(), more=5)
        inward.answer_after(time.time(), more=5)
    print(f"kill -9 of {victim}'s {process}: traffic again after {seconds[0]:.2f} s outward, {seconds[1]:.2f} s inward")
    assert [footprint(node) for node in nodes] == running, "as much as before, and no more"
    for one in (client, server):
        one.wait(lambda status: len(status["ike_sas"]) == 1)
        known = {sa["spi"] for sa in one.ask("stats")["sas"]}
        assert one.spis() <= known, "the plane has every SA that the daemon shows"
    world.stop()
    assert [footprint(node) for node in nodes] == empty


def crash(daemon: Daemon, process: str) -> float:
    """Kill one of the two; a daemon is started again. When it was dead, in seconds since the epoch."""
    if process == "plane":
        daemon.kill_plane()
        return time.time()
    daemon.kill()
    moment = time.time()
    assert programs(daemon.node) == [], "its plane has ended too"
    daemon.start()
    return moment
