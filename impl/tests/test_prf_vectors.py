"""The prf and the cipher of phase 1 against the vectors of their RFCs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espthrunat.ike import keying
from espthrunat.ike.keying import HASHES

VECTORS = Path(__file__).parent / "vectors"
HMACS = ("prf_hmac_md5.json", "prf_hmac_sha1.json", "prf_hmac_sha2.json")


def cases(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())["cases"]
    assert loaded
    return loaded


def name_of(case: dict[str, Any]) -> str:
    return f"{case.get('hash', 'aes')}-{case['case']}"


@pytest.mark.parametrize("case", [case for name in HMACS for case in cases(name)], ids=name_of)
def test_prf_is_the_hmac_of_rfc_2202_and_rfc_4231(case: dict[str, Any]) -> None:
    digest = keying.prf(HASHES[case["hash"]], bytes.fromhex(case["key"]), bytes.fromhex(case["data"]))
    assert digest.hex() == case["digest"]
    assert len(digest) == HASHES[case["hash"]].octets


def test_every_hash_has_published_vectors() -> None:
    assert {case["hash"] for name in HMACS for case in cases(name)} == set(HASHES)


@pytest.mark.parametrize("case", cases("ikev1_aes_cbc.json"), ids=name_of)
def test_cipher_is_the_aes_cbc_of_rfc_3602(case: dict[str, Any]) -> None:
    key, iv = bytes.fromhex(case["key"]), bytes.fromhex(case["iv"])
    assert keying.encrypt(key, iv, bytes.fromhex(case["plain"])).hex() == case["cipher"]
    assert keying.decrypt(key, iv, bytes.fromhex(case["cipher"])).hex() == case["plain"]


def test_the_next_iv_is_the_last_block() -> None:
    case = cases("ikev1_aes_cbc.json")[3]
    key, iv, plain = (bytes.fromhex(case[part]) for part in ("key", "iv", "plain"))
    head = keying.encrypt(key, iv, plain[:32])
    tail = keying.encrypt(key, head[-16:], plain[32:])
    assert (head + tail).hex() == case["cipher"]


@pytest.mark.parametrize("octets", [16, 24, 32])
def test_every_aes_key_length_works(octets: int) -> None:
    ciphertext = keying.encrypt(bytes(octets), bytes(16), b"sixteen octets !")
    assert len(ciphertext) == 16
    assert keying.decrypt(bytes(octets), bytes(16), ciphertext) == b"sixteen octets !"


@pytest.mark.parametrize("length", [1, 15, 17, 31])
def test_broken_blocks_are_a_value_error(length: int) -> None:
    with pytest.raises(ValueError, match="block length"):
        keying.decrypt(bytes(16), bytes(16), bytes(length))
    with pytest.raises(ValueError, match="block length"):
        keying.encrypt(bytes(16), bytes(16), bytes(length))
