"""The check of recovery on a bare wire: what is lost counts, what does not come back fails, what raises is raised."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from two_nodes import CLIENT, SERVER, Nodes

from natbed.checks import Verdict
from natbed.checks.recovery import check_recovery
from natbed.checks.sa_pairs import RekeyTarget
from natbed.faults.base import FaultError, FaultRecord, Moment, await_effect
from natbed.node import Node

pytestmark = pytest.mark.usefixtures("isolated")


def target(nodes: Nodes) -> RekeyTarget:
    ends: list[Any] = [None, None]  # no implementation
    return RekeyTarget("client1-server", *nodes, CLIENT[0], SERVER[0], *ends)


class Outage:
    """The server hears nothing for a while, or from now on."""

    def __init__(self, node: Node, *, ends: bool) -> None:
        self.node = node
        self.ends = ends

    def strike(self, _scene: object = None) -> FaultRecord:
        moment = Moment()
        self.node.run(["iptables", "-t", "raw", "-A", "PREROUTING", "-j", "DROP"])
        await_effect(lambda: "" if self.dropped() >= 10 else "too few were dropped")
        if self.ends:
            self.node.run(["iptables", "-t", "raw", "-F"])
        return moment.record(self, "the server was deaf")

    def dropped(self) -> int:
        counters = self.node.run(["iptables-save", "-c", "-t", "raw"]).stdout
        return sum(int(number) for number in re.findall(r"^\[(\d+):\d+\] -A", counters, re.MULTILINE))


@pytest.mark.parametrize("one_flow", [False, True])
def test_what_was_lost_meanwhile_is_counted(nodes: Nodes, one_flow: bool) -> None:
    result = check_recovery([target(nodes)], Outage(nodes[1], ends=True).strike, one_flow=one_flow)
    assert result.verdict is Verdict.PASSED, result.reason
    there, back = result.details["streams"]
    assert there["lost"] >= 10
    assert back["lost"] == 0
    assert result.reason == f"recovered 0.0 s after the server was deaf, {there['lost']} datagrams lost"


def test_what_does_not_come_back_fails_and_names_the_stream(nodes: Nodes) -> None:
    result = check_recovery([target(nodes)], Outage(nodes[1], ends=False).strike, one_flow=False, within=0.2)
    assert result.verdict is Verdict.FAILED
    assert result.reason == "client1-server to the server: nothing came through within 0.2 s after the server was deaf"
    assert result.details["away_seconds"]["client1-server to the client"] == 0


def test_a_fault_that_does_not_happen_is_raised_and_the_streams_end(nodes: Nodes) -> None:
    def strike() -> FaultRecord:
        raise FaultError("nothing happened")

    before = threading.active_count()
    with pytest.raises(FaultError, match="nothing happened"):
        check_recovery([target(nodes)], strike, one_flow=False)
    assert threading.active_count() == before


def test_without_tunnels_there_is_nothing_to_judge() -> None:
    result = check_recovery([], lambda: pytest.fail("nothing was to happen"), one_flow=False)
    assert (result.verdict, result.reason) == (Verdict.LAB_BROKEN, "there is no tunnel that could recover")
