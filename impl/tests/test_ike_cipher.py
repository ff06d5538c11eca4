"""The ciphers of phase 1: 3DES-CBC against NIST's vectors, and what keeps one cipher's keys from another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espthrunat.ike import keying
from espthrunat.ike.keying import IkeCipher

VECTORS = Path(__file__).parent / "vectors"
AES, TRIPLE_DES = IkeCipher.AES_CBC, IkeCipher.TRIPLE_DES_CBC
CASES: list[dict[str, Any]] = json.loads((VECTORS / "triple_des_cbc.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_cipher_is_the_triple_des_cbc_of_nist(case: dict[str, Any]) -> None:
    key, iv, plain, cipher = (bytes.fromhex(case[part]) for part in ("key", "iv", "plain", "cipher"))
    assert keying.encrypt(key, iv, plain, TRIPLE_DES) == cipher
    assert keying.decrypt(key, iv, cipher, cipher=TRIPLE_DES) == plain


def test_the_next_iv_is_the_last_block_of_8_octets() -> None:
    key, iv, plain, cipher = (bytes.fromhex(CASES[3][part]) for part in ("key", "iv", "plain", "cipher"))
    head = keying.encrypt(key, iv, plain[:16], TRIPLE_DES)
    assert head + keying.encrypt(key, head[-8:], plain[16:], TRIPLE_DES) == cipher


def test_without_a_cipher_it_is_aes() -> None:
    key, iv = bytes(range(24)), bytes(16)
    ciphertext = keying.encrypt(key, iv, b"sixteen octets !")
    assert ciphertext == keying.encrypt(key, iv, b"sixteen octets !", AES)
    assert keying.decrypt(key, iv, ciphertext) == b"sixteen octets !"


@pytest.mark.parametrize("octets", [0, 8, 16, 23, 25, 32])
def test_a_3des_key_has_24_octets(octets: int) -> None:
    for work in (keying.encrypt, keying.decrypt):
        with pytest.raises(ValueError, match="24 octets"):
            work(bytes(octets), bytes(8), bytes(8), TRIPLE_DES)


@pytest.mark.parametrize("cipher", IkeCipher)
def test_an_iv_of_another_length_is_refused(cipher: IkeCipher) -> None:
    for octets in (0, cipher.block_octets - 1, 24 - cipher.block_octets):
        with pytest.raises(ValueError, match=r"[Ii]nvalid IV size"):
            keying.encrypt(bytes(24), bytes(octets), bytes(16), cipher)


@pytest.mark.parametrize("length", [1, 7, 9, 20])
def test_broken_blocks_of_3des_are_a_value_error(length: int) -> None:
    for work in (keying.encrypt, keying.decrypt):
        with pytest.raises(ValueError, match="block length"):
            work(bytes(24), bytes(8), bytes(length), TRIPLE_DES)


def test_numbers_and_lengths_are_those_of_the_encryption_algorithm_attribute() -> None:
    assert {c.text: (c.value, c.block_octets, c.key_octets(256), c.legacy) for c in IkeCipher} == {
        "3des": (5, 8, 24, True),
        "aes": (7, 16, 32, False),
    }
