"""Published packets and authenticators come out of our transforms octet for octet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from espthrunat.esp.sa import InboundSa, OutboundSa
from espthrunat.esp.suites import AES_CBC, AES_GCM_16, SUITES, EspSuite
from espthrunat.esp.transforms import CbcHmac, make_transform

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
    assert CbcHmac(SUITES["aes128-sha256"], bytes(16), key)._icv(data) == icv
