"""Clients behind one NAT address are told apart by their flows, with a clock of its own and without a network."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espthrunat.messages import Path
from espthrunat.plane.flows import TRANSLATED_PORTS, FlowKey, Flows
from espthrunat.plane.reassembly import MAX_OCTETS_WAITING, Reassembler
from espthrunat.wire.ip import ICMP, TCP, UDP, adjusted, build_ipv4, checksum, ones_sum, parse_ipv4

NAT = 0xC00002FE
ALICE = Path("192.0.2.2", 500, "192.0.2.254", 500)
BOB = Path("192.0.2.2", 500, "192.0.2.254", 312)
L2TP = FlowKey(UDP, 1701, NAT, 1701)
WEB = FlowKey(TCP, 80, NAT, 40000)
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


class World:
    """Flows, their clock, and the paths that have SAs."""

    def __init__(self, most: int = 65_536) -> None:
        self.now = 1000.0
        self.alive = {ALICE, BOB}
        self.flows = Flows(lambda path: path in self.alive, lambda: self.now, most)

    def whose(self, key: FlowKey, tcp_flags: int = 0) -> tuple[Path, int] | None:
        flow = self.flows.leaving(key, tcp_flags)
        return None if flow is None else (flow.path, flow.port)


@pytest.mark.draft("SA-2")
@pytest.mark.parametrize("key", [L2TP, WEB, FlowKey(ICMP, 0, NAT, 7)], ids=["UDP", "TCP", "ICMP echo"])
def test_the_second_client_gets_another_port_and_both_get_their_answers(key: FlowKey) -> None:
    world = World()
    assert world.flows.arrived(ALICE, key) == key.remote_port
    other = world.flows.arrived(BOB, key)
    assert other is not None
    assert TRANSLATED_PORTS[0] <= other <= TRANSLATED_PORTS[1]
    assert world.whose(key) == (ALICE, key.remote_port)
    assert world.whose(key._replace(remote_port=other)) == (BOB, key.remote_port)
    # and it stays so, however often they speak
    assert [world.flows.arrived(path, key) for path in (ALICE, BOB, ALICE)] == [key.remote_port, other, key.remote_port]
    assert world.flows.port_of_peer(BOB, key) == other
    assert len(world.flows) == 2


def test_a_real_port_in_the_range_for_others_is_left_alone() -> None:
    world = World()
    real = WEB._replace(remote_port=TRANSLATED_PORTS[0])
    assert world.flows.arrived(ALICE, WEB) == 40000
    assert world.flows.arrived(ALICE, real) == TRANSLATED_PORTS[0]
    assert world.flows.arrived(BOB, WEB) == TRANSLATED_PORTS[0] + 1


def test_what_nobody_began_belongs_to_nobody() -> None:
    world = World()
    world.flows.arrived(ALICE, WEB)
    assert world.whose(WEB._replace(local_port=81)) is None
    assert world.whose(WEB._replace(protocol=UDP)) is None
    assert world.whose(WEB._replace(remote=NAT + 1)) is None


@pytest.mark.parametrize(("key", "seconds"), [(L2TP, 300), (WEB, 7440)], ids=["UDP", "TCP"])
def test_idle_flows_end(key: FlowKey, seconds: int) -> None:
    world = World()
    world.flows.arrived(ALICE, key)
    world.now += seconds - 1
    assert world.whose(key) == (ALICE, key.remote_port)  # which is use
    world.now += seconds - 1
    assert world.flows.peek(key) is not None  # which is not
    world.now += 1
    assert world.flows.arrived(BOB, key) == key.remote_port
    assert world.whose(key) == (BOB, key.remote_port)
    assert len(world.flows) == 1


@pytest.mark.parametrize("reset", [True, False])
def test_closed_connections_end_soon(reset: bool) -> None:
    world = World()
    world.flows.arrived(ALICE, WEB, SYN)
    if reset:
        assert world.whose(WEB, RST) is not None
    else:
        world.flows.arrived(ALICE, WEB, FIN | ACK)
        world.now += 3600  # half closed: the other side may speak for long
        assert world.whose(WEB, ACK) == (ALICE, 40000)
        assert world.whose(WEB, FIN | ACK) == (ALICE, 40000)
    world.now += 61
    assert world.whose(WEB) is None
    assert len(world.flows) == 0


def test_a_port_that_is_used_again_is_open_again() -> None:
    world = World()
    world.flows.arrived(ALICE, WEB, RST)
    world.flows.arrived(ALICE, WEB, SYN)
    world.now += 3600
    assert world.whose(WEB) == (ALICE, 40000)


def test_a_client_without_sas_holds_no_port_but_nobody_gets_its_packets() -> None:
    world = World()
    world.flows.arrived(ALICE, WEB)
    world.alive.remove(ALICE)
    assert world.whose(WEB) == (ALICE, 40000), "not somebody else's"
    assert world.flows.arrived(BOB, WEB) == 40000


def test_flows_move_with_their_peer() -> None:
    world = World()
    world.flows.arrived(ALICE, WEB)
    seen = world.flows.arrived(BOB, WEB)
    assert seen is not None
    moved = Path("192.0.2.2", 500, "198.51.100.1", 9)
    world.flows.moved(BOB, moved)
    assert world.whose(WEB._replace(remote_port=seen)) == (moved, 40000)
    assert world.flows.arrived(moved, WEB) == seen
    assert world.whose(WEB) == (ALICE, 40000)


def test_without_translation_the_last_speaker_gets_the_answers() -> None:
    world = World()
    gre = FlowKey(47, 0, NAT, 0)
    assert world.flows.arrived(ALICE, gre, translate=False) == 0
    assert world.flows.arrived(BOB, gre, translate=False) == 0
    assert world.whose(gre) == (BOB, 0)
    assert world.flows.arrived(ALICE, gre, translate=False) == 0
    assert world.whose(gre) == (ALICE, 0)
    assert len(world.flows) == 1


def test_the_least_recently_used_go_first() -> None:
    world = World(most=100)
    keys = [WEB._replace(remote_port=port) for port in range(1, 101)]
    for key in keys:
        world.flows.arrived(ALICE, key)
    assert world.whose(keys[0]) is not None
    for port in range(1000, 1099):
        world.flows.arrived(BOB, WEB._replace(remote_port=port))
    assert len(world.flows) == len(world.flows._by_peer) == 100
    assert world.flows.peek(keys[0]) is not None
    assert world.flows.peek(keys[1]) is None


def test_when_all_ports_are_taken_there_is_none() -> None:
    world = World()
    world.flows.arrived(ALICE, WEB)
    for port in range(TRANSLATED_PORTS[0], TRANSLATED_PORTS[1] + 1):
        assert world.flows.arrived(ALICE, WEB._replace(remote_port=port)) == port
    assert world.flows.arrived(BOB, WEB) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ALICE, BOB]), st.integers(1, 5), st.sampled_from([0, SYN, FIN, RST]), st.integers(0, 400)
        ),
        max_size=60,
    )
)
def test_answers_always_reach_who_spoke(packets: list[tuple[Path, int, int, int]]) -> None:
    world = World(most=6)
    for path, port, flags, seconds in packets:
        world.now += seconds
        key = FlowKey(TCP, 80, NAT, port)
        seen = world.flows.arrived(path, key, flags)
        assert seen is not None
        assert world.whose(key._replace(remote_port=seen)) == (path, port)
        assert len(world.flows) == len(world.flows._by_peer) <= 6


# Fragments.


class Pieces:
    """A reassembler, its clock, and what it gave up."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lost: list[tuple[str, int]] = []
        self.reassembler = Reassembler(lambda reason, number: self.lost.append((reason, number)), lambda: self.now)


