"""What a suite says of itself is what IKE negotiates and what the wire costs."""

from __future__ import annotations

import pytest

from espthrunat.esp.sa import OutboundSa
from espthrunat.esp.suites import NULL, SUITES, EspSuite

AUTHENTICATION_KEY_OCTETS = {None: 0, 1: 16, 2: 20, 5: 32, 6: 48, 7: 64}  # RFC 2403, 2404 and 4868
every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)


@pytest.mark.parametrize(
    ("name", "transform_id", "key_bits", "authentication", "keymat_octets"),
    [
        ("aes128gcm16", 20, 128, None, 20),
        ("aes256gcm16", 20, 256, None, 36),
        ("aes128-sha256", 12, 128, 5, 48),
        ("aes256-sha256", 12, 256, 5, 64),
        ("aes128-sha1", 12, 128, 2, 36),
        ("aes256-sha1", 12, 256, 2, 52),
        ("aes128-md5", 12, 128, 1, 32),
        ("3des-sha1", 3, 0, 2, 44),
        ("3des-md5", 3, 0, 1, 40),
        ("3des-sha256", 3, 0, 5, 56),
        ("null-sha1", 11, 0, 2, 20),
        ("null-md5", 11, 0, 1, 16),
        ("null-sha256", 11, 0, 5, 32),
        ("aes256-sha384", 12, 256, 6, 80),
        ("aes256-sha512", 12, 256, 7, 96),
    ],
)
def test_what_is_negotiated(
    name: str, transform_id: int, key_bits: int, authentication: int | None, keymat_octets: int
) -> None:
    suite = SUITES[name]
    assert suite.name == name
    assert (suite.transform_id, suite.key_bits, suite.authentication) == (transform_id, key_bits, authentication)
    assert suite.keymat_octets == keymat_octets


@every_suite
def test_keymat_is_split_in_the_order_of_rfc_2409(suite: EspSuite) -> None:
    keymat = bytes(range(suite.keymat_octets))
    encryption, authentication = suite.split(keymat)
    assert encryption + authentication == keymat
    assert len(authentication) == AUTHENTICATION_KEY_OCTETS[suite.authentication]


def test_legacy_suites_are_named() -> None:
    modern = {name for name, suite in SUITES.items() if not suite.legacy}
    assert modern == {
        *("aes128gcm16", "aes256gcm16"),
        *("aes128-sha256", "aes256-sha256", "aes256-sha384", "aes256-sha512"),
    }


def test_nothing_comes_without_encryption_and_authentication() -> None:
    with pytest.raises(ValueError, match="neither encrypt nor authenticate"):
        EspSuite("null", NULL, 0)
    assert all(suite.icv_octets >= 12 for suite in SUITES.values())


@every_suite
@pytest.mark.parametrize("change", [-1, 1])
def test_keymat_of_the_wrong_length_is_refused(suite: EspSuite, change: int) -> None:
    with pytest.raises(ValueError, match=f"needs {suite.keymat_octets} octets"):
        OutboundSa(1, suite, bytes(suite.keymat_octets + change))


@pytest.mark.draft("WIRE-6")
@every_suite
def test_largest_inner_fits_and_one_octet_more_does_not(suite: EspSuite) -> None:
    sa = OutboundSa(1, suite, bytes(suite.keymat_octets))
    for room in range(100, 164):
        largest = suite.largest_inner(room)
        fits, too_large = sa.seal([bytes(largest), bytes(largest + 1)])
        assert len(fits) <= room < len(too_large)


@every_suite
def test_no_room_is_no_room(suite: EspSuite) -> None:
    assert suite.largest_inner(0) == suite.largest_inner(20) == 0
