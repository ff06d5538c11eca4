"""Key logs: Wireshark can read them, nobody else may, and without the option there are none."""

from __future__ import annotations

import csv
import re
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path as FilePath

import pytest
from daemon_world import Host, launched, pair
from ike_world import Nat, World
from plane_world import Namespace, two_namespaces, udp_packet, what_is_missing

from espthrunat.esp.sa import OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.ike import events
from espthrunat.ike.child_sa import ChildSa
from espthrunat.keylog import ESP_FILE, IKE_FILE, KeyLog
from espthrunat.messages import Encapsulation, Mode, Path, Selector

LINKTYPE_RAW = 101
UDP = 17
IP_OCTETS = 20

missing = what_is_missing()
needs_namespaces = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def mode(file: FilePath) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def logged(folder: FilePath, world: World) -> None:
    log = KeyLog(folder)
    for event in world.client_events:
        if isinstance(event, events.Phase1Keys):
            log.phase1(event)
    log.child(world.client_sa())


def test_only_the_owner_may_read_them(tmp_path: FilePath) -> None:
    logged(tmp_path / "new" / "keys", World().connect())
    assert {mode(tmp_path / "new" / "keys" / name) for name in (IKE_FILE, ESP_FILE)} == {0o600}


def test_a_file_that_everybody_could_read_is_closed_before_keys_get_into_it(tmp_path: FilePath) -> None:
    for name in (IKE_FILE, ESP_FILE):
        (tmp_path / name).touch(mode=0o644)
    KeyLog(tmp_path)
    assert {mode(tmp_path / name) for name in (IKE_FILE, ESP_FILE)} == {0o600}


def test_a_log_that_can_no_longer_be_written_costs_the_key_and_not_the_daemon(
    tmp_path: FilePath, caplog: pytest.LogCaptureFixture
) -> None:
    log = KeyLog(tmp_path)
    (tmp_path / ESP_FILE).unlink()
    (tmp_path / ESP_FILE).mkdir()  # in the way, for root too
    log.child(World().connect().client_sa())
    assert "a key could not be written" in caplog.text


def test_lines_are_as_wireshark_reads_them(tmp_path: FilePath) -> None:
    world = World().connect()
    logged(tmp_path, world)
    (phase1,) = (tmp_path / IKE_FILE).read_text().splitlines()
    assert re.fullmatch(r"[0-9a-f]{16},[0-9a-f]{32}", phase1), "cookie and AES-128 key, without quotes"
    assert phase1.startswith(world.wire[0][0][:8].hex()), "the cookie is the one on the wire"
    child = world.client_sa()
    rows = list(csv.reader((tmp_path / ESP_FILE).read_text().splitlines()))
    assert [row[:4] for row in rows] == [
        ["IPv4", "*", "*", f"0x{spi:08x}"] for spi in (child.inbound_spi, child.outbound_spi)
    ]
    for row, keymat in zip(rows, (child.inbound_keymat, child.outbound_keymat), strict=True):
        assert row[4:] == [child.suite.wireshark_encryption, f"0x{keymat.hex()}", "NULL", ""], "one key, of an AEAD"
    assert all(line.startswith('"') and line.endswith('"') for line in (tmp_path / ESP_FILE).read_text().splitlines())


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
def test_tshark_decrypts_ike_and_esp_with_the_folder_as_it_is(tmp_path: FilePath) -> None:
    """The folder serves as Wireshark's configuration folder."""
    world = World(nat=Nat(public=None)).connect()
    logged(tmp_path / "keys", world)
    child = world.client_sa()
    inner = udp_packet("192.168.1.11", "10.99.0.1", b"in the tunnel", 7777)
    ends = ("192.0.2.1", "192.0.2.2")
    packets = [udp_packet(*(ends if to_server else ends[::-1]), datagram, 500) for datagram, to_server in world.wire]
    outbound = OutboundSa(child.outbound_spi, child.suite, child.outbound_keymat)
    packets += [ip_packet(50, esp) for esp in outbound.seal([inner])]
    shown = tshark(tmp_path, packets, "isakmp.id.data.fqdn", "data.data")
    assert "client1.example" in shown, f"message 5 of Main Mode: {shown}"
    assert "server.example" in shown, f"message 6: {shown}"
    assert b"in the tunnel".hex() in shown, f"ESP: {shown}"


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
@pytest.mark.parametrize("mode", list(Mode))
def test_tshark_takes_the_keys_of_every_suite(tmp_path: FilePath, mode: Mode) -> None:
    """Those with one key, and those with no cipher, too; what Wireshark cannot read makes it refuse the whole file."""
    log = KeyLog(tmp_path / "keys")
    path, selector = Path("192.0.2.1", 500, "192.0.2.2", 500), Selector("192.0.2.1/32", "192.0.2.2/32")
    packets = []
    for number, suite in enumerate(SUITES.values()):
        spis = 0x1000 + number, 0x2000 + number
        ours, theirs = (bytes(range(first + number, first + number + suite.keymat_octets)) for first in (1, 101))
        log.child(ChildSa("server", path, suite, Encapsulation.NONE, selector, *spis, ours, theirs, mode=mode))
        inner = udp_packet("192.0.2.1", "192.0.2.2", f"by {suite.name}".encode(), 7777)
        outbound = OutboundSa(spis[1], suite, theirs)
        sealed = outbound.seal([inner]) if mode == Mode.TUNNEL else outbound.seal([inner[IP_OCTETS:]], UDP)
        packets += [ip_packet(50, esp) for esp in sealed]
    shown = tshark(tmp_path, packets, "esp.icv_good", "udp.dstport", "data.data").splitlines()
    assert shown == [f"1\t7777\t{f'by {suite.name}'.encode().hex()}" for suite in SUITES.values()]


