"""Frames of a public wire for tests: IKE and ESP sealed here by hand, with the keys that open them."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from natbed.capture import CaptureSummary, Frame, write_pcap
from natbed.checks import PATTERN, CheckResult
from natbed.checks.outer import WireExpectation
from natbed.checks.wire import audit_wire

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


def esp(sequence: int, packet: bytes, following: int = 4) -> bytes:
    pad = -(len(packet) + 2) % 4
    plain = packet + bytes(range(1, pad + 1)) + bytes([pad, following])
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


def phase1_proposal(method: int) -> bytes:
    """The body of an SA payload; `method` 1 is pre-shared key, 3 RSA signatures."""
    attributes = b"".join(
        struct.pack("!HH", 0x8000 | kind, value) for kind, value in ((1, 7), (14, 128), (2, 4), (3, method), (4, 14))
    )
    transform = payload(0, struct.pack("!BBH", 1, 1, 0) + attributes)
    return struct.pack("!II", 1, 1) + payload(0, struct.pack("!BBBB", 1, 1, 0, 1) + transform)


def padded(plain: bytes) -> bytes:
    return plain + bytes(-len(plain) % 16)


def aggressive_mode(method: int, encrypted: bool) -> list[bytes]:
    """AM1 to AM3, the last one encrypted or not, and a Quick Mode's first message."""
    public_i, public_r = b"\x11" * 256, b"\x22" * 256
    sa, nonce, proof = payload(4, phase1_proposal(method)), payload(5, b"\x66" * 16), payload(0, b"\x33" * 32)
    identity = struct.pack("!BBH", 2, 0, 0) + b"client1.example"
    last = hashlib.sha256(public_i + public_r).digest()[:16]
    third = out(isakmp(8, proof, exchange=4))
    if encrypted:
        sealed = encrypt_cbc(IKE_KEY, last, padded(proof))
        last, third = sealed[-16:], out(isakmp(8, sealed, exchange=4, flags=1))
    quick_iv = hashlib.sha256(last + struct.pack("!I", 99)).digest()[:16]
    plain = payload(1, b"\x44" * 32) + payload(10, phase1_proposal(method)) + payload(0, b"\x55" * 16)
    first = isakmp(1, sa + payload(10, public_i) + nonce + payload(0, identity), exchange=4, responder=bytes(8))
    second = isakmp(1, sa + payload(10, public_r) + nonce + payload(8, identity) + proof, exchange=4)
    quick = isakmp(8, encrypt_cbc(IKE_KEY, quick_iv, padded(plain)), exchange=32, flags=1, message_id=99)
    return [out(first), back(second), third, out(quick)]


def main_mode(method: int = 1) -> list[bytes]:
    """MM1 to MM6 and a Quick Mode's first message, as far as Wireshark needs them to decrypt."""
    sa = payload(0, phase1_proposal(method))
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


def auditor(tmp_path: Path) -> Audit:
    """What audits a list of frames, with all keys of this module logged."""
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
