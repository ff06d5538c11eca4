"""Two daemons in two namespaces: tunnels come up and go, and nothing is left when a process ends, however it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest
from daemon_world import PSK, Daemon, Host, has_ended, one_line, pair, running
from plane_world import DEADLINE, INNER, OUTER, POLL, Namespace, two_namespaces, what_is_missing

from espthrunat.wire.udp import ESP_MARKER, KEEPALIVE

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

HEAVY = {"asyncio", "numpy", "rich", "pyroute2"}  # what `run` must not wait for


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def has_tun(inside: Namespace) -> bool:
    return "esp0" in inside.run("ip", "link")


def test_a_tunnel_goes_up_and_down_and_up_again(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    with pair(sides, tmp_path) as (left, right):
        for _ in range(2):
            up = left.cli("up", "peer")
            assert (up.returncode, up.stderr) == (0, "")
            assert up.stdout.startswith("peer is up, ")
            here.run("ping", "-c", "1", "-W", "5", "-I", INNER[0], INNER[1])
            (sa,) = left.ask("status")["sas"]
            (mirrored,) = right.wait(lambda status: bool(status["sas"]))["sas"]
            assert (sa["inbound_spi"], sa["outbound_spi"]) == (mirrored["outbound_spi"], mirrored["inbound_spi"])
            traffic = {(s["spi"], s["direction"], s["packets"]) for s in left.ask("stats")["sas"]}
            assert traffic == {(sa["inbound_spi"], "in", 1), (sa["outbound_spi"], "out", 1)}
            assert left.cli("down", "peer").stdout == "peer is down\n"
            for end in (left, right):
                gone = end.wait(lambda status: not status["sas"])
                assert gone["connections"][0]["state"] == "down"
                assert gone["ike_sas"] == []


def test_status_and_stats_as_json_and_as_tables(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    with pair(sides, tmp_path) as (left, _):
        left.ask("up", connection="peer")
        status = json.loads(left.cli("status", "--json").stdout)
        assert status["connections"] == [
            {"name": "peer", "state": "up", "remote": OUTER[1], "last_failure": "", "note": ""}
        ]
        assert [(s["role"], s["identity"], s["nat"]) for s in status["ike_sas"]] == [
            ("initiator", "there.example", "none")
        ]
        stats = json.loads(left.cli("stats", "--json").stdout)
        assert {s["direction"] for s in stats["sas"]} == {"in", "out"}
        assert stats["counters"]["ike_out"] >= 5
        assert "there.example" in left.cli("status").stdout
        assert "ike_out" in left.cli("stats").stdout


def test_up_when_it_is_up_is_quick_and_changes_nothing(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    with pair(sides, tmp_path) as (left, _):
        left.ask("up", connection="peer")
        before = lasting(left)
        assert left.ask("up", connection="peer") == {"seconds": 0.0}
        assert lasting(left) == before


def test_sigterm_says_goodbye_and_leaves_nothing(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    with pair(sides, tmp_path) as (left, right):
        left.ask("up", connection="peer")
        right.wait(lambda status: bool(status["sas"]))
        plane = left.plane
        assert left.stop() == 0
        assert has_ended(plane)
        assert not left.host.control.exists()
        assert not has_tun(here)
        gone = right.wait(lambda status: not status["sas"] and not status["ike_sas"])
        assert gone["connections"][0]["state"] == "down"
        assert "deleted by the peer" in right.log.text
        assert left.log.wait_for_end().endswith("INFO stopped")


def test_goodbye_is_said_amid_a_flood_of_junk(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """What the daemon has not read yet must not swallow what it had to say."""
    _, there = sides
    with pair(sides, tmp_path) as (left, right), there.udp(OUTER[1], 4000) as stranger:
        left.ask("up", connection="peer")
        right.wait(lambda status: bool(status["sas"]))
        plane = left.plane
        os.kill(left.process.pid, signal.SIGSTOP)
        for _ in range(300):
            stranger.sendto(b"\xff" * 60, (OUTER[0], 500))
        until(lambda: unread_octets(plane) == 0, "the plane has passed the flood up")
        os.kill(plane, signal.SIGSTOP)
        left.process.terminate()
        os.kill(left.process.pid, signal.SIGCONT)
        until(lambda: not left.host.control.exists(), "the daemon has said all it has to say")
        os.kill(plane, signal.SIGCONT)
        assert left.ended() == 0
        right.wait(lambda status: not status["sas"])


def test_a_killed_daemon_takes_its_plane_along_and_the_next_one_starts(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, _ = sides
    host = Host(0, tmp_path)
    with running(here, host) as first:
        plane = first.plane
        first.process.kill()
        assert first.ended() == -signal.SIGKILL
        assert has_ended(plane)
        assert not has_tun(here)
        assert host.control.is_socket(), "kill -9 leaves the socket: that is what the next start must cope with"
    with running(here, host) as second:
        assert second.stop() == 0
    assert not host.control.exists()


def test_wrong_psk_is_named_at_both_ends_and_shown_at_none(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    other = "wrong horse battery staple"
    with pair(sides, tmp_path, there_psk=other) as (left, right):
        assert "most likely the pre-shared keys differ" in one_line(left.cli("up", "peer"))
        left.log.wait_for("most likely the pre-shared keys differ")
        right.log.wait_for("the keys differ")
        shown = [end.cli(command, "--json").stdout for end in (left, right) for command in ("status", "stats")]
        assert "the keys differ" in json.loads(shown[2])["connections"][0]["last_failure"]
        for text in (*shown, left.log.text, right.log.text):
            assert text
            assert PSK not in text
            assert other not in text


def test_no_key_of_a_working_tunnel_is_shown(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """The key log, written on request, says which keys to look for."""
    keys = tmp_path / "keys"
    with pair(sides, tmp_path, "--keylog", str(keys), "--verbose") as (left, right):
        left.ask("up", connection="peer")
        phase1 = (keys / "ikev1_decryption_table").read_text().strip().split(",")[1]
        esp = [line.split(",")[5].strip('"').removeprefix("0x") for line in (keys / "esp_sa").read_text().splitlines()]
        shown = [end.cli(command, "--json").stdout for end in (left, right) for command in ("status", "stats")]
        text = "\n".join([*shown, left.log.text, right.log.text])
    secrets = [phase1, *esp]
    assert len(secrets) == 3
    for secret in secrets:
        assert len(secret) >= 32
        assert secret not in text
        assert repr(bytes.fromhex(secret))[2:-1] not in text
    assert PSK not in text


def test_the_daemon_and_its_plane_import_little(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, _ = sides
    with running(here, Host(0, tmp_path), environment={"PYTHONPROFILEIMPORTTIME": "1"}) as daemon:
        daemon.ask("stats")
        assert daemon.stop() == 0
        imported = {
            line.rpartition("|")[2].strip() for line in daemon.log.wait_for_end().splitlines() if "import time:" in line
        }
    assert {"espthrunat.daemon", "espthrunat.plane.loop"} <= imported, "both processes are seen"
    assert not {name for name in imported if name.partition(".")[0] in HEAVY}


def lasting(daemon: Daemon) -> list[dict[str, Any]]:
    """Its pairs of SAs, but for what changes with time."""
    return [{**sa, "age": 0.0, "expires_in": 0.0} for sa in daemon.ask("status")["sas"]]


def hostile_datagrams() -> list[bytes]:
    chance = random.Random(7)
    header = bytes(range(1, 9)) + bytes(8) + bytes([1, 0x10, 2, 0]) + bytes(4) + (400).to_bytes(4, "big")
    datagrams = [chance.randbytes(chance.randrange(1, 1400)) for _ in range(300)]
    datagrams += [header[:length] for length in range(len(header))] * 5
    datagrams += [header + chance.randbytes(372) for _ in range(200)]
    datagrams += [header[:18] + bytes([kind, 1]) + header[20:] + chance.randbytes(372) for kind in range(256)]
    return datagrams + [KEEPALIVE, ESP_MARKER, ESP_MARKER + b"\0", ESP_MARKER + chance.randbytes(90), b""] * 40


def test_hostile_datagrams_move_nothing_and_fill_no_log(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    here, there = sides
    with pair(sides, tmp_path) as (left, _), there.udp(OUTER[1], 4000) as stranger:
        left.ask("up", connection="peer")
        before = lasting(left)
        lines = len(left.log.lines)
        sent = hostile_datagrams()

        def arrived(stats: dict[str, Any]) -> bool:
            names = ("ike_in", "keepalive_in", "drop_junk", "drop_unknown_spi", "drop_ike_overload")
            return bool(sum(stats["counters"].get(name, 0) for name in names) >= count)

        count = sum(left.ask("stats")["counters"].get(name, 0) for name in ("ike_in", "keepalive_in"))
        for start in range(0, len(sent), 50):  # in portions that the socket's buffer holds
            for datagram in sent[start : start + 50]:
                stranger.sendto(datagram, (OUTER[0], 500))
            count += len(sent[start : start + 50])
            left.wait(arrived, "stats")
        assert lasting(left) == before
        here.run("ping", "-c", "1", "-W", "5", "-I", INNER[0], INNER[1])
        said: dict[tuple[str, str], int] = {}
        for line in left.log.lines[lines:]:
            second, kind = line[:19], line.split("WARNING ")[-1].split(":")[0]
            said[second, kind] = said.get((second, kind), 0) + 1
        assert len(said) >= 3, "it says something"
        assert max(said.values()) <= 2, f"at most one a second, which may fall into the same clock second twice: {said}"
        assert len(left.log.lines) - lines <= 40
        assert "Traceback" not in left.log.text


def test_a_connection_that_waits_is_taken_down(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    """Who waits for `up` is told, when somebody else says `down`."""
    here, _ = sides
    nobody = replace(Host(0, tmp_path), remote="192.0.2.77")
    with running(here, nobody) as daemon, socket.socket(socket.AF_UNIX) as waiting:
        waiting.settimeout(5.0)
        waiting.connect(str(nobody.control))
        waiting.sendall(b'{"command": "up", "connection": "peer"}\n')
        connecting(daemon)
        daemon.ask("down", connection="peer")
        assert json.loads(waiting.recv(4096)) == {"ok": False, "error": "peer: taken down while it was coming up"}
        assert daemon.ask("status")["connections"][0]["state"] == "down"


def test_a_client_that_vanishes_while_it_waits_harms_nobody(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath
) -> None:
    here, _ = sides
    nobody = replace(Host(0, tmp_path), remote="192.0.2.77")
    with running(here, nobody) as daemon:
        with socket.socket(socket.AF_UNIX) as vanishing:
            vanishing.connect(str(nobody.control))
            vanishing.sendall(b'{"command": "up", "connection": "peer"}\n')
            connecting(daemon)
        daemon.log.wait_for("no valid answer to Main Mode message 1")
        assert daemon.wait(lambda status: status["connections"][0]["state"] == "down")["ike_sas"] == []
        assert daemon.stop() == 0


def unread_octets(pid: int) -> int:
    """What waits in the UDP sockets of a process's namespace, as /proc/net/udp has it."""
    rows = FilePath(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    return sum(int(row.split()[4].partition(":")[2], 16) for row in rows if row.split()[1].endswith(":01F4"))


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(POLL)


def connecting(daemon: Daemon) -> None:
    daemon.wait(lambda status: bool(status["connections"][0]["state"] == "connecting"))