def tshark(folder: FilePath, packets: list[bytes], *fields: str) -> str:
    """What tshark shows of IP packets with `folder`/keys as its configuration folder, a line each."""
    capture = folder / "wire.pcap"
    records = [struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet for packet in packets]
    capture.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, LINKTYPE_RAW) + b"".join(records))
    command = ["tshark", "-r", str(capture), "-T", "fields"]
    for option in ("esp.enable_encryption_decode:TRUE", "esp.enable_authentication_check:TRUE"):
        command += ["-o", option]
    for field in fields:
        command += ["-e", field]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "WIRESHARK_CONFIG_DIR": str(folder / "keys")}
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def ip_packet(protocol: int, payload: bytes) -> bytes:
    addresses = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2")
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + addresses + payload


def test_a_second_run_adds_to_them(tmp_path: FilePath) -> None:
    for _ in range(2):
        logged(tmp_path, World().connect())
    assert len((tmp_path / IKE_FILE).read_text().splitlines()) == 2
    assert len((tmp_path / ESP_FILE).read_text().splitlines()) == 4


@needs_namespaces
def test_a_daemon_warns_that_it_writes_keys(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    keys = tmp_path / "keys"
    with pair(sides, tmp_path, "--keylog", str(keys)) as (left, _):
        assert f"WARNING keys are written to {keys}" in left.log.wait_for("keys are written")
        left.ask("up", connection="peer")
        (sa,) = left.ask("status")["sas"]
        assert len((keys / IKE_FILE).read_text().splitlines()) == 1
        written = (keys / ESP_FILE).read_text()
        assert (sa["inbound_spi"] in written, sa["outbound_spi"] in written) == (True, True)
        assert {mode(file) for file in keys.iterdir()} == {0o600}
        assert sorted(f.name for f in tmp_path.iterdir()) == sorted(
            ["here-500-esp0.toml", "here.sock", "there-500-esp0.toml", "there.sock", "keys"]
        ), "the peer, without the option, writes none"


@needs_namespaces
def test_a_folder_that_cannot_be_made_is_named(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    (tmp_path / "file").touch()
    with launched(sides[0], Host(0, tmp_path), "--keylog", str(tmp_path / "file" / "keys")) as daemon:
        assert daemon.ended() == 1
        assert daemon.log.wait_for_end() == f"espthrunat: {tmp_path / 'file' / 'keys'}: Not a directory"
