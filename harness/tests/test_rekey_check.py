"""The check of rekeys: one lost datagram fails it, and so does an implementation that did not do what it said."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from two_nodes import CLIENT, SERVER, Nodes

from natbed.checks import CheckResult, Verdict
from natbed.checks.rekey import check_rekey, confirm_on_the_wire, steps
from natbed.checks.sa_pairs import RekeyTarget
from natbed.checks.streams import RATE, Stream, enlarge, judge_stream
from natbed.stacks.base import StackError, TunnelStatus

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
Hook = Callable[[], object]


class Fake:
    """An end without IPsec, whose SA pair is two numbers shared with the other end; `during` happens in a rekey."""

    ready_seconds = 0.0
    pids = ()

    def __init__(self, pair: list[int], *, initiator: bool, during: Hook = lambda: None) -> None:
        self.pair = pair
        self.initiator = initiator
        self.during = during
        self.asked: list[bool] = []

    def rekey(self, tunnel: str, phase1: bool, timeout: float) -> float:
        assert tunnel == "client1-server"
        self.asked.append(phase1)
        self.during()
        self.pair[:] = [self.pair[0] + 2, self.pair[1] + 2]
        return 0.01

    def status(self) -> list[TunnelStatus]:
        spis = [hex(spi) for spi in (self.pair if self.initiator else reversed(self.pair))]
        remote = ("192.0.2.1", 500)
        return [TunnelStatus(name="client1-server", remote=remote, nat=True, encapsulation="udp",
                             inbound_spi=spis[0], outbound_spi=spis[1], suite="")]  # fmt: skip

    def up(self, tunnel: str, timeout: float) -> float:
        raise NotImplementedError

    kill = restart = stop = memory = up


def target(nodes: Nodes, during: Hook = lambda: None) -> tuple[RekeyTarget, Any, Any]:
    pair = [0x1001, 0x1002]
    ends: list[Any] = [Fake(pair, initiator=True, during=during), Fake(pair, initiator=False)]
    return RekeyTarget("client1-server", *nodes, CLIENT[0], SERVER[0], *ends), *ends


@needs_root
@pytest.mark.parametrize("one_flow", [False, True])
def test_rekeys_that_cost_nothing_pass(nodes: Nodes, one_flow: bool) -> None:
    tunnel, initiator, responder = target(nodes)
    result = check_rekey([tunnel], steps("both"), one_flow=one_flow)
    assert (result.verdict, result.reason[:8]) == (Verdict.PASSED, "4 rekeys"), result.reason
    assert (initiator.asked, responder.asked) == ([False, True], [False, True])
    assert [done["step"] for done in result.details["rekeys"]["client1-server"]] == [
        "Quick Mode by the initiator",
        "Quick Mode by the responder",
        "phase 1 by the initiator",
        "phase 1 by the responder",
    ]
    assert result.details["spis"] == [hex(0x1003 + n) for n in range(8)]
    there, back = result.details["streams"]
    for stream in (there, back):
        assert stream["sent"] == stream["received"] >= 200
        assert (stream["lost"], stream["doubled"], stream["foreign"]) == (0, 0, 0)
        assert 0 < stream["longest_gap"] < 500


@needs_root
@pytest.mark.parametrize(
    ("node", "way", "one_flow"),
    [(1, "to the server", False), (0, "to the client", False), (0, "to the client", True)],
)
def test_one_lost_datagram_fails(nodes: Nodes, node: int, way: str, one_flow: bool) -> None:
    rule = "iptables -A INPUT -p udp -m statistic --mode nth --every 1000000 --packet 110 -j DROP"
    nodes[node].run(rule.split())
    tunnel, *_ = target(nodes)
    result = check_rekey([tunnel], steps("initiator"), one_flow=one_flow)
    assert result.verdict is Verdict.FAILED
    assert f"client1-server {way}: 1 of " in result.reason
    assert result.reason.endswith("datagrams were lost, the first number 110")
    assert sorted(stream["lost"] for stream in result.details["streams"]) == [0, 1]


@needs_root
def test_a_rekey_that_is_refused_or_changes_nothing_fails(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise StackError("client1: no proposal chosen")

    result = check_rekey([target(nodes, refuse)[0]], steps("initiator"), one_flow=False)
    assert (result.verdict, result.reason) == (
        Verdict.FAILED,
        "client1-server: Quick Mode by the initiator: client1: no proposal chosen",
    )
    monkeypatch.setattr("natbed.checks.rekey._ARRIVAL_SECONDS", 0.5)
    tunnel, initiator, _ = target(nodes)
    initiator.rekey = lambda *arguments: 0.01
    result = check_rekey([tunnel], steps("both"), one_flow=False)
    assert result.verdict is Verdict.FAILED
    assert "do not share one new SA pair; new ones are none" in result.reason
    tunnel, _, responder = target(nodes)
    responder.status = list
    result = check_rekey([tunnel], steps("initiator"), one_flow=False)
    assert "do not share one new SA pair; new ones are 0x1003/0x1004" in result.reason


@needs_root
def test_a_path_that_is_dead_fails_in_time(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natbed.checks.streams._ARRIVAL_SECONDS", 0.3)
    nodes[1].run(["iptables", "-A", "INPUT", "-p", "udp", "-j", "DROP"])
    tunnel, initiator, _ = target(nodes)
    before = threading.active_count()
    for one_flow in (False, True):
        result = check_rekey([tunnel], steps("initiator"), one_flow=one_flow)
        assert result.verdict is Verdict.FAILED
        assert "client1-server to the server" in result.reason
    assert not initiator.asked, "nothing is rekeyed where nothing flows"
    assert threading.active_count() == before


@needs_root
def test_what_cannot_be_tried_is_a_broken_lab(nodes: Nodes) -> None:
    tunnel, *ends = target(nodes)
    nowhere = RekeyTarget(tunnel.name, *nodes, "10.9.9.9", SERVER[0], *ends)
    result = check_rekey([nowhere], steps("both"), one_flow=False)
    assert (result.verdict, "10.9.9.9" in result.reason) == (Verdict.LAB_BROKEN, True)
    assert check_rekey([], steps("both"), one_flow=False).verdict is Verdict.LAB_BROKEN


class Slow(Fake):
    """Its new SA carries nothing when it is first asked about it."""

    def __init__(self, pair: list[int], *, initiator: bool, patience: int) -> None:
        super().__init__(pair, initiator=initiator)
        self.seen: list[tuple[int, int]] = []
        self._patience = patience

    def received_packets(self) -> dict[str, int]:
        spi = self.pair[0 if self.initiator else 1]
        packets = int(sum(seen == spi for seen, _ in self.seen) >= self._patience)
        self.seen.append((spi, packets))
        return {f"0x{spi:08x}": packets, "0x00000777": 9}

    def dropped_packets(self) -> dict[str, int]:
        return {} if self.initiator else {"drop_tun_queue": 30}


@needs_root
def test_each_pair_is_used_both_ways_before_it_is_replaced(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the wire cannot show it, and the audit would ask in vain."""
    pair = [0x1001, 0x1002]
    ends: list[Any] = [Slow(pair, initiator=one, patience=3) for one in (True, False)]
    tunnel = RekeyTarget("client1-server", *nodes, CLIENT[0], SERVER[0], *ends)
    result = check_rekey([tunnel], steps("both"), one_flow=False)
    assert result.passed, result.reason
    assert result.details["dropped"] == {"responder of client1-server": {"drop_tun_queue": 30}}
    for end in ends:
        assert [packets for _, packets in end.seen] == [0, 0, 0, 1] * 4
    monkeypatch.setattr("natbed.checks.rekey._ARRIVAL_SECONDS", 0.3)
    ends[1] = Slow(pair, initiator=False, patience=10**9)
    never = RekeyTarget("client1-server", *nodes, CLIENT[0], SERVER[0], *ends)
    result = check_rekey([never], steps("initiator"), one_flow=False)
    assert result.verdict is Verdict.FAILED
    assert result.reason == "client1-server: Quick Mode by the initiator: nothing came by the new SA 0x100c"


