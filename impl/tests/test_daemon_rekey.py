"""SAs are replaced under running traffic: by command, by lifetime, by octets; nothing is lost and old keys go away."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import pytest
from daemon_world import Daemon, Host, one_line, pair, running
from plane_world import DEADLINE, INNER, Namespace, two_namespaces, what_is_missing

from espthrunat.control import ControlError

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

QUICKLY_OVER = "rekey_overlap = 0.3"


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def spis(status: dict[str, Any], which: str = "sas") -> set[tuple[str, str]]:
    return {(sa["inbound_spi"], sa["outbound_spi"]) for sa in status[which]}


def ends(pair: tuple[str, str]) -> frozenset[str]:
    """The same at both ends of it."""
    return frozenset(pair)


def uses_alone(at_one_end: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Whether an end has no pairs but those, each seen from either side, that one end has in use."""
    wanted = set(map(ends, spis(at_one_end)))
    return lambda status: not status["retired"] and set(map(ends, spis(status))) == wanted


@contextmanager
def ping(inside: Namespace, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A stream of echoes that is running, each answered by the other end; the caller waits for its end."""
    command = [*inside.enter, "ping", "-I", INNER[0], "-i", "0.001", *options, INNER[1]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert "bytes from" in process.stdout.readline(), "it runs"
        try:
            yield process
        finally:
            process.kill()


def assert_nothing_lost(process: subprocess.Popen[str], count: int) -> None:
    text, _ = process.communicate(timeout=3 * DEADLINE)
    assert f"{count} packets transmitted, {count} received, 0% packet loss" in text, text[-300:]
    assert "DUP!" not in text
    order = [int(number) for number in re.findall(r"icmp_seq=(\d+)", text)]
    assert order == sorted(order)


@pytest.mark.draft("REKEY-3")
@pytest.mark.parametrize("phase1", [False, True], ids=["quick", "phase1"])
def test_rekeys_by_command_lose_nothing(sides: tuple[Namespace, Namespace], tmp_path: FilePath, phase1: bool) -> None:
    here, _ = sides
    with pair(sides, tmp_path, connection=(QUICKLY_OVER,)) as (left, right):
        left.ask("up", connection="peer")
        seen = [left.ask("status")]
        with ping(here, "-c", "2000") as stream:
            for end in (left, right, left):
                answer = end.ask("rekey", connection="peer", phase1=phase1)
                seen.append(end.ask("status"))
                assert {(sa["inbound_spi"], sa["outbound_spi"]) for sa in answer["sas"]} == spis(seen[-1])
                assert 0 < answer["seconds"] < DEADLINE
                # They ask while packets are under way. Who answered has the pair with message 3, which may come later
                # than anybody is asked to rekey once more: that pair would be the answer to it.
                for one in (left, right):
                    one.wait(uses_alone(seen[-1]))
            assert_nothing_lost(stream, 2000)
        pairs = [frozenset(map(ends, spis(status))) for status in seen]
        assert len(set(pairs)) == 4, "each has made a pair of its own"
        assert all(len(one) == 1 for one in pairs), "and it alone is used"
        for end in (left, right):
            done = end.wait(lambda status: not status["retired"] and len(status["ike_sas"]) == 1)
            assert len(done["sas"]) == 1


def test_phase1_is_replaced_only_when_asked_for(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    keys = tmp_path / "keys"
    with pair(sides, tmp_path, "--keylog", str(keys)) as (left, _):
        left.ask("up", connection="peer")
        phase1 = keys / "ikev1_decryption_table"
        left.ask("rekey", connection="peer")
        assert len(phase1.read_text().splitlines()) == 1
        left.ask("rekey", connection="peer", phase1=True)
        assert len(phase1.read_text().splitlines()) == 2
        assert len((keys / "esp_sa").read_text().splitlines()) == 6


def test_the_command_shows_the_new_spis(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    with pair(sides, tmp_path, connection=("rekey_overlap = 60",)) as (left, _):
        left.ask("up", connection="peer")
        old = left.ask("status")
        run = left.cli("rekey", "peer", "--phase1")
        assert (run.returncode, run.stderr) == (0, "")
        first, second = run.stdout.splitlines()
        assert re.fullmatch(r"peer has new keys, \d+ ms", first)
        new = left.ask("status")
        ((inbound, outbound),) = spis(new)
        assert second == f"SPI in {inbound}, out {outbound}"
        assert spis(new, "retired") == spis(old)
        assert new["retired"][0]["retired"]
        assert not new["sas"][0]["retired"]
        table = left.cli("status").stdout
        assert "replaced" in table
        assert inbound in table


def test_there_is_nothing_to_rekey(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    with running(sides[0], Host(0, tmp_path)) as daemon:
        assert one_line(daemon.cli("rekey", "peer")) == "espthrunat: peer is not up"
        with pytest.raises(ControlError, match="phase1 = 1: must be true or false"):
            daemon.ask("rekey", connection="peer", phase1=1)


@pytest.mark.draft("SA-5")
def test_octets_that_are_used_up_make_a_new_pair_in_time(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    """At 500 packets a second 120 ms are left when it is time."""
    here, _ = sides
    with pair(sides, tmp_path, connection=("esp_octets = 409600", QUICKLY_OVER)) as (left, right):
        left.ask("up", connection="peer")
        first = left.ask("status")
        with ping(here, "-c", "1000", "-i", "0.002", "-s", "972") as stream:  # 1,000 octets a packet
            assert_nothing_lost(stream, 1000)
        assert not spis(left.ask("status")) & spis(first)
        assert "has nearly used up its octets" in left.log.text + right.log.text
        assert "has used up its octets" not in left.log.text + right.log.text


def test_status_says_how_long_sas_live(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    with pair(sides, tmp_path, connection=("esp_lifetime = 600", "ike_lifetime = 3000")) as (left, _):
        left.ask("up", connection="peer")
        status = left.ask("status")
        (sa,), (phase1,) = status["sas"], status["ike_sas"]
        assert 500 < sa["expires_in"] <= 600
        assert 0 <= sa["age"] < DEADLINE
        assert 2900 < phase1["expires_in"] <= 3000
        assert (phase1["exchange"], phase1["authentication"]) == ("main", "psk")
        assert (sa["mode"], sa["traffic_protocol"]) == ("tunnel", "any")


def last_failure(daemon: Daemon) -> str:
    return str(daemon.ask("status")["connections"][0]["last_failure"])


def test_a_rekey_that_fails_says_why_and_the_old_sas_go_on(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, there = sides
    with pair(sides, tmp_path) as (left, right):
        left.ask("up", connection="peer")
        before = spis(left.ask("status"))
        right.wait(lambda status: bool(status["sas"]))  # else it misses message 3, and gives the pair up
        there.run("iptables", "-A", "INPUT", "-p", "udp", "--dport", "500", "-j", "DROP")
        line = one_line(left.cli("rekey", "peer"))
        assert "no valid answer to Quick Mode message 1" in line
        assert spis(left.ask("status")) == before
        assert left.ask("status")["connections"][0]["state"] == "up"
        there.run("iptables", "-F", "INPUT")
        here.run("ping", "-c", "1", "-W", "5", "-I", INNER[0], INNER[1])
