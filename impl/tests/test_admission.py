"""What strangers may cost: a bounded table, a rate for each address, and never more out than in (the draft, 6.2, 7)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ike_world import CLIENT, INITIATOR, RESPONDER, SERVER, RepeatableEntropy, World

from espthrunat.ike import distinguished_name, events, ike_offers, phase1_responder
from espthrunat.ike.admission import Admission, Limits
from espthrunat.ike.endpoint import Endpoint
from espthrunat.ike.policy import Exchange, IkeSuite
from espthrunat.messages import Path


def first_message(exchange: Exchange = Exchange.MAIN) -> bytearray:
    client = Endpoint((CLIENT, 500), [replace(INITIATOR, exchange=exchange)], RepeatableEntropy(1))
    client.initiate("server", 0.0)
    return bytearray(client.datagrams_to_send()[0][0])


def flood(
    server: Endpoint, count: int, source: str, now: float, exchange: Exchange = Exchange.MAIN, first: int = 1
) -> int:
    """So many first messages with cookies of their own; how many were answered."""
    message = first_message(exchange)
    for number in range(count):
        message[:8] = (number + first).to_bytes(4, "big") + bytes(map(int, source.split(".")))
        server.receive_datagram(bytes(message), Path(SERVER, 500, source, 500), now)
    return len(server.datagrams_to_send())


@pytest.mark.parametrize("exchange", list(Exchange))
def test_one_address_begins_so_many_a_second_and_others_are_not_harmed(exchange: Exchange) -> None:
    server = Endpoint((SERVER, 500), [replace(RESPONDER, exchange=exchange)], RepeatableEntropy(2), Limits(1000, 10.0))
    assert flood(server, 500, "198.51.100.66", 0.0, exchange) == 20
    assert flood(server, 1, "198.51.100.67", 0.0, exchange) == 1
    assert flood(server, 500, "198.51.100.66", 1.0, exchange, first=1000) == 10
    assert flood(server, 500, "198.51.100.66", 1000.0, exchange, first=2000) == 20, "silence is no licence to flood"


def test_the_table_of_sources_is_bounded() -> None:
    admission = Admission(Limits())
    for number in range(10_000):
        admission.admit(f"10.0.{number >> 8}.{number & 255}", 0.0)
    assert len(admission) == 4096


@pytest.mark.draft("SEC-4")
def test_a_flood_leaves_no_more_than_the_table_holds_and_the_newest_get_in() -> None:
    server = Endpoint((SERVER, 500), [RESPONDER], RepeatableEntropy(2), Limits(half_open=50, new_per_second=1000.0))
    flood(server, 500, "198.51.100.66", 0.0)
    assert len(server.ike_sas()) == 50
    world = World()
    world.server = server
    world.connect(5.0)
    assert world.up
    assert len(server.ike_sas()) == 50, "the client's took the oldest one's place"


def test_established_sas_never_make_room() -> None:
    world = World()
    world.server = Endpoint(
        (SERVER, 500), [RESPONDER], RepeatableEntropy(2), Limits(half_open=10, new_per_second=1000.0)
    )
    world.connect(5.0)
    flood(world.server, 500, "198.51.100.66", world.now)
    assert world.up
    assert sum(sa.established for sa in world.server.ike_sas()) == 1


@pytest.mark.parametrize("exchange", list(Exchange))
def test_who_has_not_shown_that_it_receives_gets_one_answer_a_datagram_and_none_by_timer(exchange: Exchange) -> None:
    server = Endpoint((SERVER, 500), [replace(RESPONDER, exchange=exchange)], RepeatableEntropy(2))
    message = bytes(first_message(exchange))
    for _ in range(5):
        server.receive_datagram(message, Path(SERVER, 500, "198.51.100.66", 500), 0.0)
        assert len(server.datagrams_to_send()) == 1
    now = 0.0
    while (due := server.timer()) is not None:
        now = max(now, due)
        server.handle_timer(now)
        assert not server.datagrams_to_send(), "a stranger is answered by timer"
    assert now <= 120.0
    assert not server.ike_sas()


def test_cookies_cannot_be_foretold() -> None:
    """Two servers in the same state give different cookies, and one server never the same twice."""
    cookies = set()
    for _ in range(2):
        server = Endpoint((SERVER, 500), [RESPONDER])
        flood(server, 150, "198.51.100.66", 0.0)
        cookies |= {sa.responder_cookie for sa in server.ike_sas()}
    assert len(cookies) == 300
    assert bytes(8) not in cookies


def test_refusals_have_a_kind_of_their_own_for_the_log() -> None:
    server = Endpoint((SERVER, 500), [RESPONDER], RepeatableEntropy(2), Limits(1000, 1.0))
    flood(server, 10, "198.51.100.66", 0.0)
    kinds = set()
    while (event := server.next_event()) is not None:
        if isinstance(event, events.DatagramRefused):
            kinds.add(event.kind)
    assert kinds == {"too many"}


def test_many_connections_that_want_the_same_cost_no_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger may offer hundreds of transforms; what one look shows must not be looked for a thousand times."""
    looks = []

    def look(*arguments: Any) -> Any:
        looks.append(arguments)
        return ike_offers.choose_ike(*arguments)

    monkeypatch.setattr(phase1_responder, "choose_ike", look)
    wrong = replace(RESPONDER, ike_suites=(IkeSuite.from_name("aes256-sha512-modp4096"),))
    server = Endpoint((SERVER, 500), [replace(wrong, name=f"client{n}") for n in range(1000)], RepeatableEntropy(2))
    assert flood(server, 1, "198.51.100.66", 0.0) == 1
    assert not server.ike_sas()
    assert 1 <= len(looks) <= 3


@pytest.mark.parametrize("octets", [distinguished_name.MAX_OCTETS + 1, 65_000])
def test_endless_names_are_refused_unread(octets: int) -> None:
    with pytest.raises(ValueError, match="more than 2048 octets"):
        distinguished_name.decode(b"\x30" * octets)
    endless = bytes((0x06, 0x82, 0x03, 0xE8)) + b"\x81" * 999 + b"\x01"
    pair = endless + b"\x0c\x01x"
    for tag in (0x30, 0x31, 0x30):
        pair = bytes((tag, 0x82)) + len(pair).to_bytes(2, "big") + pair
    with pytest.raises(ValueError, match="attribute type of more than 64 octets"):
        distinguished_name.decode(pair)
