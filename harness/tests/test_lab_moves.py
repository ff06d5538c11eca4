"""Addresses and ports on the way: a NAT that is rebooted, a client with another port, a server with another port."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

import pytest
from lab_flows import Pings, ping, udp_socket
from lab_world import CLIENTS, INNER, NAT, SERVER, Answer, Daemon, World, client_side, home, server_side

pytestmark = pytest.mark.usefixtures("isolated")

DPD = 1.0  # seconds


def has(port: int) -> Callable[[Answer], bool]:
    """Whether a server answers its client at this port, and nowhere else."""
    return lambda status: {sa["remote_port"] for sa in status["sas"]} == {port}


def reboot(world: World, port: int) -> float:
    """Let the NAT forget everything, and give out `port` from now on; when that was done (seconds since the epoch)."""
    nat = world.nat
    rule = f"-o {nat.wan} -p udp -j MASQUERADE --to-ports {port}"
    nat.run(["iptables", "-t", "nat", "-I", "POSTROUTING", *rule.split()])
    nat.run(["conntrack", "-F"])
    return time.time()


@pytest.mark.draft("WIRE-7", "SEC-4")
def test_a_client_notices_that_its_nat_was_rebooted(
    tmp_path: pathlib.Path, record_property: Callable[[str, object], None]
) -> None:
    with home(tmp_path) as world:
        client, server = world.start_pair({"dpd": DPD, "start": True, "acquire": False}, {"dpd": DPD})
        client.wait(lambda status: bool(status["sas"]))
        with Pings(world.lab["client1"], INNER, CLIENTS[0]) as pings:
            pings.answer_after(0.0, more=5)
            assert world.mapped_port() == 500
            moment = reboot(world, 40_000)
            seconds = pings.answer_after(moment).received - moment
            pings.answer_after(time.time(), more=10)
        assert world.mapped_port() == 40_000, "the NAT has another mapping now"
        server.wait(has(40_000))
        refused = server.count("drop_wrong_path")
        assert refused, "until IKE said where the client is, its ESP was not believed"
        assert client.log.count("phase 1 with server.example") == 2, "a Main Mode more"
    record_property("milliseconds", round(seconds * 1000))
    print(f"NAT rebooted, rebinding = never: traffic again after {seconds * 1000:.0f} ms")
    assert seconds < 2 * DPD + 1


@pytest.mark.draft("SEC-4", "KA-4", "WIRE-7")
def test_a_server_that_may_follows_a_rebooted_nat_at_once_and_nobody_else(
    tmp_path: pathlib.Path, record_property: Callable[[str, object], None]
) -> None:
    with home(tmp_path) as world:
        client, server = world.start_pair({"dpd": DPD, "start": True}, {"dpd": DPD, "rebinding": "authenticated"})
        client.wait(lambda status: bool(status["sas"]))
        spis = client.spis()
        with Pings(world.lab["client1"], INNER, CLIENTS[0]) as pings:
            with world.wire() as before:
                pings.answer_after(time.time(), more=10)
            moment = reboot(world, 40_000)
            seconds = pings.answer_after(moment).received - moment
            server.wait(has(40_000))
            assert world.mapped_port() == 40_000
            with world.wire() as after:
                pings.answer_after(time.time(), more=5)
            never_seen = held_back(world, pings)
            newest = after.of("esp", NAT)[-1].payload
            forged = [newest[:12] + (10_000 + n).to_bytes(4, "big") + newest[16:] for n in range(10)]
            seen = [packet.payload for packet in (*before.of("esp", NAT), *after.of("esp", NAT))]
            for packets in (seen, never_seen, forged):
                from_elsewhere(world, server, packets)
            now = server.status
            for kind in ("sas", "ike_sas"):
                assert [(sa["remote"], sa["remote_port"]) for sa in now[kind]] == [(NAT, 40_000)]
            pings.answer_after(time.time(), more=5)
            alive(client, server)
        assert client.spis() == spis, "no new SAs"
        assert client.log.count("phase 1 with server.example") == 1, "no new Main Mode"
        assert server.log.count(f"peer {NAT}:500 is at {NAT}:40000 now") == 1
        assert server.count("rebound") == 1
    record_property("milliseconds", round(seconds * 1000))
    print(f"NAT rebooted, rebinding = authenticated: traffic again after {seconds * 1000:.0f} ms")
    assert seconds < DPD / 2


def held_back(world: World, pings: Pings) -> list[bytes]:
    """Authentic ESP that never reached the server, which has received newer packets since."""
    every_second = ["-p", "udp", "-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0", "-j", "DROP"]
    rule = ["FORWARD", "-i", world.nat.lan, *every_second]
    world.nat.run(["iptables", "-I", *rule])
    with world.wire("nat", world.nat.lan) as inside, world.wire() as outside:
        pings.answer_after(time.time(), more=8)
    world.nat.run(["iptables", "-D", *rule])
    passed = {packet.payload for packet in outside.of("esp", NAT)}
    lost = [packet.payload for packet in inside.of("esp", CLIENTS[0]) if packet.payload not in passed]
    pings.answer_after(time.time(), more=3)
    return lost


def from_elsewhere(world: World, server: Daemon, packets: list[bytes]) -> None:
    """Whoever has read the wire sends what it has seen, or thinks of, and keepalives, from a host of its own."""
    assert len(packets) >= 5
    wrong, keepalives, rebound = (server.count(name) for name in ("drop_wrong_path", "keepalive_in", "rebound"))
    with udp_socket(world.lab["stranger"], port=500) as sender:
        for packet in packets:
            sender.sendto(b"\xff", (SERVER, 500))
            sender.sendto(packet, (SERVER, 500))
    server.wait(lambda stats: stats["counters"].get("drop_wrong_path", 0) >= wrong + len(packets), "stats")
    assert server.count("keepalive_in") >= keepalives + len(packets), "they arrived"
    assert server.count("rebound") == rebound


def alive(client: Daemon, server: Daemon) -> None:
    """Wait until each end's questions have been answered over the new path."""
    asked = {daemon: daemon.count("ike_in") for daemon in (client, server)}
    for daemon, number in asked.items():
        daemon.wait(lambda stats, least=number + 2: stats["counters"]["ike_in"] >= least, "stats")  # type: ignore[misc]
    assert client.status["sas"]
    assert server.status["sas"]


