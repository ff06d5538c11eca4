"""An independent implementation agrees: tshark decrypts what we seal, and finds its ICV correct."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from espthrunat.esp.sa import OutboundSa
from espthrunat.esp.suites import SUITES, EspSuite

SPI = 0xC0FFEE01
LINKTYPE_RAW = 101


def ipv4(protocol: int, payload: bytes) -> bytes:
    addresses = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2")
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + addresses + payload


def pcap(packets: list[bytes]) -> bytes:
    records = [struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet for packet in packets]
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, LINKTYPE_RAW) + b"".join(records)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_tshark_decrypts_what_is_sealed(suite: EspSuite, tmp_path: Path) -> None:
    keymat = bytes(range(7, 7 + suite.keymat_octets))
    inner = ipv4(17, struct.pack("!HHHH", 1111, 7777, 8 + 11, 0) + b"hello there")
    capture = tmp_path / "esp.pcap"
    sealed = OutboundSa(SPI, suite, keymat).seal([inner, inner])
    capture.write_bytes(pcap([ipv4(50, packet) for packet in sealed]))

    keys = [f"0x{key.hex()}" if key else "" for key in suite.split(keymat)]
    names = [suite.wireshark_encryption, suite.wireshark_authentication]
    row = ["IPv4", "*", "*", f"0x{SPI:08x}", names[0], keys[0], names[1], keys[1]]
    table = ",".join(f'"{value}"' for value in row)
    options = ["esp.enable_encryption_decode:TRUE", "esp.enable_authentication_check:TRUE", f"uat:esp_sa:{table}"]
    fields = ["esp.sequence", "esp.icv_good", "udp.dstport", "data.data"]
    command = ["tshark", "-r", str(capture), "-T", "fields"]
    command += [part for option in options for part in ("-o", option)]
    command += [part for field in fields for part in ("-e", field)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}  # nobody's own preferences
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    expected = [[str(number), "1", "7777", b"hello there".hex()] for number in (1, 2)]
    assert [line.split("\t") for line in run.stdout.splitlines()] == expected, run.stderr
