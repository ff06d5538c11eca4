"""SA payloads of Quick Mode: which attributes each suite has on the wire, and how a peer's are read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from espthrunat.esp.suites import SUITES, EspSuite
from espthrunat.ike.esp_offers import EspChoice, EspOffer, choose_esp, offer_esp, offered_modes
from espthrunat.ike.lifetime import Lifetime
from espthrunat.ike.nat_traversal import EspThruNat
from espthrunat.messages import Encapsulation, Mode
from espthrunat.wire.payloads import SecurityAssociation
from espthrunat.wire.proposal import Attribute, Phase2Attribute, Transform

METHOD = EspThruNat()
SPI = b"\x11\x22\x33\x44"
KEY_LENGTH = Phase2Attribute.KEY_LENGTH


def offered(suite: EspSuite, mode: Mode = Mode.TUNNEL) -> SecurityAssociation:
    offer = EspOffer(suite, mode, Encapsulation.UDP, None)
    return offer_esp([offer], SPI, Lifetime(3600), METHOD)


def transform_of(sa: SecurityAssociation) -> Transform:
    return sa.proposals[0].transforms[0]


def with_key_length(sa: SecurityAssociation, bits: int | None) -> SecurityAssociation:
    kept = tuple(a for a in transform_of(sa).attributes if a.type != KEY_LENGTH)
    if bits is not None:
        kept = (*kept, Attribute(KEY_LENGTH, bits))
    transform = replace(transform_of(sa), attributes=kept)
    return SecurityAssociation((replace(sa.proposals[0], transforms=(transform,)),))


def choose(sa: SecurityAssociation, *suites: EspSuite) -> EspChoice | str:
    return choose_esp(sa, suites, METHOD, lambda _offer: "")


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("name", list(SUITES))
def test_every_suite_is_read_as_what_was_offered(name: str, mode: Mode) -> None:
    chosen = choose(offered(SUITES[name], mode), *SUITES.values())
    assert isinstance(chosen, EspChoice)
    assert chosen.offer == EspOffer(SUITES[name], mode, Encapsulation.UDP, None)
    assert chosen.lifetime == Lifetime(3600)
    assert chosen.proposal.spi == SPI


@pytest.mark.parametrize("name", list(SUITES))
def test_a_key_length_is_named_where_the_cipher_has_a_choice(name: str) -> None:
    assert transform_of(offered(SUITES[name])).attribute(KEY_LENGTH) == (SUITES[name].key_bits or None)


@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if suite.key_bits == 0])
def test_a_cipher_without_a_choice_has_no_key_length(name: str) -> None:
    suite = SUITES[name]
    assert KEY_LENGTH not in [a.type for a in transform_of(offered(suite)).attributes]
    assert isinstance(choose(with_key_length(offered(suite), 192), *SUITES.values()), str)


def test_some_cipher_has_no_key_length() -> None:
    assert {"3des-sha1", "null-sha1"} <= {name for name, suite in SUITES.items() if suite.key_bits == 0}


def test_aes_without_key_length_has_128_bits() -> None:
    bare = with_key_length(offered(SUITES["aes256-sha256"]), None)
    chosen = choose(bare, SUITES["aes256-sha256"], SUITES["aes128-sha256"])
    assert isinstance(chosen, EspChoice)
    assert chosen.offer.suite.name == "aes128-sha256"
    assert isinstance(choose(bare, SUITES["aes256-sha256"]), str)


@pytest.mark.parametrize("bits", [192, 256, 1])
def test_another_key_length_is_another_suite(bits: int) -> None:
    assert isinstance(choose(with_key_length(offered(SUITES["aes128-sha256"]), bits), SUITES["aes128-sha256"]), str)


def test_the_modes_of_an_offer() -> None:
    both = (*offered(SUITES["aes128gcm16"]).proposals, *offered(SUITES["aes128gcm16"], Mode.TRANSPORT).proposals)
    assert offered_modes(SecurityAssociation(both), METHOD) == set(Mode)
    assert offered_modes(offered(SUITES["aes128gcm16"], Mode.TRANSPORT), METHOD) == {Mode.TRANSPORT}
    assert not offered_modes(SecurityAssociation(()), METHOD)
