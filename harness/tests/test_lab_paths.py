"""Paths that let some packets through and others not: what is said of it, and that nothing else was wrong."""

from __future__ import annotations

import pathlib

import pytest
from lab_flows import ping
from lab_wire import ESP
from lab_world import NAT, SERVER, World, client_side, home, server_side

from natbed import pki
from natbed.nat import presets
from natbed.stacks.base import Credentials

pytestmark = pytest.mark.usefixtures("isolated")

THERE, HERE = "10.99.0.2", "10.99.0.1"  # inner addresses of server and client, where nothing is translated
PLAIN_ESP_NOTE = f"no ESP has come back from {SERVER}: is IP protocol 50 filtered on the way?"


@pytest.mark.draft("QM-2")
def test_a_path_that_filters_plain_esp_shows_as_what_it_is(tmp_path: pathlib.Path) -> None:
    """NAT discovery finds nothing wrong with such a path; only that nothing comes back tells."""
    with home(tmp_path, nat=presets.ROUTED) as world:
        node, router = world.lab["client1"], world.nat
        nets = {
            "client1": {"local_network": f"{HERE}/32", "remote_network": f"{THERE}/32"},
            "server": {"local_network": f"{THERE}/32", "remote_network": f"{HERE}/32"},
        }
        router.run(["iptables", "-A", "FORWARD", "-p", "esp", "-j", "DROP"])
        client, server = world.start_pair(nets["client1"], nets["server"])
        with world.wire("nat", router.lan) as filtered:
            client.up()
            (sa,) = client.status["sas"]
            assert sa["encapsulation"] == "none"
            node.run(["ping", "-c", "3", "-i", "0.1", "-W", "0.3", "-I", HERE, THERE], check=False)
            status = client.wait(lambda status: bool(status["connections"][0]["note"]))
        note = status["connections"][0]["note"]
        assert PLAIN_ESP_NOTE in note
        assert 'encapsulation = "always"' in note
        assert client.log.count(f"WARNING server: {note}") == 1
        assert len([p for p in filtered.packets if p.protocol == ESP]) == 3, "they went out bare"
        assert not filtered.of("esp")

        client.stop()
        server.stop()
        client, server = world.start_pair(
            {**nets["client1"], "encapsulation": "always"}, {**nets["server"], "encapsulation": "always"}
        )
        with world.wire() as forced:
            client.up()
            ping(node, THERE, HERE)
            ping(world.lab["server"], HERE, THERE)
        assert {p.source[0] for p in forced.of("esp")} == {node.address, SERVER}
        assert not [p for p in forced.packets if p.protocol == ESP]
        assert client.status["connections"][0]["note"] == ""


def test_fragments_that_are_lost_are_named_with_their_size(tmp_path: pathlib.Path) -> None:
    with home(tmp_path) as world:
        files = pki.issue(tmp_path, {name: f"{name}.example" for name in ("client1", "server")})
        start_with_certificates(world, files)
        client = world.daemons["client1"]
        drop = ["FORWARD", "-m", "length", "--length", "1501:", "-j", "DROP"]  # conntrack has put them together by then
        world.nat.run(["iptables", "-t", "mangle", "-I", *drop])
        with world.wire("nat", world.nat.lan) as inside, world.wire() as outside:
            answer = client.try_ask("up", connection="server")
        assert not answer["ok"]
        first, second, *_ = [p for p in inside.packets if p.fragment]
        octets = len(first.payload) + len(second.payload)
        named = f"no valid answer to Main Mode message 5 ({octets} octets: it travels as IP fragments"
        assert named in answer["error"], answer["error"]
        reason = answer["error"].removeprefix("server: ")
        assert reason in client.log
        assert client.status["connections"][0]["last_failure"] == reason
        assert not [p for p in outside.packets if p.fragment], "none passed the NAT"

        world.nat.run(["iptables", "-t", "mangle", "-D", *drop])
        with world.wire() as passed:
            client.up()
        assert client.status["sas"][0]["encapsulation"] == "udp"
        for source in (NAT, SERVER):
            assert [p for p in passed.packets if p.fragment and p.source[0] == source], f"no fragments of {source}"


def start_with_certificates(world: World, files: dict[str, Credentials]) -> None:
    local = {
        name: {"certificate": str(one.certificate), "private_key": str(one.private_key), "ca": str(one.authorities)}
        for name, one in files.items()
    }
    rsa = {"authentication": "rsa", "psk": None, "retransmit": {"first": 0.2, "factor": 1.0, "tries": 3}}
    world.start("server", server_side(**rsa), **local["server"])
    world.start("client1", client_side(**rsa), **local["client1"])
