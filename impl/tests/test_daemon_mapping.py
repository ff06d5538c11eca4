"""Two clients that were configured alike, from their configuration files to programs that talk (the draft, 7)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import pytest
from daemon_world import PSK, Daemon, Host, launched
from plane_world import DEADLINE, INNER, LAN, OUTER, Namespace, clients_behind_a_nat, what_is_missing

from espthrunat.control import ControlError

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")
CLIENT, OFFICE = INNER


@dataclass(frozen=True)
class End(Host):
    """A client, or the gateway."""

    address: str = ""
    identity: str = ""
    local_lines: str = ""
    lines: str = ""

    @property
    def name(self) -> str:
        return self.identity.partition(".")[0]

    def write(self) -> FilePath:
        file = self.folder / f"{self.name}.toml"
        file.write_text(f"""
[local]
address = "{self.address}"
identity = "{self.identity}"
control = "{self.control}"
{self.local_lines}

[[connection]]
name = "peer"
psk = "{PSK}"
retransmit = {{ first = 0.2, tries = 3 }}
{self.lines}
""")
        return file


GATEWAY_LINES = f"""
remote_identity = "*.clients.example"
local_network = "{OFFICE}/32"
remote_network = "{CLIENT}/32"
translate = true
"""


class Office:
    """The gateway's daemon, and two clients' that differ in nothing but their names."""

    def __init__(self, stack: ExitStack, folder: FilePath, pool: str) -> None:
        self.hosts, self.server = stack.enter_context(clients_behind_a_nat())
        self.server.run("ip", "address", "add", f"{OFFICE}/32", "dev", "lo")
        gateway = End(
            1, folder, address=OUTER[1], identity="gateway.example", local_lines=f'pool = "{pool}"', lines=GATEWAY_LINES
        )
        self.gateway = stack.enter_context(launched(self.server, gateway))
        self.gateway.log.wait_for("listening on")
        self.clients: list[Daemon] = []
        client = End(
            0,
            folder,
            lines=f"""
remote = "{OUTER[1]}"
remote_identity = "gateway.example"
local_network = "{CLIENT}/32"
remote_network = "{OFFICE}/32"
""",
        )
        for number, (host, address) in enumerate(zip(self.hosts, LAN, strict=True)):
            host.run("ip", "address", "add", f"{CLIENT}/32", "dev", "lo")
            end = replace(client, address=address, identity=f"c{number}.clients.example")
            self.clients.append(stack.enter_context(launched(host, end)))
            self.clients[-1].log.wait_for("listening on")

    def appear_as(self, count: int) -> dict[str, str]:
        """What each of `count` clients appears as, once they are up."""
        shown = self.gateway.wait(lambda status: len(status["sas"]) == count)
        names = {(sa["remote"], sa["remote_port"]): sa["identity"] for sa in shown["ike_sas"] if not sa["replaced"]}
        return {names[sa["remote"], sa["remote_port"]]: sa["mapped_network"] for sa in shown["sas"]}


def says_who_it_is(host: Namespace, server: Namespace, text: bytes, address: str) -> None:
    """A datagram from the server reaches this host, and its answer comes from where that was sent."""
    with host.udp(CLIENT, 7) as program, server.udp(OFFICE, 7) as service:
        service.sendto(text, (address, 7))
        assert program.recvfrom(100) == (text, (OFFICE, 7))
        program.sendto(text[::-1], (OFFICE, 7))
        assert service.recvfrom(100) == (text[::-1], (address, 7))


@pytest.mark.draft("SEC-1", "SEC-2")
def test_both_talk_at_once_and_rekeys_change_nothing(tmp_path: FilePath) -> None:
    with ExitStack() as stack:
        office = Office(stack, tmp_path, "10.200.0.0/24")
        for client in office.clients:
            client.ask("up", connection="peer")
        wanted = {"c0.clients.example": "10.200.0.1/32", "c1.clients.example": "10.200.0.2/32"}
        assert office.appear_as(2) == wanted
        for rekeying in (None, office.gateway, *office.clients):
            if rekeying is not None:
                rekeying.ask("rekey", connection="peer", phase1=rekeying is not office.gateway)
            assert office.appear_as(2) == wanted
            for number, host in enumerate(office.hosts):
                says_who_it_is(host, office.server, b"for %d" % number, f"10.200.0.{number + 1}")
        office.clients[0].ask("down", connection="peer")
        office.clients[0].ask("up", connection="peer")
        assert office.appear_as(2) == wanted
        says_who_it_is(office.hosts[0], office.server, b"back", "10.200.0.1")
        table = office.gateway.cli("status").stdout
        assert f"{OFFICE}/32 <-> {CLIENT}/32 as 10.200.0.2/32" in table
        assert f"{OFFICE}/32 <-> {CLIENT}/32 as 10.200.0.1/32" in office.gateway.log.text


@pytest.mark.draft("SEC-1")
def test_a_full_pool_is_said_at_both_ends(tmp_path: FilePath) -> None:
    with ExitStack() as stack:
        office = Office(stack, tmp_path, "10.200.0.1/32")
        office.clients[0].ask("up", connection="peer")
        assert office.appear_as(1) == {"c0.clients.example": "10.200.0.1/32"}
        with pytest.raises(ControlError, match="refused Quick Mode: INVALID-ID-INFORMATION"):
            office.clients[1].ask("up", connection="peer")
        office.gateway.log.wait_for("the pool has no network left that c1.clients.example could appear as")
        says_who_it_is(office.hosts[0], office.server, b"undisturbed", "10.200.0.1")


def has_dropped(count: int, stats: dict[str, Any]) -> bool:
    return bool(stats["counters"].get("drop_no_sa", 0) == count)


@pytest.mark.draft("SEC-1")
def test_nothing_for_the_pool_goes_out_in_clear(tmp_path: FilePath) -> None:
    """Neither before anybody is there nor after all have left: the route to everywhere else leads to the wire."""
    with ExitStack() as stack:
        office = Office(stack, tmp_path, "10.200.0.0/24")
        office.server.run("ip", "route", "add", "default", "via", "192.0.2.254")
        for round_number in (1, 2):
            with office.server.udp(OFFICE, 7) as service:
                service.sendto(b"secret", ("10.200.0.1", 7))
            dropped = partial(has_dropped, round_number)
            office.gateway.wait(dropped, "stats")
            office.clients[0].ask("up", connection="peer")
            office.appear_as(1)
            office.clients[0].ask("down", connection="peer")
            office.appear_as(0)


CAPTURE = """
import socket, struct, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as device, open(sys.argv[2], "wb", 0) as file:
    device.bind((sys.argv[1], 0x0800))  # what arrives only
    file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))  # pcap of bare IP packets
    print("ready", flush=True)
    while True:
        packet = device.recv(65535)
        file.write(struct.pack("=IIII", 0, 0, len(packet), len(packet)) + packet)
