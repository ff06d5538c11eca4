"""The audit of the public wire passes what the draft describes, and fails everything else, each for its reason."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from wire_world import (
    CLEAN,
    CLIENT,
    COOKIE_I,
    EXPECTED,
    MARKER,
    NAT,
    PROTECTED,
    SERVER,
    SPI,
    Audit,
    auditor,
    esp,
    esp_cbc,
    ethernet,
    inner,
    ipv4,
    isakmp,
    main_mode,
    out,
    payload,
    udp,
)

from natbed.capture import CaptureSummary, Frame, write_pcap
from natbed.checks import PATTERN, CheckResult, Verdict
from natbed.checks.flows import random_with_pattern
from natbed.checks.outer import WireExpectation
from natbed.checks.wire import audit_wire, merge_segments

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is missing")


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    return auditor(tmp_path)


def test_clean_wire_passes(audit: Audit) -> None:
    result = audit(CLEAN)
    assert (result.verdict, result.details["violations"]) == (Verdict.PASSED, [])
    assert result.details["esp_good"] == 4
    assert result.details["with_pattern"] == 3
    assert result.details["frames"] == {"arp": 1, "link icmpv6": 1, "ike": 10, "esp": 4, "keepalive": 1}
    assert (result.details["ike_encrypted"], result.details["ike_decrypted"]) == (4, 4)


WRONG_ICV = bytearray(out(MARKER + esp(9, inner())))
WRONG_ICV[-1] ^= 1
DAMAGED_MARKER = b"\0\0\0\1\0\0\0\0"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(ethernet(inner()), "no expected flow", id="plaintext packet"),
        pytest.param(ethernet(PATTERN, 0x88B5), "ethertype 0x88b5", id="foreign ethertype"),
        pytest.param(out(b"\0" * 7 + b"\1" + esp(9, inner())), "neither ESP", id="damaged marker"),
        pytest.param(out(DAMAGED_MARKER + esp(9, inner())), "neither ESP", id="damaged marker, first half"),
        pytest.param(out(esp(9, inner())), "neither ESP behind its marker", id="no marker"),
        pytest.param(bytes(WRONG_ICV), "wrong ICV", id="wrong ICV"),
        pytest.param(out(MARKER + esp(9, inner()), port=4500), "UDP 203.0.113.2:4500 >", id="foreign port"),
        pytest.param(ethernet(ipv4(NAT, SERVER, 1, b"\x08\0\xf7\xff\0\0\0\0")), "ICMP 203.0.113.2", id="ICMP"),
        pytest.param(ethernet(ipv4(NAT, SERVER, 6, bytes(20))), "TCP", id="TCP"),
        pytest.param(ethernet(ipv4(NAT, SERVER, 50, esp(9, inner()))), "bare ESP", id="bare ESP"),
        pytest.param(ethernet(ipv4(NAT, SERVER, 17, bytes(64), 8)), "IP fragment", id="fragment without its first"),
        pytest.param(out(MARKER + esp(9, inner("10.1.1.1"))), "inner packet 10.1.1.1", id="unprotected inner address"),
        pytest.param(out(MARKER + esp(9, inner(PROTECTED, CLIENT))), "no tunnel protects", id="inner wrong way round"),
        pytest.param(out(MARKER + struct.pack("!II", 777, 1) + bytes(64)), "whose key nobody logged", id="unknown SPI"),
        pytest.param(
            out(MARKER + struct.pack("!II", SPI, 9) + bytes(9)), "key does not open", id="ESP with nothing in it"
        ),
        pytest.param(out(isakmp(1, payload(0, bytes(3)))), "malformed", id="malformed IKE"),
        pytest.param(
            out(isakmp(130, payload(0, PATTERN))), "the plaintext pattern in clear", id="pattern inside an IKE payload"
        ),
    ],
)
def test_one_wrong_frame_fails(audit: Audit, frame: bytes, reason: str) -> None:
    result = audit([*CLEAN, frame])
    assert result.verdict is Verdict.FAILED
    assert reason in result.reason
    assert f"frame {len(CLEAN) + 1}:" in result.reason


def test_plaintext_pattern_is_named_even_in_an_allowed_frame(audit: Audit) -> None:
    result = audit([*CLEAN, ethernet(inner())])
    assert any("pattern in clear" in violation for violation in result.details["violations"])


def test_no_esp_at_all_fails(audit: Audit) -> None:
    result = audit(main_mode())
    assert (result.verdict, result.reason) == (Verdict.FAILED, "no ESP packet was on the wire")


def test_ike_that_its_key_does_not_open_fails(audit: Audit) -> None:
    late = [frame for frame in CLEAN if frame not in main_mode()[:4]]  # without MM1 to MM4 nothing can be decrypted
    result = audit(late)
    assert result.verdict is Verdict.FAILED
    assert COOKIE_I.hex() in result.reason


def test_bare_esp_is_judged_on_a_routed_wire(audit: Audit) -> None:
    routed = WireExpectation(
        server=(SERVER, 500),
        peers=frozenset({(CLIENT, 500)}),
        protected=((f"{CLIENT}/32", "10.99.0.0/24"),),
        encapsulation="none",
    )
    bare = [
        ethernet(ipv4(CLIENT, SERVER, 50, esp(1, inner()))),
        ethernet(ipv4(SERVER, CLIENT, 50, esp_cbc(2, inner(PROTECTED, CLIENT)))),
    ]
    assert audit(bare, routed).verdict is Verdict.PASSED
    in_udp = ethernet(ipv4(CLIENT, SERVER, 17, udp(MARKER + esp(3, inner()))))
    assert "bare ESP was expected" in audit([*bare, in_udp], routed).reason


def test_responder_on_another_port(audit: Audit) -> None:
    expected = WireExpectation(server=(SERVER, 4000), peers=frozenset({(NAT, 1025)}), protected=EXPECTED.protected)
    frame = ethernet(ipv4(NAT, SERVER, 17, udp(MARKER + esp(1, inner()), 1025, 4000)))
    assert audit([frame], expected).verdict is Verdict.PASSED


@pytest.mark.parametrize("port", [7, 19, 53, 69, 111, 123, 138, 161, 427, 514])
def test_a_mapped_port_that_tshark_knows_for_something_else(audit: Audit, port: int) -> None:
    """Linux maps port 500 to any other below 512, DNS's included."""
    expected = WireExpectation(server=(SERVER, 500), peers=frozenset({(NAT, port)}), protected=EXPECTED.protected)
    frames = [out(MARKER + esp(n, inner()), port) for n in range(1, 4)]
    assert audit(frames, expected).reason.startswith("3 ESP packets, all authentic")


