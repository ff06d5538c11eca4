"""Tunnels left idle: what a NAT that forgets does to a responder's rekey, and what breaks the lab that shows it."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from run_world import check, commands, passed
from test_rekey_check import Fake
from two_nodes import CLIENT, SERVER, Nodes

from natbed.checks import CheckResult, Verdict
from natbed.checks import idle as idle_check
from natbed.checks.idle import IdleTunnel, check_forgotten, check_kept
from natbed.checks.sa_pairs import RekeyTarget
from natbed.conntrack import Mapping
from natbed.judging import Judge
from natbed.nat import presets
from natbed.nat.profile import NatProfile
from natbed.nat.rules import refused
from natbed.paths import on_the_way, translating
from natbed.runner import Run, RunOptions
from natbed.settings import Protection
from natbed.stacks.base import Daemons, StackError, Timing
from natbed.topology_files import find

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAME = "client1-server"
MANY, ONE, NONE = presets.MASQUERADE, presets.ONE_TO_ONE, presets.ROUTED


def mapping(inside: str, public: str, remote: str, **more: Any) -> Mapping:
    def end(text: str) -> tuple[str, int]:
        address, _, port = text.partition(":")
        return address, int(port or 500)

    usual = {"replied": True, "assured": True, "seconds": 3, "identifier": 1, "packets": 10, "octets": 1000}
    return Mapping(inside=end(inside), public=end(public), remote=end(remote), **{**usual, **more})


def test_each_tunnel_finds_its_own_mapping_in_every_nat_on_its_way() -> None:
    scenario = find("B")(clients=2)
    nat1, nat2 = "203.0.113.2", "203.0.113.19"
    inner = [
        mapping("192.168.1.12", f"{nat1}:337", nat2),
        mapping("192.168.1.11", nat1, nat2),
        mapping("192.168.1.11:53", f"{nat1}:53", "203.0.113.9:53"),
    ]
    server = scenario.hosts_planned["server"].address
    outer = [mapping(server, nat2, f"{nat1}:337", identifier=2), mapping(server, nat2, nat1, identifier=3)]
    held = {"nat1": inner, "nat2": outer}
    first, second = scenario.tunnels()
    assert translating(scenario, first) == ("nat1", "nat2")
    assert on_the_way(scenario, first, held) == {"nat1": inner[1], "nat2": outer[1]}
    assert on_the_way(scenario, second, held) == {"nat1": inner[0], "nat2": outer[0]}
    assert on_the_way(scenario, second, {"nat1": [], "nat2": outer[1:]}) == {"nat2": outer[1]}, "it may be anybody's"
    assert on_the_way(scenario, second, {}) == {}


# what the checks make of it, without IPsec and without a NAT


class FakeNats:
    """One NAT whose mapping is what a test says at each look."""

    def __init__(self, look: Callable[[int], Mapping | None], dropped: int = 4) -> None:
        self.look = look
        self.looks = 0
        self.dropped = dropped
        self.total = 0

    @contextlib.contextmanager
    def forgetting_after(self, seconds: int) -> Iterator[None]:
        yield

    def mappings(self) -> dict[str, dict[str, Mapping]]:
        self.looks += 1
        found = self.look(self.looks)
        return {NAME: {} if found is None else {"nat": found}}

    def refused(self) -> dict[str, int]:
        self.total += self.dropped
        return {"nat": self.total}


def tunnel(nodes: Nodes, *, forgets: str = "", responder: Callable[[], object] = lambda: None) -> IdleTunnel:
    pair = [0x1001, 0x1002]
    ends: list[Any] = [Fake(pair, initiator=True), Fake(pair, initiator=False, during=responder)]
    return IdleTunnel(RekeyTarget(NAME, *nodes, CLIENT[0], SERVER[0], *ends), ("nat",), forgets)


def used(look: int, packets: int = 1, octets: int = 29) -> Mapping:
    return mapping("192.168.1.11", "203.0.113.2", "203.0.113.18", packets=look * packets, octets=look * octets)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_check, "_SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(idle_check, "_ARRIVAL_SECONDS", 0.5)


def kept(nodes: Nodes, look: Callable[[int], Mapping | None]) -> CheckResult:
    return check_kept([tunnel(nodes)], FakeNats(look), one_flow=False, timeout=0)


@needs_root
@pytest.mark.usefixtures("soon")
def test_a_mapping_that_keepalives_hold_passes(nodes: Nodes) -> None:
    result = kept(
        nodes,
        lambda look: mapping("192.168.1.11", "203.0.113.2", "203.0.113.18", seconds=0, packets=look, octets=29 * look),
    )
    assert result.verdict is Verdict.PASSED, result.reason
    assert result.details["keepalives"][NAME] > 3
    assert result.details["idle_seconds"] >= 0.5
    assert [done["step"] for done in result.details["rekeys"][NAME]] == [
        "Quick Mode by the responder",
        "phase 1 by the responder",
    ]


def never_shorter(look: int) -> Mapping:
    return mapping("192.168.1.11", "203.0.113.2", "203.0.113.18", seconds=120)


def lost(look: int) -> Mapping | None:
    return None if look > 4 else mapping("192.168.1.11", "203.0.113.2", "203.0.113.18", seconds=0)


def another(look: int) -> Mapping:
    return mapping("192.168.1.11", "203.0.113.2", "203.0.113.18", seconds=0, identifier=look)


def unused(look: int) -> Mapping:
    return mapping("192.168.1.11", "203.0.113.2", "203.0.113.18", seconds=0)


def busy(look: int) -> Mapping:
    return mapping("192.168.1.11", "203.0.113.2", "203.0.113.18", seconds=0, packets=look, octets=120 * look)


@needs_root
@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("look", "verdict", "reason"),
    [
        (never_shorter, Verdict.LAB_BROKEN, "nat would hold its mapping for 120 s more; its timeout is 0 s"),
        (unused, Verdict.LAB_BROKEN, "s, and a NAT still has its mapping"),
        (busy, Verdict.LAB_BROKEN, "client1-server is never idle"),
        (lost, Verdict.FAILED, "nat lost the mapping 203.0.113.2:500 of 192.168.1.11:500 after"),
        (another, Verdict.FAILED, "there is another one in its place"),
    ],
)
def test_what_is_wrong_with_a_mapping_is_the_right_ones_fault(
    nodes: Nodes, look: Callable[[int], Mapping | None], verdict: Verdict, reason: str
) -> None:
    result = kept(nodes, look)
    assert result.verdict is verdict, result.reason
    assert reason in result.reason


def unanswered() -> None:
    raise StackError("server: rekey: timed out")


@needs_root
@pytest.mark.usefixtures("soon")
def test_a_rekey_that_comes_nowhere_is_what_a_nat_that_forgot_must_bring(nodes: Nodes) -> None:
    one = tunnel(nodes, forgets="nat", responder=unanswered)
    result = check_forgotten([one], FakeNats(lambda look: None), one_flow=False)
    assert result.verdict is Verdict.PASSED, result.reason
    assert set(result.details["refused"]) == {"Quick Mode by the responder", "phase 1 by the responder"}
    assert result.details["mended"][NAME]["step"] == "phase 1 by the initiator"
    assert not result.details["rekeys"]


@needs_root
@pytest.mark.usefixtures("soon")
def test_what_must_not_happen_without_a_mapping_fails(nodes: Nodes) -> None:
    gone = FakeNats(lambda look: None)
    result = check_forgotten([tunnel(nodes, forgets="nat")], gone, one_flow=False)
    assert (result.verdict, result.reason) == (
        Verdict.FAILED,
        "client1-server: Quick Mode by the responder: it worked, though nat had forgotten the mapping",
    )
    silent = FakeNats(lambda look: None, dropped=0)
    result = check_forgotten([tunnel(nodes, forgets="nat", responder=unanswered)], silent, one_flow=False)
    assert result.reason == "client1-server: Quick Mode by the responder: only 0 of its messages came to nat"
    result = check_forgotten([tunnel(nodes, responder=unanswered)], gone, one_flow=False)
    assert result.reason == "client1-server: Quick Mode by the responder: server: rekey: timed out", (
        "nobody shuts it out"
    )
    harmed = tunnel(nodes, forgets="nat", responder=unanswered)
    pair = harmed.target.responder.pair  # type: ignore[attr-defined]

    def harm() -> None:
        pair[:] = [7, 8]
        unanswered()

    harmed.target.responder.during = harm  # type: ignore[attr-defined]
    result = check_forgotten([harmed], gone, one_flow=False)
    assert result.reason.startswith(
        "client1-server: the responder's rekeys came nowhere, yet its SAs were 0x1001, 0x1002"
    )


@needs_root
@pytest.mark.usefixtures("soon")
def test_a_mapping_that_does_not_end_is_its_users_fault_or_the_labs(nodes: Nodes) -> None:
    one = tunnel(nodes, forgets="nat", responder=unanswered)
    result = check_forgotten([one], FakeNats(unused), one_flow=False, timeout=0)
    assert (result.verdict, "nat still has its mapping, though nothing" in result.reason) == (Verdict.LAB_BROKEN, True)
    result = check_forgotten([one], FakeNats(busy), one_flow=False, timeout=0)
    assert (result.verdict, "packets passed nat though keepalives" in result.reason) == (Verdict.FAILED, True)
    forward = FakeNats(lambda look: None if look < 3 else msgspec.structs.replace(unused(look), forwarded=True))
    result = check_forgotten([one], forward, one_flow=False, timeout=0)
    assert (result.verdict, "by the responder: nat let the responder in" in result.reason) == (Verdict.FAILED, True)
    assert check_forgotten([], forward, one_flow=False).verdict is Verdict.LAB_BROKEN


@needs_root
@pytest.mark.usefixtures("soon")
def test_an_initiator_that_speaks_by_itself_has_another_chance_to_be_silent(nodes: Nodes) -> None:
    one = tunnel(nodes, forgets="nat", responder=unanswered)
    once = FakeNats(lambda look: unused(look) if look == 3 else None)  # two looks find it forgotten
    result = check_forgotten([one], once, one_flow=False, timeout=0)
    assert result.verdict is Verdict.PASSED, result.reason
    assert result.reason.startswith("once more, since at first client1-server: Quick Mode by the responder: nat has a")
    always = FakeNats(lambda look: unused(look) if look % 3 == 0 else None)
    result = check_forgotten([one], always, one_flow=False, timeout=0)
    assert result.verdict is Verdict.FAILED
    assert result.reason.endswith("nat has a mapping again, since the initiator's side spoke though all was to be idle")


# in real labs


def asked(
    folder: pathlib.Path, nat: NatProfile = MANY, timing: Timing | None = None, mode: str = "tunnel"
) -> RunOptions:
    return RunOptions(1, nat, Protection(mode=mode), 0, folder, "responder", timing or Timing())


def judged(options: RunOptions, judge: type[Judge] = Judge) -> tuple[Any, Run]:
    run = Run(find("A"), options, lambda step: None)
    run.judge = judge(run.lab, options.protection, options.seconds)
    return run.execute(), run


@pytest.mark.draft("REKEY-1", "KA-2")
@pytest.mark.usefixtures("isolated")
def test_without_keepalives_the_nat_forgets_and_that_is_the_reason(tmp_path: pathlib.Path) -> None:
    record, _ = judged(asked(tmp_path, timing=Timing(keepalive=0)))
    assert record.verdict is Verdict.FAILED
    assert record.reason.startswith(
        "idle: client1-server: nat lost the mapping 203.0.113.2:500 of 192.168.1.11:500 after"
    )
    assert record.reason.endswith(": no keepalive held it")
    assert check(record, "idle without keepalives").passed, "there that is as it should be"


@pytest.mark.usefixtures("isolated")
def test_timeouts_that_do_not_take_are_a_broken_lab(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_check, "_SETTLE_SECONDS", 1.0)
    monkeypatch.setattr("natbed.nat.rules.timeouts", lambda udp, stream: {})
    record, _ = judged(asked(tmp_path))
    assert record.verdict is Verdict.LAB_BROKEN
    assert record.reason.startswith("idle: client1-server: nat would hold its mapping for ")
    assert record.reason.endswith("its timeout is 3 s")


class PortForward(Judge):
    """In its lab the NAT lets the responder in as soon as nothing is held by keepalives."""

    def idle(self, daemons: Daemons) -> CheckResult:
        return CheckResult(name="idle", verdict=Verdict.PASSED, reason="not looked at")

    def idle_without_keepalives(self, daemons: Daemons) -> CheckResult:
        forward = "-i nat-eth0 -p udp --dport 500 -j DNAT --to-destination 192.168.1.11"
        commands(
            self._lab["nat"],
            f"iptables -t nat -I PREROUTING {forward}",
            "iptables -I FORWARD -i nat-eth0 -m conntrack --ctstate DNAT -j ACCEPT",
        )
        return super().idle_without_keepalives(daemons)


@pytest.mark.usefixtures("isolated")
def test_a_nat_that_lets_the_responder_in_all_the_same_fails(tmp_path: pathlib.Path) -> None:
    record, _ = judged(asked(tmp_path), PortForward)
    assert record.verdict is Verdict.FAILED
    reason = "Quick Mode by the responder: it worked, though nat had forgotten the mapping"
    assert record.reason == f"idle without keepalives: client1-server: {reason}"


class Talkative(Judge):
    """In its lab the client sends something just when the NAT has forgotten it."""

    def idle_without_keepalives(self, daemons: Daemons) -> CheckResult:
        def speak_first(tunnels: Any, nats: Any) -> dict[str, Any]:
            try_all.undo()
            commands(self._lab["client1"], f"ping -c 1 -w 5 {tunnels[0].target.server_address}")
            return idle_check._try_all_in_vain(tunnels, nats)

        with pytest.MonkeyPatch.context() as try_all:
            try_all.setattr(idle_check, "_try_all_in_vain", speak_first)
            return super().idle_without_keepalives(daemons)


@pytest.mark.usefixtures("isolated")
def test_what_the_client_itself_says_is_not_blamed_on_the_nat(tmp_path: pathlib.Path) -> None:
    record, _ = judged(asked(tmp_path), Talkative)
    assert record.verdict is Verdict.PASSED, record.reason
    assert check(record, "idle without keepalives").reason.startswith("once more, since at first client1-server: ")


@pytest.mark.draft("REKEY-1", "KA-2")
@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize(("nat", "mode"), [(ONE, "tunnel"), (NONE, "transport"), (MANY, "transport")])
def test_keepalives_are_needed_where_a_nat_forgets_and_nowhere_else(
    tmp_path: pathlib.Path, nat: NatProfile, mode: str
) -> None:
    record, run = judged(asked(tmp_path, nat, mode=mode))
    passed(record)
    assert [one.name for one in record.checks if one.name != "L2TP"] == [
        *("NAT", "NAT discovery", "connectivity", "idle", "rekey", "idle without keepalives", "wire")
    ]
    held, forgotten = check(record, "idle").details, check(record, "idle without keepalives").details
    assert held["idle_seconds"] > held["timeout_seconds"] == 3
    assert bool(held["keepalives"]) is (nat is not NONE)
    assert ("no NAT that could forget" in check(record, "idle").reason) is (nat is NONE)
    assert all(number >= 4 for number in held["keepalives"].values())
    assert len(held["rekeys"][NAME]) == 2
    assert (
        bool(forgotten["mended"]) is bool(forgotten["refused"]["Quick Mode by the responder"]["said"]) is (nat is MANY)
    )
    assert [len(done) for done in forgotten["rekeys"].values()] == [2] * (nat is not MANY)
    log = (run.folder / "client1" / "espthrunat.toml").read_text()
    assert "keepalive = 0" in log.splitlines(), "in the end it was told to send none"


@pytest.mark.usefixtures("isolated")
def test_what_a_nat_refuses_is_counted(tmp_path: pathlib.Path) -> None:
    from lab_flows import udp_socket
    from lab_world import NAT, home

    with home(tmp_path) as world:
        before = refused(world.nat, world.nat.profile)
        with udp_socket(world.lab["server"], port=500) as sender:
            for _ in range(3):
                sender.sendto(b"x", (NAT, 500))
        assert (before, refused(world.nat, world.nat.profile)) == (0, 3)