def fragments(payload: bytes, size: int, identification: int = 1) -> list[bytes]:
    made = []
    for offset in range(0, len(payload), size):
        piece = payload[offset : offset + size]
        header = bytearray(build_ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", UDP, len(piece)))
        more = 0x2000 if offset + size < len(payload) else 0
        struct.pack_into("!HH", header, 4, identification, more | offset >> 3)
        made.append(bytes(header) + piece)
    return made


@given(st.binary(min_size=9, max_size=400), st.integers(1, 10), st.randoms(use_true_random=False))
def test_fragments_in_any_order_make_the_packet(payload: bytes, units: int, random: object) -> None:
    pieces = Pieces()
    parts = fragments(payload, units * 8)
    random.shuffle(parts)  # type: ignore[attr-defined]
    results = [pieces.reassembler.add(part) for part in parts]
    whole = results.pop()
    assert whole is not None
    assert not any(results)
    assert whole[20:] == payload
    header = parse_ipv4(whole)
    assert header is not None
    assert not header.fragment
    assert ones_sum(whole[:20]) == 0
    assert pieces.reassembler.octets == 0
    assert not pieces.lost


def test_overlapping_fragments_are_given_up() -> None:
    pieces = Pieces()
    first, second, last = fragments(bytes(range(24)), 8)
    forged = bytearray(last)
    struct.pack_into("!H", forged, 6, 1)
    assert [pieces.reassembler.add(part) for part in (first, second, bytes(forged))] == [None] * 3
    assert pieces.lost == [("fragments overlap", 3)]
    assert pieces.reassembler.octets == 0


def test_fragments_wait_for_seconds_and_within_bounds() -> None:
    pieces = Pieces()
    parts = fragments(bytes(3000), 1480)
    assert pieces.reassembler.add(parts[0]) is None
    pieces.now = 15.0
    assert pieces.reassembler.add(parts[1]) is None
    assert pieces.lost == [("a fragment did not come in time", 1)]
    for number in range(10_000):
        pieces.reassembler.add(fragments(bytes(3000), 1480, number)[0])
        assert pieces.reassembler.octets <= MAX_OCTETS_WAITING


@given(
    st.binary(min_size=2, max_size=60).map(lambda octets: octets + octets[:1] if len(octets) % 2 else octets),
    st.integers(0, 0xFFFF),
)
def test_an_adjusted_checksum_is_as_good_as_a_new_one(octets: bytes, word: int) -> None:
    octets = octets[: len(octets) // 2 * 2]
    old = checksum(octets)
    new = word.to_bytes(2, "big") + octets[2:]
    fixed = adjusted(old, int.from_bytes(octets[:2], "big"), word)
    assert ones_sum(new + fixed.to_bytes(2, "big")) == 0
