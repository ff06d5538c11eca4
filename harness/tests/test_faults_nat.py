"""Faults of NATs and links happen: a mapping has ended, an address is another, nothing passes, and it is on record."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from lab_world import CLIENTS, NAT, SERVER, World, home

from natbed.conntrack import udp_mappings
from natbed.faults.base import FaultError, FaultRecord, Scene
from natbed.faults.links import LinkDown, LinkFlap, LinkUp
from natbed.faults.nats import MappingExpiry, NatReboot, RuleChange, WanRenumber
from natbed.nat import presets
from natbed.node import Node

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    with home(tmp_path, clients=2) as world:
        yield world


@pytest.fixture
def scene(world: World) -> Scene:
    return Scene(world.lab)


class Talk:
    """Clients that send from port 500 to the server's, which answers where they come from."""

    def __init__(self, world: World, clients: int) -> None:
        self._stack = contextlib.ExitStack()
        self.server = self._open(world.lab["server"], SERVER)
        self.clients = [self._open(world.lab[f"client{n + 1}"], CLIENTS[n]) for n in range(clients)]

    def _open(self, node: Node, address: str) -> socket.socket:
        made = self._stack.enter_context(node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        made.bind((address, 500))
        made.settimeout(5)
        return made

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def seen(self, number: int = 0) -> tuple[str, int]:
        """A client sends and is answered; as whom the server has seen it."""
        self.clients[number].sendto(b"question", (SERVER, 500))
        _, source = self.server.recvfrom(100)
        self.server.sendto(b"answer", source)
        assert self.clients[number].recv(100) == b"answer"
        return source  # type: ignore[no-any-return]

    def in_vain(self, sender: socket.socket, to: tuple[str, int], receivers: Sequence[socket.socket]) -> None:
        """What is sent there reaches none of the receivers: what is sent after it on an open way has overtaken it."""
        sender.sendto(b"lost", to)
        time.sleep(0.05)  # no condition can be awaited for what does not come
        for receiver in receivers:
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(100)
            receiver.settimeout(5)


def in_order(record: FaultRecord) -> None:
    assert 0 <= record.began <= record.ended <= time.monotonic()
    assert abs(record.at - time.time()) < 30


def test_a_rebooted_nat_has_forgotten_and_gives_out_another_port(world: World, scene: Scene) -> None:
    with Talk(world, 1) as talk:
        assert talk.seen() == (NAT, 500)
        record = NatReboot("nat").strike(scene)
        talk.in_vain(talk.server, (NAT, 500), talk.clients)
        address, port = talk.seen()
        assert address == NAT
        assert port != 500
        assert talk.seen() == (NAT, port), "it keeps that one"
    in_order(record)
    assert (record.fault, record.happened) == ("NatReboot", "the NAT nat rebooted")
    (ended,) = record.details["ended_mappings"]
    assert (ended["inside"], ended["public"]) == ((CLIENTS[0], 500), (NAT, 500))
    assert record.details["ports_taken"] == [500]


def test_the_old_port_of_a_rebooted_nat_answers_nothing(world: World, scene: Scene) -> None:
    """An ICMP error would tell the server what no real device tells it."""
    with Talk(world, 1) as talk:
        talk.seen()
        NatReboot("nat").strike(scene)
        talk.server.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        talk.in_vain(talk.server, (NAT, 500), [*talk.clients, talk.server])


def test_a_nat_that_is_rebooted_alone_gives_the_same_port_again(world: World, scene: Scene) -> None:
    with Talk(world, 1) as talk:
        for _ in range(2):
            talk.seen()
        (before,) = udp_mappings(world.nat)
        NatReboot("nat", other_ports=False).strike(scene)
        assert udp_mappings(world.nat) == []
        assert talk.seen() == (NAT, 500)
        (after,) = udp_mappings(world.nat)
    assert (before.packets, after.packets) == (4, 2), "another mapping; Linux may give it the same identifier"


def test_nothing_passes_while_a_nat_is_off(world: World, scene: Scene) -> None:
    with Talk(world, 1) as talk:
        talk.seen()
        record = NatReboot("nat", off=0.3).strike(scene)
        assert record.ended - record.began >= 0.3
        talk.seen()
    assert world.nat.run(["iptables-save", "-t", "raw"]).stdout.count("-A") == 0


def test_what_nftables_has_learned_is_forgotten_too(world: World, scene: Scene) -> None:
    table = "add table ip test; add set ip test kept { type ipv4_addr; elements = { 10.0.0.1 } };"
    table += "add set ip test learned { type ipv4_addr; flags dynamic,timeout; timeout 60s; };"
    table += "add map ip test mapped { type ipv4_addr : inet_service; flags dynamic,timeout; timeout 60s; };"
    table += "add element ip test learned { 10.0.0.2 }; add element ip test mapped { 10.0.0.2 : 500 };"
    world.nat.run(["nft", "-f", "-"], input=table)
    record = NatReboot("nat").strike(scene)
    assert sorted(record.details["learned_forgotten"]) == ["ip test learned", "ip test mapped"]
    assert {name: bool(elements(world.nat, kind, name)) for kind, name in SETS} == {
        "kept": True,
        "learned": False,
        "mapped": False,
    }


SETS = (("set", "kept"), ("set", "learned"), ("map", "mapped"))


def elements(nat: Node, kind: str, name: str) -> Any:
    listed = json.loads(nat.run(["nft", "-j", "list", kind, "ip", "test", name]).stdout)["nftables"]
    return next(one[kind].get("elem") for one in listed if kind in one)


def test_a_reboot_that_forgets_nothing_is_no_reboot(
    world: World, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = world.nat.run
    monkeypatch.setattr(world.nat, "run", lambda argv, **more: original(["true"] if "-F" in argv else argv, **more))
    with Talk(world, 1) as talk:
        talk.seen()
        with pytest.raises(FaultError, match=r"nat was rebooted and still has the mapping 192.168.1.11:500 as 203.0"):
            NatReboot("nat").strike(scene)
        assert talk.seen() == (NAT, 500), "it is on again"


def test_one_hosts_mappings_expire_and_the_others_stay(world: World, scene: Scene) -> None:
    with Talk(world, 2) as talk:
        first, second = talk.seen(0), talk.seen(1)
        before = {one.inside[0]: one.identifier for one in udp_mappings(world.nat)}
        record = MappingExpiry("nat", CLIENTS[0]).strike(scene)
        assert [one["inside"][0] for one in record.details["ended_mappings"]] == [CLIENTS[0]]
        assert {one.inside[0]: one.identifier for one in udp_mappings(world.nat)} == {CLIENTS[1]: before[CLIENTS[1]]}
        talk.in_vain(talk.server, first, talk.clients)
        talk.server.sendto(b"still", second)
        assert talk.clients[1].recv(100) == b"still"
        talk.seen(0)
        assert len(MappingExpiry("nat").strike(scene).details["ended_mappings"]) == 2
        assert udp_mappings(world.nat) == []
        with pytest.raises(FaultError, match=r"nat has no UDP mapping of 192\.168\.1\.12 that could expire"):
            MappingExpiry("nat", CLIENTS[1]).strike(scene)


def test_a_renumbered_nat_has_another_address_and_its_routes(world: World, scene: Scene) -> None:
    with Talk(world, 1) as talk:
        talk.seen()
        record = WanRenumber("nat").strike(scene)
        assert talk.seen() == ("203.0.113.14", 500)
        talk.in_vain(talk.server, (NAT, 500), talk.clients)
        assert (record.details["old"], record.details["new"]) == ("203.0.113.2/28", "203.0.113.14/28")
        assert world.nat.address == world.nat.public_address == "203.0.113.14"
        WanRenumber("nat", NAT).strike(scene)
        assert talk.seen() == (NAT, 500)
    for address in ("203.0.113.1", "203.0.113.2", "203.0.113.15", "203.0.113.18"):
        with pytest.raises(FaultError, match=rf"nat: {address} is no other address of 203.0.113.0/28"):
            WanRenumber("nat", address).strike(scene)


def test_another_rule_holds_for_all_mappings_or_for_new_ones_only(world: World, scene: Scene) -> None:
    rule = ("-o", world.nat.wan, "-p", "udp", "-j", "MASQUERADE", "--to-ports", "40000")
    with Talk(world, 1) as talk:
        talk.seen()
        change = RuleChange("nat", "nat", "POSTROUTING", rule, forget=False)
        change.strike(scene)
        assert talk.seen() == (NAT, 500), "Linux keeps what it has"
        change.undo(scene)
        RuleChange("nat", "nat", "POSTROUTING", rule).strike(scene)
        assert talk.seen() == (NAT, 40_000)


def test_a_link_fails_and_comes_back_with_its_routes(world: World, scene: Scene) -> None:
    with Talk(world, 1) as talk:
        talk.seen()
        in_order(LinkDown("client1", "home").strike(scene))
        with pytest.raises(OSError, match="unreachable"):
            talk.clients[0].sendto(b"x", (SERVER, 500))
        in_order(LinkUp("client1", "home").strike(scene))
        talk.seen()
        record = LinkFlap("nat", "internet", 0.2).strike(scene)
        assert record.details["down_seconds"] >= 0.2
        assert record.happened == "the link of nat and internet came back"
        talk.seen()
    with pytest.raises(FaultError, match="no link between client1 and server"):
        LinkDown("client1", "server").strike(scene)


def test_only_nats_that_translate_can_be_rebooted(tmp_path: pathlib.Path, scene: Scene) -> None:
    with pytest.raises(FaultError, match="no NAT 'server' that translates; there are nat"):
        NatReboot("server").strike(scene)
    with (
        home(tmp_path, nat=presets.ROUTED) as routed,
        pytest.raises(FaultError, match="no NAT 'nat' that translates; there are none"),
    ):
        NatReboot("nat").strike(Scene(routed.lab))
