"""NAT discovery, the draft's clause 4.1: what is announced, hashed and concluded."""

from __future__ import annotations

import hashlib

import pytest
from ike_world import World, intact

from espthrunat.ike.nat_traversal import EspThruNat, NatStatus
from espthrunat.messages import Path
from espthrunat.wire.errors import ParseError
from espthrunat.wire.isakmp import Chain, encode_payloads, parse_header, parse_payloads
from espthrunat.wire.payloads import NatDiscovery, Payload, VendorId

METHOD = EspThruNat()
HERE = Path("192.168.1.11", 500, "203.0.113.18", 500)


def chain(*payloads: Payload) -> Chain:
    return parse_payloads(payloads[0].type, encode_payloads(payloads))


def clear_message(world: World, number: int) -> Chain:
    data, _ = world.wire[number - 1]
    return parse_payloads(parse_header(data).next_payload, data[28:])


@pytest.mark.draft("VID-1")
def test_the_vendor_id_is_the_one_of_the_draft_and_message_1_carries_it() -> None:
    assert METHOD.vendor_id.hex() == "50760f624c63e5c53eea386c685ca083"
    world = World().connect()
    assert VendorId(METHOD.vendor_id) in clear_message(world, 1).all(VendorId)


@pytest.mark.draft("NATD-2")
def test_the_hash_covers_initiator_then_responder_in_network_order() -> None:
    octets = bytes([192, 168, 1, 11]) + b"\x01\xf4" + bytes([203, 0, 113, 18]) + b"\x01\xf4"
    expected = hashlib.md5(octets).digest()
    assert METHOD.digest(HERE, initiator=True) == expected
    there = Path(HERE.remote, HERE.remote_port, HERE.local, HERE.local_port)
    assert METHOD.digest(there, initiator=False) == expected


@pytest.mark.draft("NATD-2")
def test_ipv6_addresses_have_sixteen_octets() -> None:
    path = Path("2001:db8::1", 500, "2001:db8::2", 4000)
    octets = bytes.fromhex("20010db8" + "00" * 11 + "01" + "01f4" + "20010db8" + "00" * 11 + "02" + "0fa0")
    assert METHOD.digest(path, initiator=True) == hashlib.md5(octets).digest()


@pytest.mark.draft("NATD-3")
def test_port_0_is_hashed_as_500() -> None:
    zero = Path(HERE.local, 0, HERE.remote, 0)
    assert METHOD.digest(zero, initiator=True) == METHOD.digest(HERE, initiator=True)


@pytest.mark.draft("NATD-1")
@pytest.mark.draft("NATD-4")
def test_message_2_carries_what_the_responder_saw_of_message_1() -> None:
    world = World().connect()
    seen = Path("203.0.113.18", 500, "203.0.113.2", 1024)
    assert clear_message(world, 2).one(NatDiscovery).data == METHOD.digest(seen, initiator=False)
    data, _ = world.wire[1]
    assert b"\x00\x00\x00\x14" + METHOD.digest(seen, initiator=False) in data, "generic header and 16 octets"


@pytest.mark.draft("NATD-6")
def test_message_3_carries_the_vendor_id_and_what_the_initiator_sees() -> None:
    world = World().connect()
    message = clear_message(world, 3)
    assert VendorId(METHOD.vendor_id) in message.all(VendorId)
    assert message.one(NatDiscovery).data == METHOD.digest(HERE, initiator=True)


@pytest.mark.draft("NATD-7")
def test_the_responder_answers_the_port_that_it_saw() -> None:
    world = World()
    world.nat.first_port = 6666
    world.connect()
    assert world.up
    assert world.server_sa().path.remote_port == 6666


def test_a_message_without_discovery_leaves_it_open() -> None:
    assert METHOD.detect(chain(VendorId(b"x")), HERE, initiator=True) == NatStatus.UNKNOWN


@pytest.mark.draft("NATD-8")
def test_repeated_discovery_is_refused() -> None:
    one = NatDiscovery(bytes(16))
    with pytest.raises(ParseError):
        METHOD.detect(chain(one, one), HERE, initiator=True)


@pytest.mark.draft("NATD-8")
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_discovery_that_is_malformed_doubled_or_misplaced_opens_nothing(number: int) -> None:
    """The damaged message comes first, the true one after it: the exchange must go on with the true one."""

    def spoil(data: bytes) -> list[bytes]:
        header = parse_header(data)
        message = [item.payload for item in parse_payloads(header.next_payload, data[28:])]
        discovery = NatDiscovery(b"D" * 16)
        doubled = encode_payloads([*message, discovery, discovery])
        short = encode_payloads([*message, VendorId(b"seven")])
        position = short.rindex(b"seven") - 4  # the last payload becomes a NAT-D of five octets
        last_header = len(encode_payloads(message[:-1]))
        short = short[:last_header] + b"\x82" + short[last_header + 1 :]
        assert short[position:].startswith(b"\0\0\0\x09")
        spoilt = [doubled, short]
        if number in (1, 4):
            spoilt.append(encode_payloads([*message, discovery]))
        return [data[:24] + (28 + len(body)).to_bytes(4, "big") + body for body in spoilt]

    def fate(n: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        early = [(0.001, bad) for bad in spoil(data)] if n == number - 1 else []
        return [*early, *intact(n, data, to_server)]

    world = World(fate=fate).connect()
    refusals = world.reasons(world.client_events) + world.reasons(world.server_events)
    assert "NAT" in refusals, "the refusal is told"
    assert world.up


@pytest.mark.draft("VID-2")
def test_a_peer_without_the_vendor_id_gets_plain_ike(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.nat.public = None

    class Ignorant(EspThruNat):
        def announce(self) -> list[Payload]:
            return []

    world.client._context.method = Ignorant()
    world.connect()
    assert world.up
    assert not clear_message(world, 2).all(NatDiscovery)
    assert not clear_message(world, 3).all(NatDiscovery)
