"""The audit of the public wire passes what the draft describes, and fails everything else, each for its reason."""

from __future__ import annotations

import hashlib
import hmac
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from natbed.capture import CaptureSummary, Frame, write_pcap
from natbed.checks import PATTERN, CheckResult, Verdict
from natbed.checks.wire import WireExpectation, audit_wire

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is missing")

NAT, SERVER = "203.0.113.2", "203.0.113.18"
CLIENT, PROTECTED = "192.168.1.11", "10.99.0.1"
MARKER = bytes(8)
SPI = 0x1234ABCD
KEY, SALT = bytes(range(16)), b"\xaa\xbb\xcc\xdd"
CBC_SPI, CBC_KEY, MAC_KEY = 0x5678ABCD, bytes(range(32)), bytes(range(100, 132))
COOKIE_I, COOKIE_R = bytes(range(1, 9)), bytes(range(17, 25))
IKE_KEY = bytes(range(50, 66))
EXPECTED = WireExpectation(
    server=(SERVER, 500),
    peers=frozenset({(NAT, 500), (NAT, 337)}),
    protected=((f"{CLIENT}/32", f"{PROTECTED}/32"),),
)


def ipv4(source: str, destination: str, protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    ends = b"".join(bytes(map(int, address.split("."))) for address in (source, destination))
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, fragment, 64, protocol, 0) + ends
    checksum = 0xFFFF - sum(struct.unpack("!10H", header)) % 0xFFFF
    return header[:10] + struct.pack("!H", checksum) + header[12:] + payload


def udp(payload: bytes, source: int = 500, destination: int = 500) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def ethernet(packet: bytes, ethertype: int = 0x0800) -> bytes:
    return bytes.fromhex("020000000001 020000000002") + struct.pack("!H", ethertype) + packet


def out(payload: bytes, port: int = 500) -> bytes:
    return ethernet(ipv4(NAT, SERVER, 17, udp(payload, port, 500)))


def back(payload: bytes, port: int = 500) -> bytes:
    return ethernet(ipv4(SERVER, NAT, 17, udp(payload, 500, port)))


def inner(source: str = CLIENT, destination: str = PROTECTED, data: bytes = b"x" * 9 + PATTERN) -> bytes:
    return ipv4(source, destination, 17, udp(data, 4000, 4001))


def esp(sequence: int, packet: bytes) -> bytes:
    pad = -(len(packet) + 2) % 4
    plain = packet + bytes(range(1, pad + 1)) + bytes([pad, 4])
    header, iv = struct.pack("!II", SPI, sequence), struct.pack("!Q", sequence)
    return header + iv + AESGCM(KEY).encrypt(SALT + iv, plain, header)


def esp_cbc(sequence: int, packet: bytes) -> bytes:
    pad = -(len(packet) + 2) % 16
    plain = packet + bytes(range(1, pad + 1)) + bytes([pad, 4])
    iv = hashlib.sha256(bytes([sequence])).digest()[:16]
    sealed = struct.pack("!II", CBC_SPI, sequence) + iv + encrypt_cbc(CBC_KEY, iv, plain)
    return sealed + hmac.digest(MAC_KEY, sealed, "sha256")[:16]


def encrypt_cbc(key: bytes, iv: bytes, plain: bytes) -> bytes:
    encryptor = Cipher(AES(key), CBC(iv)).encryptor()
    return encryptor.update(plain) + encryptor.finalize()


def isakmp(
    first: int, body: bytes, *, exchange: int = 2, flags: int = 0, message_id: int = 0, responder: bytes = COOKIE_R
) -> bytes:
    return (
        struct.pack("!8s8sBBBBII", COOKIE_I, responder, first, 0x10, exchange, flags, message_id, 28 + len(body)) + body
    )


def payload(following: int, body: bytes) -> bytes:
    return struct.pack("!BBH", following, 0, 4 + len(body)) + body