def test_inner_packets_that_tshark_takes_for_something_else(audit: Audit) -> None:
    """Flows have any port of 32768 to 60999, and random octets make no sense to the protocols that live there."""
    data = random_with_pattern(300)
    frames = []
    for port in (37008, 44818, 47000, 54328):
        packet = ipv4(CLIENT, PROTECTED, 17, udp(data, 40000, port))
        frames += [out(MARKER + esp(port, packet)), ethernet(ipv4(NAT, SERVER, 50, esp(port, packet)))]
    assert audit(frames[::2]).reason.startswith("4 ESP packets, all authentic")
    bare = WireExpectation(EXPECTED.server, EXPECTED.peers, EXPECTED.protected, encapsulation="none")
    assert audit(frames[1::2], bare).reason.startswith("4 ESP packets, all authentic")


def test_evidence_that_proves_nothing_is_a_broken_lab(audit: Audit) -> None:
    no_pattern = audit([out(MARKER + esp(1, inner(data=b"something else")))])
    assert (no_pattern.verdict, "pattern" in no_pattern.reason) == (Verdict.LAB_BROKEN, True)
    lossy = audit(CLEAN, summary=CaptureSummary("wire.pcap", len(CLEAN), 3, False))
    assert (lossy.verdict, "3 packets" in lossy.reason) == (Verdict.LAB_BROKEN, True)
    no_keys = audit(CLEAN, keys=False)
    assert (no_keys.verdict, "no ESP keys" in no_keys.reason) == (Verdict.LAB_BROKEN, True)


def test_a_sample_is_called_one(audit: Audit) -> None:
    result = audit(CLEAN, summary=CaptureSummary("wire.pcap", len(CLEAN), 0, True))
    assert (result.verdict, "up to its limit" in result.reason) == (Verdict.PASSED, True)
    assert "limit" not in audit(CLEAN).reason


def test_a_key_line_that_wireshark_refuses_is_a_broken_lab(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "keys" / "esp_sa").write_text('"IPv4","*","*","0x1","No such cipher","0x00","NULL",""\n')
    result = audit(CLEAN)
    assert result.verdict is Verdict.LAB_BROKEN
    assert "No such cipher" in result.reason or "esp_sa" in result.reason


def test_a_capture_cut_short_is_a_broken_lab(tmp_path: Path) -> None:
    capture = tmp_path / "wire.pcap"
    write_pcap(capture, [Frame(1, 0, CLEAN[0], False)])
    capture.write_bytes(capture.read_bytes()[:-1])
    result = audit_wire(capture, [], EXPECTED, profile=tmp_path / "wireshark")
    assert (result.verdict, "ends inside frame 1" in result.reason) == (Verdict.LAB_BROKEN, True)


def test_the_worst_of_several_segments_decides_and_is_named() -> None:
    def result(verdict: Verdict, reason: str) -> CheckResult:
        return CheckResult(name="wire", verdict=verdict, reason=reason, details={"spis": [reason]})

    good, bad = result(Verdict.PASSED, "all authentic"), result(Verdict.FAILED, "frame 9: ICMP")
    blind = result(Verdict.LAB_BROKEN, "no keys")
    merged = merge_segments({"nat": good, "server": bad, "nat2": blind})
    assert (merged.verdict, merged.reason) == (Verdict.FAILED, "at server: frame 9: ICMP")
    assert merged.details["segments"]["nat"] == {"verdict": Verdict.PASSED, "reason": "all authentic"}
    assert merge_segments({"nat": bad, "server": good}).reason == "frame 9: ICMP"
    assert merge_segments({"nat": good, "nat2": blind}).verdict is Verdict.LAB_BROKEN
    assert merge_segments({"nat": good, "server": good}).reason == "all authentic"
