"""IKEv1's keys, hashes and IVs: NIST's and NSS's vectors, and RFC 2409's formulas written out a second time."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from espthrunat.ike import keying
from espthrunat.ike.keying import HASHES, HashAlgorithm, IkeCipher, Skeyids

VECTORS = Path(__file__).parent / "vectors"
MD5, SHA1, SHA256 = HashAlgorithm.MD5, HashAlgorithm.SHA1, HashAlgorithm.SHA256
CKY_I, CKY_R = bytes.fromhex("1111111111111111"), bytes.fromhex("2222222222222222")
G_XI, G_XR, SAI_B, IDII_B, IDIR_B = b"initiator public", b"responder public", b"offer", b"initiator", b"responder"
NI_B, NR_B = b"nonce of initiator", b"nonce of responder"


def cases(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())["cases"]
    assert loaded
    return loaded


def hash_of(case: dict[str, Any]) -> str:
    return str(case["hash"])


def by_formula(algorithm: HashAlgorithm, key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(parts), algorithm.text).digest()


@pytest.mark.parametrize("case", cases("ikev1_skeyid_psk.json"), ids=hash_of)
def test_skeyid_of_a_pre_shared_key(case: dict[str, Any]) -> None:
    psk, ni, nr = (bytes.fromhex(case[name]) for name in ("psk", "ni", "nr"))
    assert keying.skeyid_psk(HASHES[case["hash"]], psk, ni, nr).hex() == case["skeyid_psk"]


@pytest.mark.parametrize("case", cases("ikev1_skeyid_psk.json") + cases("ikev1_skeyid_sha512.json"), ids=hash_of)
def test_what_skeyid_makes(case: dict[str, Any]) -> None:
    arguments = (bytes.fromhex(case[name]) for name in ("skeyid", "g_xy", "cky_i", "cky_r"))
    skeyids = keying.derive(HASHES[case["hash"]], *arguments)
    assert (skeyids.d.hex(), skeyids.a.hex(), skeyids.e.hex()) == (
        case["skeyid_d"],
        case["skeyid_a"],
        case["skeyid_e"],
    )


@pytest.mark.parametrize("case", cases("ikev1_hash_r.json"), ids=hash_of)
def test_hash_r_of_exchanges_with_a_known_key(case: dict[str, Any]) -> None:
    algorithm = HASHES[case["hash"]]
    psk, ni_b, nr_b = (bytes.fromhex(case[name]) for name in ("psk", "ni_b", "nr_b"))
    arguments = [bytes.fromhex(case[name]) for name in ("g_xi", "g_xr", "cky_i", "cky_r", "sai_b", "idir_b")]
    skeyid = keying.skeyid_psk(algorithm, psk, ni_b, nr_b)
    assert keying.hash_r(algorithm, skeyid, *arguments).hex() == case["hash_r"]
    assert keying.hash_i(algorithm, skeyid, *arguments).hex() != case["hash_r"]


def test_every_hash_has_published_vectors() -> None:
    names = ("ikev1_skeyid_psk.json", "ikev1_skeyid_sha512.json", "ikev1_hash_r.json")
    assert {hash_of(case) for name in names for case in cases(name)} == set(HASHES)


def test_what_skeyid_makes_with_md5() -> None:  # of which no vectors are known
    seed = (b"\0g^xy", CKY_I, CKY_R)
    d = by_formula(MD5, b"skeyid", *seed, b"\0")
    a = by_formula(MD5, b"skeyid", d, *seed, b"\1")
    e = by_formula(MD5, b"skeyid", a, *seed, b"\2")
    assert keying.derive(MD5, b"skeyid", *seed) == Skeyids(d, a, e)


@pytest.mark.parametrize("case", cases("ikev1_expansion.json"), ids=hash_of)
def test_a_cipher_key_longer_than_skeyid_e_is_expanded(case: dict[str, Any]) -> None:
    algorithm, skeyid_e, expected = HASHES[case["hash"]], bytes.fromhex(case["key"]), bytes.fromhex(case["appendix_b"])
    for octets in (len(skeyid_e) + 1, 2 * len(skeyid_e), len(expected)):
        assert keying.cipher_key(algorithm, skeyid_e, octets) == expected[:octets]


@pytest.mark.parametrize("case", cases("ikev1_expansion.json"), ids=hash_of)
def test_a_shorter_cipher_key_is_the_beginning_of_skeyid_e(case: dict[str, Any]) -> None:
    algorithm, skeyid_e = HASHES[case["hash"]], bytes.fromhex(case["key"])
    for octets in (15, 16, len(skeyid_e)):
        assert keying.cipher_key(algorithm, skeyid_e, octets) == skeyid_e[:octets]


def test_aes_256_with_sha1_takes_the_expansion() -> None:
    skeyid_e = bytes(range(20))
    k1 = by_formula(SHA1, skeyid_e, b"\0")
    assert keying.cipher_key(SHA1, skeyid_e, 32) == (k1 + by_formula(SHA1, skeyid_e, k1))[:32]


@pytest.mark.parametrize("algorithm", [MD5, SHA1])
def test_3des_with_a_short_hash_takes_the_expansion(algorithm: HashAlgorithm) -> None:
    skeyid_e = bytes(range(algorithm.octets))
    k1 = by_formula(algorithm, skeyid_e, b"\0")
    expected = (k1 + by_formula(algorithm, skeyid_e, k1))[:24]
    assert keying.cipher_key(algorithm, skeyid_e, IkeCipher.TRIPLE_DES_CBC.key_octets(0)) == expected


def test_3des_with_sha1_takes_the_published_expansion() -> None:
    (case,) = (case for case in cases("ikev1_expansion.json") if case["hash"] == "sha1")
    key = keying.cipher_key(SHA1, bytes.fromhex(case["key"]), IkeCipher.TRIPLE_DES_CBC.key_octets(0))
    assert key.hex() == case["appendix_b"][:48]


@pytest.mark.parametrize("algorithm", [SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512])
def test_3des_with_a_long_hash_takes_the_beginning_of_skeyid_e(algorithm: HashAlgorithm) -> None:
    skeyid_e = bytes(range(algorithm.octets))
    assert keying.cipher_key(algorithm, skeyid_e, IkeCipher.TRIPLE_DES_CBC.key_octets(0)) == skeyid_e[:24]


@pytest.mark.parametrize("case", cases("ikev1_expansion.json"), ids=hash_of)
def test_keymat_of_any_length(case: dict[str, Any]) -> None:
    expected = bytes.fromhex(case["quick"])
    for octets in (15, 20, 36, len(expected)):  # the vector's seed is one zero octet: protocol 0, and nothing else
        material = keying.keymat(HASHES[case["hash"]], bytes.fromhex(case["key"]), 0, b"", b"", b"", octets)
        assert material == expected[:octets]


@pytest.mark.parametrize("g_xy_qm", [b"", b"\0quick mode secret"], ids=["no-pfs", "pfs"])
def test_keymat_mixes_in_all_that_rfc_2409_names(g_xy_qm: bytes) -> None:
    skeyid_d, spi = b"skeyid_d", bytes.fromhex("c0ffee01")
    seed = (g_xy_qm, b"\x03", spi, NI_B, NR_B)
    k1 = by_formula(SHA256, skeyid_d, *seed)
    k2 = by_formula(SHA256, skeyid_d, k1, *seed)
    k3 = by_formula(SHA256, skeyid_d, k2, *seed)
    assert keying.keymat(SHA256, skeyid_d, 3, spi, NI_B, NR_B, 80, g_xy_qm) == (k1 + k2 + k3)[:80]


def test_the_two_directions_have_different_keys() -> None:
    one, other = (keying.keymat(SHA256, b"d", 3, spi, NI_B, NR_B, 36) for spi in (b"\0\0\1\0", b"\0\0\1\1"))
    assert one != other


def test_phase_1_hashes() -> None:
    arguments = (G_XI, G_XR, CKY_I, CKY_R, SAI_B)
    assert keying.hash_i(SHA256, b"skeyid", *arguments, IDII_B) == by_formula(
        SHA256, b"skeyid", G_XI, G_XR, CKY_I, CKY_R, SAI_B, IDII_B
    )
    assert keying.hash_r(SHA256, b"skeyid", *arguments, IDIR_B) == by_formula(
        SHA256, b"skeyid", G_XR, G_XI, CKY_R, CKY_I, SAI_B, IDIR_B
    )


def test_a_reflected_hash_does_not_authenticate() -> None:
    arguments = (G_XI, G_XR, CKY_I, CKY_R, SAI_B, IDII_B)
    assert keying.hash_i(SHA1, b"skeyid", *arguments) != keying.hash_r(SHA1, b"skeyid", *arguments)


def test_quick_mode_hashes() -> None:
    message_id, wire = 0x80000001, bytes.fromhex("80000001")
    assert keying.quick_hash1(SHA1, b"a", message_id, b"rest") == by_formula(SHA1, b"a", wire, b"rest")
    assert keying.informational_hash(SHA1, b"a", message_id, b"rest") == by_formula(SHA1, b"a", wire, b"rest")
    assert keying.quick_hash2(SHA1, b"a", message_id, NI_B, b"rest") == by_formula(SHA1, b"a", wire, NI_B, b"rest")
    assert keying.quick_hash3(SHA1, b"a", message_id, NI_B, NR_B) == by_formula(SHA1, b"a", b"\0", wire, NI_B, NR_B)


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_initialisation_vectors(algorithm: HashAlgorithm) -> None:
    first = keying.phase1_iv(algorithm, G_XI, G_XR)
    assert first == hashlib.new(algorithm.text, G_XI + G_XR).digest()[:16]
    assert keying.phase1_iv(algorithm, G_XI, G_XR, block=8) == first[:8]
    later = keying.phase2_iv(algorithm, first, 0x01020304)
    assert later == hashlib.new(algorithm.text, first + b"\1\2\3\4").digest()[:16]
    of_3des = keying.phase2_iv(algorithm, first[:8], 0x01020304)
    assert of_3des == hashlib.new(algorithm.text, first[:8] + b"\1\2\3\4").digest()[:8]


def test_a_message_id_of_more_than_32_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        keying.quick_hash1(SHA1, b"a", 1 << 32, b"")


def test_numbers_and_names_are_those_of_the_hash_algorithm_attribute() -> None:
    assert {a.text: (a.value, a.octets) for a in HashAlgorithm} == {
        "md5": (1, 16),
        "sha1": (2, 20),
        "sha256": (4, 32),
        "sha384": (5, 48),
        "sha512": (6, 64),
    }
    assert all(hashlib.new(name).digest_size == algorithm.octets for name, algorithm in HASHES.items())
    assert {algorithm for algorithm in HashAlgorithm if algorithm.legacy} == {MD5, SHA1}


def test_no_repr_shows_a_key() -> None:
    shown = repr(Skeyids(d=b"secret-d", a=b"secret-a", e=b"secret-e"))
    assert "secret" not in shown


def test_importing_it_loads_no_cryptography_package() -> None:
    code = "import sys, espthrunat.ike.keying, espthrunat.ike.groups; sys.exit('cryptography' in sys.modules)"
    root = str(Path(keying.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, env={"PYTHONPATH": root})
