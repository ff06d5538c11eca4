"""What the daemon decides without I/O: policies of the plane, silent plain ESP, who waits for what."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ike_world import INITIATOR

from espthrunat.control import Client
from espthrunat.esp.suites import SUITES
from espthrunat.ike.child_sa import ChildSa
from espthrunat.ike.policy import Rebinding
from espthrunat.ike.timers import Timers
from espthrunat.messages import (
    AddPolicy,
    DeletePolicy,
    Direction,
    Encapsulation,
    Mode,
    Path,
    SaStats,
    Selector,
)
from espthrunat.plain_esp import PlainEspWatch
from espthrunat.plane_policies import PlanePolicies
from espthrunat.plane_sas import add_sa
from espthrunat.waiting import Wait, Waiting

HERE, PEER, OTHER = "198.51.100.1", "203.0.113.2", "203.0.113.3"


def child(
    number: int, *, remote: str = PEER, port: int = 500, mode: Mode = Mode.TRANSPORT, selector: Selector | None = None
) -> ChildSa:
    return ChildSa(
        connection="server",
        path=Path(HERE, 500, remote, port),
        suite=SUITES["aes128gcm16"],
        encapsulation=Encapsulation.NONE,
        selector=selector or Selector(f"{HERE}/32", f"{remote}/32"),
        inbound_spi=0x1000 + number,
        outbound_spi=0x2000 + number,
        inbound_keymat=bytes(20),
        outbound_keymat=bytes(20),
        mode=mode,
    )


# policies

ANYBODY = replace(INITIATOR, mode=Mode.TRANSPORT, remote=None, selector=Selector(f"{HERE}/32", "0.0.0.0/0"))
KNOWN = replace(ANYBODY, remote=PEER, selector=Selector(f"{HERE}/32", f"{PEER}/32"))


def test_a_tunnel_has_its_policy_from_the_start_to_the_end() -> None:
    policies = PlanePolicies([replace(INITIATOR, source="192.168.1.11")])
    start = [AddPolicy("server", INITIATOR.selector, "192.168.1.11", Mode.TUNNEL)]
    assert policies.all_again() == start
    sa = child(1, mode=Mode.TUNNEL)
    assert policies.before(sa) is None
    assert policies.after(sa) is None
    assert policies.all_again() == start
    (anybodys,) = PlanePolicies([replace(INITIATOR, remote=None)]).all_again()
    assert not anybodys.on_demand, "nobody can be asked for an SA"


def test_transport_mode_to_a_known_peer_is_protected_before_there_is_an_sa() -> None:
    policies = PlanePolicies([KNOWN])
    assert policies.all_again() == [AddPolicy(f"server@{PEER}", KNOWN.selector, "", Mode.TRANSPORT)]
    assert policies.before(child(1)) is None
    assert policies.after(child(1)) is None, "without SAs its traffic is dropped, not sent in the clear"


def test_transport_mode_with_anybody_has_one_policy_an_address_while_there_are_sas() -> None:
    policies = PlanePolicies([ANYBODY])
    assert policies.all_again() == []
    first, second, elsewhere = child(1), child(2, port=1024), child(3, remote=OTHER)
    assert policies.before(first) == AddPolicy(f"server@{PEER}", first.selector, "", Mode.TRANSPORT, on_demand=False)
    assert policies.before(first) is None, "the same pair again, for its other direction"
    assert policies.before(second) is None, "two clients behind one NAT address"
    assert policies.before(elsewhere) == AddPolicy(
        f"server@{OTHER}", elsewhere.selector, "", Mode.TRANSPORT, on_demand=False
    )
    assert policies.after(first) is None
    assert policies.after(second) == DeletePolicy(f"server@{PEER}")
    assert policies.after(second) is None, "said once"
    assert policies.after(elsewhere) == DeletePolicy(f"server@{OTHER}")


def test_a_pair_whose_peer_has_moved_leaves_the_policy_that_it_came_with() -> None:
    policies = PlanePolicies([ANYBODY])
    policies.before(child(1))
    assert policies.after(child(1, remote=OTHER)) == DeletePolicy(f"server@{PEER}")


def test_a_policy_covers_any_port_when_a_nat_hides_the_peers() -> None:
    narrow = Selector(f"{HERE}/32", f"{PEER}/32", 17, 1701, 1701)
    policies = PlanePolicies([replace(KNOWN, selector=narrow)])
    wide = Selector(f"{HERE}/32", f"{PEER}/32", 17, 1701, 0)
    assert policies.before(child(1, selector=wide)) == AddPolicy(f"server@{PEER}", wide, "", Mode.TRANSPORT)
    assert policies.before(child(2, selector=wide)) is None
    assert policies.before(child(3, selector=narrow)) is None, "never narrower again"


def test_a_new_plane_is_told_only_what_is_always_true() -> None:
    policies = PlanePolicies([ANYBODY])
    policies.before(child(1))
    assert policies.all_again() == []
    assert policies.after(child(1)) is None
    assert policies.before(child(2)) is not None


# SAs


@pytest.mark.draft("SA-5")
def test_who_began_a_pair_is_the_first_to_replace_it_when_its_octets_are_used_up() -> None:
    soft = {}
    for initiator in (True, False):
        sa = replace(child(1), octets=1_000_000, initiator=initiator)
        halves = [add_sa(sa, direction, KNOWN) for direction in Direction]
        assert {half.hard_octets for half in halves} == {1_000_000}
        (soft[initiator],) = {half.soft_octets for half in halves}
    assert 0 < soft[True] < soft[False] < 1_000_000
    unlimited = add_sa(child(1), Direction.OUTBOUND, KNOWN)
    assert (unlimited.soft_octets, unlimited.hard_octets) == (0, 0)


def test_each_half_has_its_own_spi_and_key_and_both_their_policy() -> None:
    sa = replace(child(1), inbound_keymat=b"i" * 20, outbound_keymat=b"o" * 20)
    inbound, outbound = (add_sa(sa, direction, KNOWN) for direction in (Direction.INBOUND, Direction.OUTBOUND))
    assert (inbound.spi, inbound.keymat) == (sa.inbound_spi, b"i" * 20)
    assert (outbound.spi, outbound.keymat) == (sa.outbound_spi, b"o" * 20)
    for half in (inbound, outbound):
        assert (half.mode, half.policy, half.path) == (Mode.TRANSPORT, f"server@{PEER}", sa.path)
        assert not half.rebinding, "no peer is followed unless the connection says so"
    following = replace(KNOWN, rebinding=Rebinding.AUTHENTICATED)
    assert add_sa(sa, Direction.INBOUND, following).rebinding


# plain ESP


def sent(sa: ChildSa, packets: int) -> SaStats:
    return SaStats(sa.outbound_spi, Direction.OUTBOUND, sa.path, sa.suite.name, packets, packets * 100, {})


def plain_esp() -> PlainEspWatch:
    return PlainEspWatch(Timers(), lambda: None)


def test_the_plane_is_asked_now_and_then_until_something_comes_back() -> None:
    timers, asked = Timers(), list[float]()
    watch = PlainEspWatch(timers, lambda: asked.append(now))
    watch.added(child(1), 0.0)
    watch.added(child(2), 5.0)  # which must not put the first look off
    now = 0.0
    while (due := timers.next()) is not None and due < 35.0:
        now = due
        timers.run(now)
    assert asked == [10.0, 20.0, 30.0]
    watch.used(child(1).inbound_spi)
    watch.gone(child(2))
    timers.run(40.0)
    assert (len(asked), timers.next()) == (3, None)
    watch.added(child(3), 50.0)
    assert timers.next() == 60.0


def test_silence_after_something_was_sent_is_warned_of_once() -> None:
    watch, sa = plain_esp(), child(1)
    watch.added(sa, 0.0)
    assert watch.look([sent(sa, 0)], 10.0) == [], "nothing was sent, so nothing can come back"
    ((name, text),) = watch.look([sent(sa, 3)], 20.0)
    assert name == "server"
    assert text.startswith(f"no ESP has come back from {PEER}: is IP protocol 50 filtered on the way?")
    assert watch.notes() == {"server": text}
    assert watch.look([sent(sa, 5)], 30.0) == []
    watch.gone(sa)
    assert watch.notes() == {}


def test_what_has_come_back_once_is_not_silent() -> None:
    watch, sa = plain_esp(), child(1)
    watch.added(sa, 0.0)
    assert watch.used(sa.inbound_spi) == "", "no news: nobody had worried"
    assert watch.look([sent(sa, 3)], 20.0) == []
    assert not watch.curious(20.0)


def test_a_warning_is_taken_back() -> None:
    watch, sa = plain_esp(), child(1)
    watch.added(sa, 0.0)
    watch.look([sent(sa, 3)], 20.0)
    assert watch.used(sa.inbound_spi) == "server"
    assert watch.notes() == {}


def test_a_rekey_neither_hides_the_silence_nor_repeats_the_warning() -> None:
    watch, old, new = plain_esp(), child(1), child(2)
    watch.added(old, 0.0)
    watch.look([sent(old, 3)], 20.0)
    watch.added(new, 30.0)
    watch.gone(old)
    assert watch.notes()
    assert watch.look([sent(new, 3)], 50.0) == []
    assert watch.used(new.inbound_spi) == "server"


def test_esp_in_udp_is_not_watched_and_a_young_pair_not_judged() -> None:
    watch, sa = plain_esp(), child(1)
    watch.added(replace(sa, encapsulation=Encapsulation.UDP), 0.0)
    assert not watch.curious(20.0)
    watch.added(sa, 0.0)
    assert not watch.curious(0.5)
    assert watch.look([sent(sa, 1)], 0.5) == [], "the answer may be under way"
    assert watch.curious(1.5)


# who waits


@pytest.fixture
def line() -> Iterator[tuple[Client, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield Client(ours), theirs


def said(theirs: socket.socket) -> object:
    try:
        return json.loads(theirs.recv(4096))
    except BlockingIOError:
        return None


def test_a_rekey_is_done_when_everything_is_new(line: tuple[Client, socket.socket]) -> None:
    client, theirs = line
    waiting = Waiting(lambda: 12.5)
    waiting.add(Wait(client, "server", 10.0, pairs=2, phase1={child(1).path}))
    waiting.child_up(child(1))
    waiting.child_up(child(2))
    assert said(theirs) is None, "phase 1 is missing"
    waiting.phase1_up(child(1, remote=OTHER).path)
    assert said(theirs) is None
    waiting.phase1_up(child(1).path)
    assert said(theirs) == {
        "ok": True,
        "seconds": 2.5,
        "sas": [
            {"inbound_spi": "0x00001001", "outbound_spi": "0x00002001"},
            {"inbound_spi": "0x00001002", "outbound_spi": "0x00002002"},
        ],
    }
    waiting.child_up(child(3))
    assert said(theirs) is None, "one answer"


def test_a_failure_is_told_and_ends_the_wait(line: tuple[Client, socket.socket]) -> None:
    client, theirs = line
    waiting = Waiting(lambda: 1.0)
    waiting.add(Wait(client, "server", 0.0))
    waiting.failed("another", "no")
    assert said(theirs) is None
    waiting.failed("server", "the peer does not answer")
    assert said(theirs) == {"ok": False, "error": "server: the peer does not answer"}
    waiting.child_up(child(1))
    assert said(theirs) is None


def test_a_phase1_that_fails_is_told_to_whoever_shares_it(line: tuple[Client, socket.socket]) -> None:
    client, theirs = line
    waiting = Waiting(lambda: 1.0)
    waiting.add(Wait(client, "server", 0.0, phase1={child(1).path}))
    waiting.failed("another", "no", child(1, remote=OTHER).path)
    assert said(theirs) is None
    waiting.failed("another", "no answer", child(1).path)
    assert said(theirs) == {"ok": False, "error": "server: no answer"}
