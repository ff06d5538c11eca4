"""The audit of the public wire: transport mode, fragments, Aggressive Mode and signatures."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from wire_world import (
    CLEAN,
    CLIENT,
    EXPECTED,
    MARKER,
    NAT,
    SERVER,
    Audit,
    aggressive_mode,
    auditor,
    back,
    esp,
    ethernet,
    inner,
    ipv4,
    main_mode,
    out,
    udp,
)

from natbed.checks import PATTERN, Verdict
from natbed.checks.outer import WireExpectation

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is missing")


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    return auditor(tmp_path)


TRANSPORT = WireExpectation(server=EXPECTED.server, peers=EXPECTED.peers, protected=(), mode="transport")


def bare_udp(checksum: int = 0, data: bytes = PATTERN) -> bytes:
    return udp(data, 1701, 1701)[:6] + struct.pack("!H", checksum) + data


def test_transport_mode_shows_the_payload_itself(audit: Audit) -> None:
    frames = [out(MARKER + esp(1, bare_udp(), 17)), back(MARKER + esp(2, bytes(20) + PATTERN, 6), port=337)]
    frames.append(out(MARKER + esp(3, b"\x08\0" + bytes(6) + PATTERN, 1)))
    result = audit(frames, TRANSPORT)
    assert (result.verdict, result.details["esp_good"], result.details["with_pattern"]) == (Verdict.PASSED, 3, 3)


SCCRQ = bytes.fromhex("c802 0014 0000 0000 0000 0000 8008 0000 0000 0001")  # L2TP: RFC 2661, 3.1 and 4.4.1


def test_l2tp_in_esp_is_counted_and_in_clear_fails(audit: Audit) -> None:
    carried = [out(MARKER + esp(1, bare_udp(), 17)), out(MARKER + esp(2, bare_udp(data=SCCRQ), 17))]
    carried.append(back(MARKER + esp(3, udp(SCCRQ, 1701, 61001), 17)))
    carried.append(back(MARKER + esp(4, udp(SCCRQ, 4000, 4001), 17)))
    result = audit(carried, TRANSPORT)
    assert (result.verdict, result.details["esp_good"], result.details["l2tp"]) == (Verdict.PASSED, 4, 2)
    assert result.reason.startswith("4 ESP packets, all authentic, 2 of them L2TP control messages; ")
    clear = ethernet(ipv4(NAT, SERVER, 17, udp(SCCRQ, 1701, 1701)))
    result = audit([*carried, clear], TRANSPORT)
    assert result.verdict is Verdict.FAILED
    assert result.reason == f"frame 5: UDP {NAT}:1701 > {SERVER}:1701, which is no expected flow"


@pytest.mark.draft("CSUM-2")
@pytest.mark.parametrize(
    ("packet", "following", "reason"),
    [
        pytest.param(bare_udp(0x1234), 17, "inner UDP checksum is 0x1234, not 0", id="UDP checksum"),
        pytest.param(bare_udp()[:-1], 17, "inner UDP datagram is not whole", id="short datagram"),
        pytest.param(inner(), 4, "next header is 4, not TCP, UDP or ICMP", id="a packet as in tunnel mode"),
        pytest.param(bytes(20), 47, "next header is 47", id="another protocol"),
    ],
)
def test_what_transport_mode_may_not_carry(audit: Audit, packet: bytes, following: int, reason: str) -> None:
    result = audit(
        [*main_mode(), out(MARKER + esp(1, bare_udp(), 17)), out(MARKER + esp(2, packet, following))], TRANSPORT
    )
    assert result.verdict is Verdict.FAILED
    assert reason in result.reason


def test_bare_esp_in_transport_mode_keeps_its_udp_checksums(audit: Audit) -> None:
    routed = WireExpectation((SERVER, 500), frozenset({(CLIENT, 500)}), (), encapsulation="none", mode="transport")
    frame = ethernet(ipv4(CLIENT, SERVER, 50, esp(1, bare_udp(0x1234), 17)))
    assert audit([frame], routed).verdict is Verdict.PASSED


def test_transport_in_place_of_tunnel_mode_fails(audit: Audit) -> None:
    result = audit([*CLEAN, out(MARKER + esp(9, bare_udp(), 17))])
    assert (result.verdict, "not IPv4" in result.reason) == (Verdict.FAILED, True)


def fragments(frame: bytes, size: int = 96, rest_to: str = "") -> list[bytes]:
    """The packet of a frame in fragments; `rest_to` is the destination of all but the first."""
    packet, payload = frame[14:], frame[34:]
    ends = [".".join(map(str, packet[at : at + 4])) for at in (12, 16)]
    return [
        ethernet(ipv4(ends[0], rest_to if at and rest_to else ends[1], packet[9], payload[at : at + size],
                      at // 8 | (0x2000 if at + size < len(payload) else 0)))
        for at in range(0, len(payload), size)
    ]  # fmt: skip


def test_ike_and_esp_in_fragments_are_read_like_others(audit: Audit) -> None:
    frames = []
    for frame in CLEAN:
        is_large = len(frame) > 200 and frame[12:14] == b"\x08\0"
        frames += fragments(frame) if is_large else [frame]
    whole, cut = audit(CLEAN), audit(frames)
    assert len(frames) > len(CLEAN)
    assert cut.verdict is Verdict.PASSED, cut.reason
    assert cut.details["frames"].pop("fragment") > 4
    assert cut.details == whole.details, "the same messages decrypted, repeated ones included"


def overlapping(frame: bytes) -> list[bytes]:
    """A packet's fragments, the second one eight octets too early."""
    cut = fragments(frame)
    at = int.from_bytes(cut[1][20:22], "big")
    return [cut[0], cut[1][:20] + struct.pack("!H", at - 1) + cut[1][22:], *cut[2:]]


