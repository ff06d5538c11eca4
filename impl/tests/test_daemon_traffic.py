"""Which traffic a daemon protects and how it sets that up: on demand, by protocol and port, in transport mode."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest
from daemon_world import PSK, Host, launched, pair, running
from plane_world import INNER, OUTER, Namespace, two_namespaces, what_is_missing

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def is_up(status: dict[str, Any]) -> bool:
    return bool(status["sas"])


def ping(inside: Namespace, target: str, *options: str) -> bool:
    """Whether one of a few echoes is answered."""
    command = [*inside.enter, "ping", "-c", "1", "-W", "1", *options, target]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_traffic_brings_a_connection_up(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """Its first packet too arrives, and is answered."""
    here, _ = sides
    with pair(sides, tmp_path) as (left, right):
        for end in (left, right):  # whose plane has its policies when it answers
            assert not end.ask("stats")["sas"]
        here.run("ping", "-c", "1", "-W", "2", "-I", INNER[0], INNER[1])
        assert len(left.ask("status")["sas"]) == 1


def test_traffic_brings_nothing_up_where_that_is_not_wanted(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, _ = sides
    with pair(sides, tmp_path, connection=("acquire = false",)) as (left, _):
        assert not ping(here, INNER[1], "-I", INNER[0])
        status = left.ask("status")
        assert (status["sas"], status["ike_sas"]) == ([], [])
        left.ask("up", connection="peer")
        assert ping(here, INNER[1], "-I", INNER[0])


def test_what_was_taken_down_stays_down_whatever_is_sent(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, _ = sides
    with pair(sides, tmp_path) as (left, _):
        left.ask("up", connection="peer")
        left.ask("down", connection="peer")
        assert not ping(here, INNER[1], "-I", INNER[0])
        assert not left.ask("status")["ike_sas"]


def second(number: int, protocol: str) -> str:
    return f"""
[[connection]]
name = "second"
remote = "{OUTER[1 - number]}"
remote_identity = "any"
psk = "{PSK}"
local_network = "{INNER[number]}/32"
remote_network = "{INNER[1 - number]}/32"
traffic_protocol = "{protocol}"
"""


@pytest.mark.draft("QM-7")
def test_two_pairs_side_by_side_carry_what_their_protocols_say(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, there = sides
    hosts = [
        Host(number, tmp_path, connection=('traffic_protocol = "icmp"',), more=second(number, "udp"))
        for number in (0, 1)
    ]
    with launched(here, hosts[0]) as left, running(there, hosts[1]) as right:
        left.log.wait_for("listening on")
        for name in ("peer", "second"):
            left.ask("up", connection=name)
        for end in (left, right):
            sas = end.wait(lambda status: len(status["sas"]) == 2)["sas"]
            assert {sa["connection"]: sa["traffic_protocol"] for sa in sas} == {"peer": "icmp", "second": "udp"}
            assert len(end.ask("status")["ike_sas"]) == 1, "one phase 1 serves both"
        outbound = {sa["connection"]: sa["outbound_spi"] for sa in left.ask("status")["sas"]}
        assert ping(here, INNER[1], "-I", INNER[0])
        with there.udp(INNER[1], 7777) as receiver, here.udp(INNER[0], 7778) as sender:
            for _ in range(3):
                sender.sendto(b"hello", (INNER[1], 7777))
                assert receiver.recv(100) == b"hello"
        packets = {sa["spi"]: sa["packets"] for sa in left.ask("stats")["sas"] if sa["direction"] == "out"}
        assert (packets[outbound["peer"]], packets[outbound["second"]]) == (1, 3)
        assert "udp" in left.cli("status").stdout
        left.ask("rekey", connection="second", phase1=True)  # made by the other connection, and shared
        renewed = {sa["connection"]: sa["outbound_spi"] for sa in left.ask("status")["sas"]}
        assert renewed["second"] != outbound["second"]
        assert renewed["peer"] == outbound["peer"]


@pytest.mark.parametrize("anybody", [False, True], ids=["known peer", "any peer"])
def test_transport_mode_protects_the_hosts_own_traffic(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, anybody: bool
) -> None:
    here, there = sides
    hosts = [Host(number, tmp_path, transport=True) for number in (0, 1)]
    if anybody:
        hosts[1] = replace(hosts[1], remote="any")
    with launched(here, hosts[0]) as left, running(there, hosts[1]) as right:
        left.log.wait_for("listening on")
        left.ask("up", connection="peer")
        right.wait(is_up)
        (sa,) = left.ask("status")["sas"]
        assert (sa["mode"], sa["local_network"], sa["remote_network"]) == (
            "transport",
            f"{OUTER[0]}/32",
            f"{OUTER[1]}/32",
        )
        assert ping(here, OUTER[1])
        for end in (left, right):
            traffic = {(s["direction"], s["packets"]) for s in end.ask("stats")["sas"]}
            assert traffic == {("in", 1), ("out", 1)}
        left.ask("down", connection="peer")
        right.wait(lambda status: not status["sas"])
        if anybody:  # nothing says any more that this address is to be protected, once both have forgotten it
            left.stop()
            assert ping(there, OUTER[0])
        else:
            assert not ping(there, OUTER[0]), "it is not sent in the clear"


def test_plain_esp_that_is_filtered_shows_as_what_it_is(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    if shutil.which("iptables") is None:
        pytest.skip("needs iptables")
    here, there = sides
    text = f"no ESP has come back from {OUTER[1]}: is IP protocol 50 filtered on the way?"
    there.run("iptables", "-A", "INPUT", "-p", "esp", "-j", "DROP")
    with pair(sides, tmp_path) as (left, right):
        left.ask("up", connection="peer")
        assert left.ask("status")["connections"][0]["note"] == "", "nothing was sent yet"
        assert not ping(here, INNER[1], "-I", INNER[0])
        note = left.wait(lambda status: bool(status["connections"][0]["note"]))["connections"][0]["note"]
        assert note.startswith(text)
        assert 'encapsulation = "always" would avoid it' in note
        assert text in left.cli("status").stdout
        assert sum(text in line for line in left.log.lines) == 1
        assert right.ask("status")["connections"][0]["note"] == "", "it has sent nothing"
        there.run("iptables", "-F", "INPUT")
        assert ping(here, INNER[1], "-I", INNER[0])
        left.wait(lambda status: not status["connections"][0]["note"])
        left.log.wait_for("ESP comes back now")


def test_esp_that_comes_back_needs_no_note(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    with pair(sides, tmp_path) as (left, _):
        left.ask("up", connection="peer")
        end = time.monotonic() + 1.2  # longer than young pairs are left in peace
        while time.monotonic() < end:
            assert ping(here, INNER[1], "-I", INNER[0])
        assert left.ask("status")["connections"][0]["note"] == ""
        assert "filtered" not in left.log.text
