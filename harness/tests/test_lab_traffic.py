"""Traffic that sets SAs up, keeps to its own SA, and is told apart behind one NAT, as the public wire shows it."""

from __future__ import annotations

import pathlib
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from lab_flows import EchoServer, connected, ping, udp_flow, udp_socket
from lab_wire import ICMP, TCP, UDP, Packet, Wire
from lab_world import CLIENTS, INNER, NAT, SERVER, TRANSPORT, Answer, client_side, home, server_side

from natbed.dissection import WiresharkProfile
from natbed.node import Node

pytestmark = pytest.mark.usefixtures("isolated")


def has_sas(number: int) -> Callable[[Answer], bool]:
    return lambda status: len(status["sas"]) == number


@pytest.mark.draft("REKEY-1", "REKEY-4", "KA-3")
def test_traffic_of_either_end_brings_sas_up_and_back(tmp_path: pathlib.Path) -> None:
    """The server can do so as long as keepalives hold the mapping, which it has remembered."""
    with home(tmp_path, clients=2) as world:
        world.start("server", server_side(1, dpd=0), server_side(2, dpd=0))
        # another client has the NAT's port 500
        other = world.start("client2", client_side(2))
        other.up()
        client = world.start("client1", client_side(keepalive=0.3, dpd=0))
        server = world.daemons["server"]
        assert not client.status["ike_sas"]
        with world.wire() as first:
            ping(world.lab["client1"], INNER, CLIENTS[0])
        server.wait(has_sas(2))
        port = world.mapped_port()
        assert port != 500
        server.ask("down", connection="client1")
        client.wait(lambda status: not status["sas"] and not status["ike_sas"])
        held = server.count("keepalive_in")
        server.wait(lambda stats: stats["counters"].get("keepalive_in", 0) >= held + 2, "stats")
        assert not client.status["ike_sas"], "the client has no reason"
        with world.wire() as second:
            ping(world.lab["server"], CLIENTS[0], INNER)
        client.wait(has_sas(1))
        server.wait(has_sas(2))
        assert world.mapped_port() == port
        roles = {(sa["connection"], sa["role"]) for sa in server.status["ike_sas"]}
        assert roles == {("client1", "initiator"), ("client2", "responder")}
    assert begins(first) == ((NAT, port), (SERVER, 500))
    assert begins(second) == ((SERVER, 500), (NAT, port)), "the same source, the same destination"


def begins(wire: Wire) -> tuple[tuple[str, int], tuple[str, int]]:
    """From where to where the first IKE message without a responder cookie goes."""
    return next((p.source, p.destination) for p in wire.of("ike") if p.payload[8:16] == bytes(8))


# two clients behind one NAT in transport mode


@pytest.mark.draft("SA-2", "SA-3", "CSUM-1", "CSUM-2")
@pytest.mark.parametrize("shared", [True, False], ids=["one connection for all", "a connection for each"])
def test_two_clients_with_the_same_ports_keep_their_connections_across_rekeys(
    tmp_path: pathlib.Path, shared: bool
) -> None:
    """Whose SA is newest must not matter: each rekey makes another client's the newest one at the server."""
    with home(tmp_path, clients=2) as world, ExitStack() as stack:
        own = {"psk": "lab-secret"} if shared else {}
        there = [server_side(n, **TRANSPORT) for n in (1, 2)]
        if shared:
            there = [server_side(**TRANSPORT, **own, name="clients", remote_identity="*.example")]
        server = world.start("server", *there)
        clients = [world.start(f"client{n}", client_side(n, **TRANSPORT, **own)) for n in (1, 2)]
        for client in clients:
            client.up()
        server.wait(has_sas(2))
        echo = stack.enter_context(EchoServer(world.lab["server"], tcp=4000, udp=1701).running())
        with world.wire() as wire:
            flows = [
                open_flow
                for n in (1, 2)
                for open_flow in (
                    stack.enter_context(connected(world.lab[f"client{n}"], CLIENTS[n - 1], 40_000, (SERVER, 4000))),
                    stack.enter_context(udp_flow(world.lab[f"client{n}"], CLIENTS[n - 1], (SERVER, 1701))),
                )
            ]
            each_gets_its_own(flows)
            spis = server.spis()
            names = ("clients", "clients") if shared else ("client1", "client2")
            for daemon, connection, phase1 in (
                (clients[0], "server", False),
                (clients[1], "server", True),
                (server, names[0], False),
                (server, names[1], True),
            ):
                daemon.ask("rekey", connection=connection, phase1=phase1)
                each_gets_its_own(flows)
            assert not spis & server.spis(), "all of them are new"
            ports = {world.mapped_port(1), world.mapped_port(2)}
            assert {sa["remote_port"] for sa in server.status["ike_sas"]} == ports, "one phase 1 for each port"
        assert sorted(host for host, _ in echo.peers) == [NAT] * 4, "two of TCP and two of UDP"
        assert not in_clear(wire, 4000)
        assert not in_clear(wire, 1701)
        keys = [daemon.keys for daemon in world.daemons.values()]
        inner = WiresharkProfile(tmp_path / "wireshark", keys, ports=ports).dissect(wire.path)
    sent = [(p, inner[p.number]) for p in wire.of("esp")]
    udp = [seen.inner for _, seen in sent if int(seen.next_header, 0) == UDP]
    tcp = [seen.inner for p, seen in sent if int(seen.next_header, 0) == TCP and p.source[0] == NAT]
    assert len(udp) >= 2 * 2 * 25
    assert {datagram[6:8] for datagram in udp} == {bytes(2)}, "they have no checksum"
    assert len(tcp) >= 2 * 25
    assert not any(has_right_checksum(segment, NAT, SERVER) for segment in tcp), "as the server sees it, all are wrong"


