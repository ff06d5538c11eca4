"""Keepalives as a NAT's public side shows them (the draft, 4.3), and what a server does with them: nothing."""

from __future__ import annotations

import pathlib
import time
from itertools import pairwise

import pytest
from lab_flows import Pings, ping
from lab_wire import Packet, Wire
from lab_world import CLIENTS, INNER, NAT, SERVER, Daemon, client_side, home, steady

pytestmark = pytest.mark.usefixtures("isolated")

INTERVAL, TAIL = 0.25, 1.0  # seconds
SLACK = 0.4  # seconds that a busy machine may be late


def checksums(wire: Wire) -> dict[int, str]:
    """What tshark says of the UDP checksum of each frame: 1 is good, 0 bad, 3 not there."""
    rows = wire.tshark("frame.number", "udp.checksum.status", options=("-o", "udp.check_checksum:TRUE"))
    return {int(number): state for number, state in rows}


def silences(wire: Wire) -> list[tuple[Packet, float]]:
    """Each keepalive, and how long nothing had gone from the client's side to the server before it, in seconds."""
    out = [packet for packet in wire.packets if packet.source[0] == NAT]
    return [(b, b.moment - a.moment) for a, b in pairwise(out) if b.kind == "keepalive"]


@pytest.mark.draft("KA-1", "KA-2", "KA-4", "KA-5", "KA-6")
def test_a_keepalive_is_what_the_draft_says_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    with home(tmp_path) as world:
        # A checksum that is left to the network card would be filled in by the capture.
        world.lab["client1"].run(["ethtool", "-K", "client1-eth0", "tx", "off"])
        client, server = world.start_pair({"keepalive": INTERVAL, "dpd": 0}, {"keepalive": INTERVAL, "dpd": 0})
        client.up()
        before, logged = steady(server.wait(lambda status: bool(status["sas"]))), server.log
        with world.wire() as idle:
            more_keepalives(server, 5)
            assert (steady(server.status), server.log) == (before, logged)
            counters = server.ask("stats")["counters"]
            assert not {name: n for name, n in counters.items() if name.startswith(("drop_", "error_"))}
            assert client.count("keepalive_in") == server.count("keepalive_out") == 0
        port = world.mapped_port()
    found = idle.of("keepalive")
    assert len(found) >= 5
    assert {(p.source, p.destination) for p in found} == {((NAT, port), (SERVER, 500))}, "the pair of IKE and ESP"
    assert all(p.payload == b"\xff" for p in found)
    assert len(idle.packets) == len(found), "nothing else goes either way: nobody answers them"
    states = checksums(idle)
    assert {states[p.number] for p in found} == {"1"}
    assert all(bytes(p.ip[26:28]) != bytes(2) for p in found)
    gaps = [gap for _, gap in silences(idle)]
    assert all(INTERVAL - 0.01 < gap < INTERVAL + SLACK for gap in gaps), f"one stream for IKE and ESP: {gaps}"


@pytest.mark.draft("KA-2", "KA-6")
def test_traffic_makes_keepalives_needless(tmp_path: pathlib.Path) -> None:
    with home(tmp_path) as world:
        client, server = world.start_pair({"keepalive": INTERVAL, "dpd": 0}, {"dpd": 0})
        client.up()
        server.wait(lambda status: bool(status["sas"]))
        node = world.lab["client1"]
        with Pings(node, INNER, CLIENTS[0], 0.05) as pings:
            pings.answer_after(0.0)
            with world.wire() as busy:
                pings.answer_after(time.time(), more=20)  # four intervals
        with world.wire() as idle:
            more_keepalives(server, 2)
        client.stop()
        client = world.start("client1", client_side(keepalive=0.4, dpd=0.1))
        client.up()
        with world.wire() as asked:
            sent = client.count("ike_out")
            client.wait(lambda stats: stats["counters"]["ike_out"] >= sent + 12, "stats")
    assert len(busy.of("esp", NAT)) >= 20
    assert not needless(busy), "ESP had just been sent"
    assert len(idle.of("keepalive")) >= 2
    assert not needless(asked), "IKE had just been sent"


def needless(wire: Wire, interval: float = INTERVAL) -> list[float]:
    """Keepalives that came although something had been sent less than an interval before."""
    return [gap for _, gap in silences(wire) if gap < interval - 0.01]


def more_keepalives(server: Daemon, number: int) -> None:
    """Wait until so many more have come in."""
    target = server.count("keepalive_in") + number
    server.wait(lambda stats: stats["counters"].get("keepalive_in", 0) >= target, "stats")


@pytest.mark.draft("KA-3")
def test_keepalives_go_on_for_the_tail_and_then_end(tmp_path: pathlib.Path) -> None:
    with home(tmp_path) as world:
        client, server = world.start_pair({"keepalive": INTERVAL, "keepalive_tail": TAIL, "dpd": 0}, {"dpd": 0})
        client.up()
        server.wait(lambda status: bool(status["sas"]))
        ping(world.lab["client1"], INNER, CLIENTS[0])
        with world.wire() as wire:
            server.ask("down", connection="client1")
            client.wait(lambda status: not status["sas"] and not status["ike_sas"])
            gone = time.time()
            assert not server.status["sas"]
            assert not server.status["ike_sas"]
            silent_for(client, TAIL + 4 * INTERVAL)
    late = [p.moment - gone for p in wire.of("keepalive")]
    assert len(late) >= 3, "they hold the mapping, for the server may begin anew"
    assert TAIL - INTERVAL - SLACK < late[-1] < TAIL + SLACK, late
    assert not wire.of("keepalive", SERVER)


def silent_for(client: Daemon, seconds: float) -> None:
    """Watch the counter of keepalives for as long as any could still come."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        client.count("keepalive_out")
        time.sleep(INTERVAL / 4)
