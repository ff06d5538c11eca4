"""A sender of ESP that repeats an IV or a sequence number is found by what is on the wire, whatever decrypts."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from wire_world import (
    CBC_SPI,
    CLEAN,
    CLIENT,
    KEY,
    MARKER,
    NAT,
    PROTECTED,
    SALT,
    SERVER,
    SPI,
    Audit,
    auditor,
    back,
    esp,
    esp_cbc,
    ethernet,
    inner,
    ipv4,
    out,
)

from natbed.capture import CaptureError, Frame
from natbed.checks import Verdict
from natbed.checks.esp_freshness import find_repetitions, iv_octets

IVS = {SPI: 8, CBC_SPI: 16}


def found(*frames: bytes, ivs: dict[int, int] = IVS) -> list[str]:
    return find_repetitions([Frame(n + 1, n, data, False) for n, data in enumerate(frames)], ivs)


def packet(sequence: int, iv: bytes, rest: bytes = b"x" * 32, spi: int = SPI) -> bytes:
    return struct.pack("!II", spi, sequence) + iv + rest


IV, OTHER_IV = bytes(range(8)), bytes(range(8, 16))


def test_each_packet_with_an_iv_of_its_own_is_good() -> None:
    assert found(out(MARKER + packet(1, IV)), out(MARKER + packet(2, OTHER_IV))) == []


@pytest.mark.parametrize(
    "wrapped", [lambda esp: out(MARKER + esp), lambda esp: ethernet(ipv4(NAT, SERVER, 50, esp))], ids=["UDP", "bare"]
)
def test_an_iv_that_comes_again_is_named_with_its_spi(wrapped: Callable[[bytes], bytes]) -> None:
    assert found(wrapped(packet(1, IV)), wrapped(packet(2, OTHER_IV)), wrapped(packet(3, IV))) == [
        f"frame 3: ESP of SPI {SPI:#010x} uses IV {IV.hex()} again, which frame 1 has for another packet"
    ]


def test_a_sequence_number_that_comes_again_is_named() -> None:
    assert found(out(MARKER + packet(7, IV)), out(MARKER + packet(7, OTHER_IV))) == [
        f"frame 2: ESP of SPI {SPI:#010x} uses sequence number 7 again, which frame 1 has for another packet"
    ]


def test_a_packet_that_the_network_doubles_is_no_repetition_by_its_sender() -> None:
    once = packet(1, IV)
    assert found(out(MARKER + once), out(MARKER + once), out(MARKER + once, port=337)) == []


def test_each_sa_has_its_own_ivs_and_numbers() -> None:
    other = packet(1, IV, spi=CBC_SPI)
    assert found(out(MARKER + packet(1, IV)), back(MARKER + other)) == []


def test_a_cbc_iv_is_as_long_as_its_block() -> None:
    """The first half alone may come again."""
    first, second = packet(1, IV + IV, spi=CBC_SPI), packet(2, IV + OTHER_IV, spi=CBC_SPI)
    assert found(out(MARKER + first), out(MARKER + second)) == []
    (reason,) = found(out(MARKER + first), out(MARKER + packet(2, IV + IV, spi=CBC_SPI)))
    assert f"IV {(IV + IV).hex()} again" in reason


def test_without_an_iv_the_sequence_number_is_judged_all_the_same() -> None:
    null = {SPI: 0}
    assert found(out(MARKER + packet(1, IV)), out(MARKER + packet(2, IV)), ivs=null) == []
    assert len(found(out(MARKER + packet(1, IV)), out(MARKER + packet(1, OTHER_IV)), ivs=null)) == 1


def test_octets_behind_the_ip_packet_do_not_count() -> None:
    """Ethernet fills small frames up, with anything."""
    once = out(MARKER + packet(1, IV))
    assert found(once, once + b"padding") == []


def table(path: Path, *encryptions: str) -> Path:
    lines = [f'"IPv4","*","*","0x0000000{n}","{name}","0x00","NULL",""' for n, name in enumerate(encryptions, 1)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_iv_lengths_follow_the_names_of_wireshark(tmp_path: Path) -> None:
    names = ("AES-GCM with 16 octet ICV [RFC4106]", "AES-CBC [RFC3602]", "TripleDES-CBC [RFC2451]", "NULL")
    assert iv_octets(table(tmp_path / "esp_sa", *names)) == {1: 8, 2: 16, 3: 8, 4: 0}
    with pytest.raises(CaptureError, match="0x00000001: how long the IVs of 'CAST5-CBC"):
        iv_octets(table(tmp_path / "esp_sa", "CAST5-CBC [RFC2144]"))


needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is missing")


@needs_tshark
def test_the_audit_names_a_gcm_iv_that_comes_again_though_both_packets_are_authentic(tmp_path: Path) -> None:
    audit: Audit = auditor(tmp_path)
    first = esp(9, inner())
    header, iv, packet = struct.pack("!II", SPI, 10), first[8:16], inner(data=b"another packet")
    pad = -(len(packet) + 2) % 4
    plain = packet + bytes(range(1, pad + 1)) + bytes([pad, 4])
    second = header + iv + AESGCM(KEY).encrypt(SALT + iv, plain, header)
    result = audit([*CLEAN, out(MARKER + first), out(MARKER + second)])
    assert result.verdict is Verdict.FAILED
    assert result.details["esp_good"] == 6, "both decrypt"
    assert result.details["violation_count"] == 1
    assert f"SPI {SPI:#010x} uses IV {iv.hex()} again" in result.reason


@needs_tshark
def test_the_audit_names_a_sequence_number_that_comes_again(tmp_path: Path) -> None:
    audit: Audit = auditor(tmp_path)
    result = audit([*CLEAN, back(MARKER + esp_cbc(4, inner(PROTECTED, CLIENT, b"other")))])
    assert result.details["esp_good"] == 5
    assert f"SPI {CBC_SPI:#010x} uses sequence number 4 again" in result.reason