LARGE = out(MARKER + esp(1, inner(data=PATTERN * 5)))


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        pytest.param(fragments(LARGE)[:-1], "not whole", id="the last is missing"),
        pytest.param(fragments(LARGE)[1:], "not whole", id="the first is missing"),
        pytest.param([*fragments(LARGE)[:1], *fragments(LARGE)], "not whole", id="one twice"),
        pytest.param(fragments(LARGE, rest_to=CLIENT), "not whole", id="the rest to another host"),
        pytest.param(overlapping(LARGE), "not whole", id="two that overlap, and so a gap"),
        pytest.param(fragments(ethernet(inner(data=PATTERN * 9))), "no expected flow", id="plaintext in fragments"),
        pytest.param(fragments(out(esp(9, inner(data=PATTERN * 5)))), "neither ESP", id="no marker"),
    ],
)
def test_fragments_that_make_nothing_allowed(audit: Audit, cut: list[bytes], reason: str) -> None:
    result = audit([*CLEAN, *cut])
    assert result.verdict is Verdict.FAILED
    assert any(reason in violation for violation in result.details["violations"])


@pytest.mark.parametrize("method", [1, 3])
@pytest.mark.parametrize("encrypted", [False, True])
def test_aggressive_mode_is_decrypted_too(audit: Audit, method: int, encrypted: bool) -> None:
    """Its third message where it is encrypted, and Quick Mode after it, with pre-shared keys and with signatures."""
    frames = [*aggressive_mode(method, encrypted), out(MARKER + esp(1, inner()))]
    result = audit(frames)
    assert result.verdict is Verdict.PASSED, result.reason
    assert result.details["ike_encrypted"] == result.details["ike_decrypted"] == 1 + encrypted
    frames[1] = out(b"\xff")  # without the responder's public value nothing can be opened
    assert "does not open" in audit(frames).reason


def test_main_mode_with_signatures_is_decrypted_too(audit: Audit) -> None:
    result = audit([*main_mode(method=3), out(MARKER + esp(1, inner()))])
    assert (result.verdict, result.details["ike_decrypted"]) == (Verdict.PASSED, 4)