def main_mode() -> list[bytes]:
    """MM1 to MM6 and a Quick Mode's first message, as far as Wireshark needs them to decrypt."""
    attributes = b"".join(
        struct.pack("!HH", 0x8000 | kind, value) for kind, value in ((1, 7), (14, 128), (2, 4), (3, 1), (4, 14))
    )
    transform = payload(0, struct.pack("!BBH", 1, 1, 0) + attributes)
    proposal = payload(0, struct.pack("!BBBB", 1, 1, 0, 1) + transform)
    sa = payload(0, struct.pack("!II", 1, 1) + proposal)
    public_i, public_r = b"\x11" * 256, b"\x22" * 256
    iv = hashlib.sha256(public_i + public_r).digest()[:16]
    identity = payload(8, struct.pack("!BBH", 2, 0, 0) + b"client1.example")
    plain = identity + payload(0, b"\x33" * 32)
    fifth = encrypt_cbc(IKE_KEY, iv, plain + bytes(-len(plain) % 16))
    sixth = encrypt_cbc(IKE_KEY, fifth[-16:], plain + bytes(-len(plain) % 16))
    quick_iv = hashlib.sha256(sixth[-16:] + struct.pack("!I", 99)).digest()[:16]
    plain = payload(1, b"\x44" * 32) + payload(10, sa[4:]) + payload(0, b"\x55" * 16)
    quick = encrypt_cbc(IKE_KEY, quick_iv, plain + bytes(-len(plain) % 16))
    plain = payload(0, b"\x46" * 32)
    quick3 = encrypt_cbc(IKE_KEY, quick[-16:], plain + bytes(-len(plain) % 16))
    fifth_frame = out(isakmp(5, fifth, flags=1))
    return [
        out(isakmp(1, sa, responder=bytes(8))),
        back(isakmp(1, sa)),
        out(isakmp(4, payload(10, public_i) + payload(0, b"\x66" * 16))),
        back(isakmp(4, payload(10, public_r) + payload(0, b"\x77" * 16))),
        fifth_frame,
        back(isakmp(5, sixth, flags=1)),
        fifth_frame,  # sent again, after its answer got lost
        out(isakmp(8, quick, exchange=32, flags=1, message_id=99)),
        out(isakmp(8, quick, exchange=32, flags=1, message_id=99)),
        out(isakmp(8, quick3, exchange=32, flags=1, message_id=99)),
    ]


ROUTER_SOLICITATION = ethernet(
    struct.pack("!IHBB", 6 << 28, 8, 58, 255)
    + bytes.fromhex("fe80000000000000 0000000000000001 ff02000000000000 0000000000000002")
    + b"\x85" + bytes(7),
    0x86DD,
)  # fmt: skip
CLEAN = [
    ethernet(bytes(28), 0x0806),
    ROUTER_SOLICITATION,
    *main_mode(),
    out(MARKER + esp(1, inner())),
    out(MARKER + esp(2, inner()), port=337),
    back(MARKER + esp(3, inner(PROTECTED, CLIENT, b"answer"))),
    back(MARKER + esp_cbc(4, inner(PROTECTED, CLIENT)), port=337),
    out(b"\xff", port=337),
]
Audit = Callable[..., CheckResult]


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    log = tmp_path / "keys"
    log.mkdir()
    (log / "esp_sa").write_text(
        f'"IPv4","*","*","{SPI:#010x}","AES-GCM with 16 octet ICV [RFC4106]","0x{(KEY + SALT).hex()}","NULL",""\n'
        f'"IPv4","*","*","{CBC_SPI:#010x}","AES-CBC [RFC3602]","0x{CBC_KEY.hex()}",'
        f'"HMAC-SHA-256-128 [RFC4868]","0x{MAC_KEY.hex()}"\n'
    )
    (log / "ikev1_decryption_table").write_text(f"{COOKIE_I.hex()},{IKE_KEY.hex()}\n")

    def run(
        frames: list[bytes],
        expected: WireExpectation = EXPECTED,
        summary: CaptureSummary | None = None,
        keys: bool = True,
    ) -> CheckResult:
        capture = tmp_path / "wire.pcap"
        write_pcap(capture, [Frame(n + 1, n * 1000, data, False) for n, data in enumerate(frames)])
        logs = [log, log] if keys else []  # both ends log the same keys
        return audit_wire(capture, logs, expected, profile=tmp_path / "wireshark", summary=summary)

    return run


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
        pytest.param(out(MARKER + struct.pack("!II", 777, 1) + bytes(64)), "no logged key fits", id="unknown SPI"),
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