def has_right_checksum(segment: bytes, source: str, destination: str) -> bool:
    """Whether a TCP segment's checksum fits these addresses (RFC 793, 3.1)."""
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!HH", TCP, len(segment))
    octets = pseudo + segment + bytes(len(segment) % 2)
    words: tuple[int, ...] = struct.unpack(f"!{len(octets) // 2}H", octets)
    return sum(words) % 0xFFFF == 0


def each_gets_its_own(flows: list[Callable[[bytes], bytes]], rounds: int = 5) -> None:
    """All flows in turn, so that the server has several clients' questions before it at any time."""
    for n in range(rounds):
        for number, ask in enumerate(flows):
            question = f"flow {number}, round {n}, {time.monotonic_ns()}".encode()
            assert ask(question) == question


# several SA pairs between two hosts


@pytest.mark.draft("QM-7")
def test_each_protocol_and_port_goes_by_its_own_sas_and_the_rest_in_clear(tmp_path: pathlib.Path) -> None:
    def selectors(key: str) -> dict[str, dict[str, object]]:
        return {name: {**TRANSPORT, "name": name, "traffic_protocol": name[:3], key: 7} for name in ("udp7", "tcp7")}

    with home(tmp_path) as world, ExitStack() as stack:
        node = world.lab["client1"]
        server = world.start("server", *(server_side(**one) for one in selectors("traffic_local_port").values()))
        client = world.start("client1", *(client_side(**one) for one in selectors("traffic_remote_port").values()))
        for name in ("udp7", "tcp7"):
            client.up(name)
        for daemon in (client, server):
            daemon.wait(has_sas(2))
        assert len(client.status["ike_sas"]) == 1
        spis = {sa["connection"]: {sa["inbound_spi"], sa["outbound_spi"]} for sa in client.status["sas"]}
        stack.enter_context(EchoServer(world.lab["server"], tcp=7, udp=7).running())
        stack.enter_context(EchoServer(world.lab["server"], tcp=8, udp=8).running())
        seen = {}
        # the ends of TCP connections come late: that through ESP is the last
        for name, port in (("udp7", 7), ("udp8", 8), ("icmp", 0), ("tcp8", 8), ("tcp7", 7)):
            with world.wire() as wire:
                use(node, name, port)
            seen[name] = wire
        for name in ("udp7", "tcp7"):
            assert {p.spi for p in seen[name].of("esp")} == spis[name], "both directions, of these SAs only"
            assert not in_clear(seen[name], 7)
        for name, protocol, port in (("udp8", UDP, 8), ("tcp8", TCP, 8), ("icmp", ICMP, 0)):
            assert not seen[name].of("esp")
            assert {(p.protocol, p.source[0]) for p in in_clear(seen[name], port)} == {
                (protocol, NAT),
                (protocol, SERVER),
            }

        client.ask("down", connection="udp7")
        server.wait(has_sas(1))
        before = client.count("drop_no_sa")
        with world.wire() as dropped, udp_socket(node, CLIENTS[0]) as sender:
            sender.sendto(b"secret", (SERVER, 7))
            client.wait(lambda stats: stats["counters"].get("drop_no_sa", 0) > before, "stats")
            use(node, "tcp7", 7)
        assert {p.spi for p in dropped.of("esp")} == spis["tcp7"], "the other SAs live on"
        assert not in_clear(dropped, 7), "what the policy protects never goes in clear"


def use(node: Node, name: str, port: int) -> None:
    """One exchange with the server's echo."""
    if name == "icmp":
        ping(node, SERVER)
    elif name.startswith("udp"):
        with udp_socket(node, CLIENTS[0]) as sender:
            sender.sendto(name.encode(), (SERVER, port))
            assert sender.recv(100) == name.encode()
    else:
        with connected(node, CLIENTS[0], 0, (SERVER, port)) as ask:
            assert ask(name.encode()) == name.encode()


def in_clear(wire: Wire, port: int) -> list[Packet]:
    """Packets without ESP of a port of the server, or of a protocol that has none: 0."""
    return [p for p in wire.packets if port in (p.source[1], p.destination[1]) and p.protocol in (ICMP, TCP, UDP)]