@pytest.mark.draft("WIRE-1", "WIRE-2", "WIRE-8", "WIRE-9", "SA-1", "NATD-7")
@pytest.mark.parametrize(
    ("mine", "mapped", "yours"),
    [(1111, 6666, 500), (500, 500, 4500), (1111, 7777, 5000)],
    ids=["initiator", "responder", "both"],
)
def test_any_port_will_do_at_either_end(tmp_path: pathlib.Path, mine: int, mapped: int, yours: int) -> None:
    with home(tmp_path) as world:
        reboot(world, mapped)
        server = world.start("server", server_side(), port=yours)
        client = world.start("client1", client_side(remote_port=yours), port=mine)
        with world.wire() as outside, world.wire("nat", world.nat.lan) as inside:
            client.up()
            server.wait(has(mapped))
            ping(world.lab["client1"], INNER, CLIENTS[0])
            ping(world.lab["server"], CLIENTS[0], INNER)
        assert world.mapped_port(server_port=yours) == mapped
        (sa,) = client.status["sas"]
        assert (sa["remote"], sa["remote_port"]) == (SERVER, yours)
    there = (SERVER, yours)
    for wire, here in ((inside, (CLIENTS[0], mine)), (outside, (NAT, mapped))):
        for kind, least in (("ike", 9), ("esp", 4)):
            seen = [(p.source, p.destination) for p in wire.of(kind)]
            assert len(seen) >= least
            assert set(seen) == {(here, there), (there, here)}, f"{kind} between other ports"