@needs_root
def test_what_the_lab_did_not_read_is_not_the_implementations_loss(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "unread", 7)
    result = check_rekey([target(nodes)[0]], steps("initiator"), one_flow=False)
    assert (result.verdict, "too slow to read 7" in result.reason) == (Verdict.LAB_BROKEN, True)


def test_what_finds_no_room_at_the_receiver_is_counted() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", 0))
        stream = Stream(0, "x", sender, receiver, receiver.getsockname())
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(50):
            sender.sendto(bytes(500), receiver.getsockname())
        receiver.setblocking(False)
        read = 0
        with contextlib.suppress(BlockingIOError):
            while receiver.recv(1000):
                read += 1
        assert (read + stream.unread, 0 < read < 50) == (50, True)
        before = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        enlarge(receiver)
        assert receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > before


class Starved:
    """A socket whose first datagram takes half a second, as on a machine that is busy with others."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def sendto(self, data: bytes, to: tuple[str, int]) -> None:
        if not self.times:
            time.sleep(0.5)
        self.times.append(time.monotonic())


def test_a_sender_that_was_held_up_does_not_flood() -> None:
    starved = Starved()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        stream = Stream(0, "x", starved, receiver, receiver.getsockname())  # type: ignore[arg-type]
        stream.begin()
        until = time.monotonic() + 10
        while stream.sent < 100:
            assert time.monotonic() < until, f"{stream.sent} of 100 were sent"
            time.sleep(0.005)
        stream.finish()
    seconds = starved.times[99] - starved.times[0]
    assert seconds > (100 - 15) / RATE, f"100 datagrams in {seconds:.3f} s"


def arrivals(*numbers: int) -> Sequence[tuple[int, float]]:
    return [(number, 0.002 * place) for place, number in enumerate(numbers)]


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        (range(40), ""),
        ([*range(10), 11, 10, *range(12, 40)], ""),
        ([*range(39)], "1 of 40 datagrams were lost, the first number 39"),
        ([*range(1, 40)], "1 of 40 datagrams were lost, the first number 0"),
        ([], "40 of 40 datagrams were lost, the first number 0"),
        ([*range(40), 7], "1 of 40 datagrams came twice, 0 were never sent"),
        ([*range(40), 40], "0 of 40 datagrams came twice, 1 were never sent"),
        ([*range(10), *range(11, 27), 10, *range(27, 40)], ""),
        ([*range(10), *range(11, 28), 10, *range(28, 40)], "a datagram came 17 places late"),
    ],
)
def test_a_stream_is_judged_by_its_numbers(numbers: Sequence[int], problem: str) -> None:
    assert judge_stream("x", 40, arrivals(*numbers)).problem == problem


def test_the_longest_gap_is_told() -> None:
    assert judge_stream("x", 3, [(0, 1.0), (1, 1.002), (2, 1.252)]).longest_gap == 250.0


def test_new_sas_must_show_on_the_wire() -> None:
    result = CheckResult(name="rekey", verdict=Verdict.PASSED, reason="", details={"spis": ["0x00001003", "0x1004"]})
    assert confirm_on_the_wire(result, ["0x1004", "0x1003", "0x1"]) is result
    missing = confirm_on_the_wire(result, ["0x00001003"])
    assert (missing.verdict, missing.reason) == (Verdict.FAILED, "no packet of the new SA 0x1004 was on the wire")
