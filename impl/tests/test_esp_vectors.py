"""Published packets and authenticators come out of our transforms octet for octet."""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from espthrunat.esp.sa import InboundSa, OutboundSa
from espthrunat.esp.suites import AES_CBC, AES_GCM_16, HMAC_SHA2_256_128, SUITES, TRIPLE_DES_CBC, EspSuite
from espthrunat.esp.transforms import Integrity, make_transform

VECTORS = Path(__file__).parent / "vectors"


def load(name: str, key: str) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())[key]
    return vectors


def octets(vector: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(vector[name]) for name in names]


@pytest.mark.parametrize("vector", load("esp_gcm_packets.json", "packets"), ids=lambda vector: vector["packet"][:16])
def test_gcm_packets(vector: dict[str, Any]) -> None:
    key, salt, iv, plaintext, packet = octets(vector, "key", "salt", "iv", "plaintext", "packet")
    suite = EspSuite("of the vector", AES_GCM_16, len(key) * 8)
    transform = make_transform(suite, key + salt)
    assert transform.seal(packet[:8], iv, plaintext) == packet
    assert transform.open(packet) == plaintext
    inner = plaintext[: -2 - plaintext[-2]]
    spi = int.from_bytes(packet[:4], "big")
    assert InboundSa(spi, suite, key + salt, next_header=plaintext[-1]).open([packet]) == [inner]


@pytest.mark.parametrize("vector", load("esp_cbc_packets.json", "packets"), ids=lambda vector: f"case{vector['case']}")
def test_cbc_packets(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    key, iv, payload, packet = octets(vector, "key", "iv", "payload", "packet")
    suite = EspSuite("without authentication", AES_CBC, 128)
    spi, sequence = int.from_bytes(packet[:4], "big"), int.from_bytes(packet[4:8], "big")

    sender = OutboundSa(spi, suite, key, sequence=sequence - 1)
    # The IV is the first encrypted block: find the block that encrypts to the published one.
    ecb = Cipher(algorithms.AES(key), modes.ECB()).decryptor()
    seed = ecb.update(iv)
    monkeypatch.setattr(sender._transform, "seed", lambda _: seed)
    assert sender.seal([payload], vector["next_header"]) == [packet]
    assert InboundSa(spi, suite, key, next_header=vector["next_header"]).open([packet]) == [payload]


@pytest.mark.parametrize("vector", load("esp_hmac_sha256_128.json", "vectors"), ids=lambda vector: vector["case"])
def test_hmac_sha2_256_128(vector: dict[str, Any]) -> None:
    key, data, icv = octets(vector, "key", "data", "icv")
    assert Integrity(HMAC_SHA2_256_128, key).icv(data) == icv


@pytest.mark.parametrize("vector", load("esp_hmac_others.json", "vectors"), ids=lambda vector: vector["case"])
def test_other_hmacs(vector: dict[str, Any]) -> None:
    key, data, icv = octets(vector, "key", "data", "icv")
    (authenticator,) = {
        s.authenticator for s in SUITES.values() if s.authenticator and s.authenticator.hash == vector["hash"]
    }
    assert authenticator.key_octets == len(key)
    assert Integrity(authenticator, key).icv(data) == icv


def test_every_authenticator_has_published_vectors() -> None:
    published = {vector["hash"] for vector in load("esp_hmac_others.json", "vectors")} | {"sha256"}
    assert {suite.authenticator.hash for suite in SUITES.values() if suite.authenticator} == published


@pytest.mark.parametrize("vector", load("triple_des_cbc.json", "cases"), ids=lambda vector: vector["case"])
def test_triple_des_cbc(vector: dict[str, Any]) -> None:
    key, iv, plaintext, ciphertext = octets(vector, "key", "iv", "plain", "cipher")
    header = bytes(8)
    transform = make_transform(EspSuite("without authentication", TRIPLE_DES_CBC, 0), key)
    seed = Cipher(TripleDES(key), modes.ECB()).decryptor().update(iv)
    assert transform.seal(header, seed, plaintext) == header + iv + ciphertext
    assert transform.open(header + iv + ciphertext) == plaintext


@pytest.mark.parametrize(("name", "icv_octets"), [("null-md5", 12), ("null-sha1", 12), ("null-sha256", 16)])
def test_null_shows_the_packet_and_protects_it(name: str, icv_octets: int) -> None:
    suite, spi = SUITES[name], 0x01020304
    key = bytes(range(suite.keymat_octets))
    (packet,) = OutboundSa(spi, suite, key).seal([b"8 octets"])
    # 8 octets and the trailer's 2 make 10: 2 more align them to 4 (RFC 2406, 2.4)
    covered = b"\1\2\3\4" + b"\0\0\0\1" + b"8 octets" + b"\1\2" + b"\2\4"
    assert packet == covered + hmac.digest(key, covered, name.removeprefix("null-"))[:icv_octets]


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_what_was_changed_gives_no_plaintext(suite: EspSuite) -> None:
    keymat = bytes(range(suite.keymat_octets))
    (packet,) = OutboundSa(1, suite, keymat).seal([b"8 octets"])
    transform = make_transform(suite, keymat)
    assert transform.open(packet) is not None
    for position in range(len(packet)):
        assert transform.open(packet[:position] + bytes([packet[position] ^ 1]) + packet[position + 1 :]) is None