"""


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
@pytest.mark.draft("SEC-1")
def test_another_program_finds_all_checksums_right(tmp_path: FilePath) -> None:
    with ExitStack() as stack:
        office = Office(stack, tmp_path, "10.200.0.0/24")
        for client in office.clients:
            client.ask("up", connection="peer")
        office.appear_as(2)
        capture = tmp_path / "inner.pcap"
        command = [*office.server.enter, sys.executable, "-c", CAPTURE, "esp0", str(capture)]
        program = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(program.kill)
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        listener = stack.enter_context(office.server.tcp(OFFICE, 80))
        listener.listen()
        for number, host in enumerate(office.hosts):
            says_who_it_is(host, office.server, b"for %d" % number, f"10.200.0.{number + 1}")
            connection = stack.enter_context(host.tcp(CLIENT, 40000))
            connection.connect((OFFICE, 80))
            accepted, _ = listener.accept()
            stack.enter_context(accepted)
            connection.sendall(b"hello")
            assert accepted.recv(10) == b"hello"
            host.run("ping", "-c", "1", "-W", "5", "-I", CLIENT, OFFICE)
        rows = inner_packets(capture, lambda rows: len([row for row in rows if row["icmp"]]) >= 2)
        for address in ("10.200.0.1", "10.200.0.2"):
            mine = [row for row in rows if row["src"] == address]
            for protocol in ("ip", "tcp", "udp", "icmp"):
                assert {row[protocol] for row in mine if row[protocol]} == {"1"}, protocol  # good


def inner_packets(capture: FilePath, complete: Callable[[list[dict[str, str]]], bool]) -> list[dict[str, str]]:
    """What tshark says of a capture's packets, as soon as it is complete: their source, and how checksums are."""
    protocols = ("ip", "tcp", "udp", "icmp")
    command = ["tshark", "-r", str(capture), "-T", "fields", "-e", "ip.src"]
    for protocol in protocols:
        command += ["-e", f"{protocol}.checksum.status"]
    for protocol in protocols[:3]:
        command += ["-o", f"{protocol}.check_checksum:TRUE"]
    end = time.monotonic() + DEADLINE
    while True:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line.split("\t") for line in run.stdout.splitlines()]
        rows = [dict(zip(("src", *protocols), line, strict=True)) for line in lines]
        if complete(rows):
            return rows
        assert time.monotonic() < end, f"{rows}: {run.stderr}"
