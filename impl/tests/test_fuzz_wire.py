"""Parsers and whatever octets there are: a value or a ParseError comes out, and what is valid goes back as it came."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pytest
from fuzz_world import Edit, edited, edits, fuzz, real_messages, spliced
from hypothesis import given
from hypothesis import strategies as st
from test_isakmp import payloads

from espthrunat.ike import distinguished_name
from espthrunat.ike.identity import Identity
from espthrunat.wire import ip, udp
from espthrunat.wire.errors import ParseError
from espthrunat.wire.isakmp import (
    HEADER_OCTETS,
    Header,
    Item,
    encode_message,
    encode_payloads,
    parse_header,
    parse_payloads,
)
from espthrunat.wire.payloads import IPSEC_DOI, PAYLOADS, Delete, Identification, Notification, Payload, PayloadType
from espthrunat.wire.proposal import encode_proposals, parse_attributes, parse_proposals

P = ParamSpec("P")
T = TypeVar("T")

MOST_OCTETS = 65_507  # of a UDP payload
messages = st.sampled_from([data for _, data in real_messages()])
clear = [data for _, data in real_messages() if not data[19] & 1]
offers = [
    item.body[8:]
    for data in clear
    for item in parse_payloads(data[16], data[HEADER_OCTETS:])
    if item.payload.type == PayloadType.SA
]
texts = st.binary(max_size=300)
few = st.lists(st.sampled_from([0, 1, 0xFF]), max_size=8).map(bytes)


def as_sent(item: Item) -> bytes:
    """A body as we would send it: the ISAKMP DOI, 0, which notifications may have, is IPsec's with us."""
    if isinstance(item.payload, Notification | Delete):
        return IPSEC_DOI.to_bytes(4, "big") + item.body[4:]
    return item.body


def parsed(parse: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
    """What a parser makes of its input; None for a ParseError, which must say what is wrong and where."""
    try:
        return parse(*arguments, **named)
    except ParseError as error:
        complaint = error
    assert complaint.payload
    assert complaint.reason
    assert 0 <= complaint.offset <= HEADER_OCTETS + MOST_OCTETS
    return None


def check_message(datagram: bytes) -> None:
    """A whole message: ParseError, or values that make the same octets again."""
    header = parsed(parse_header, datagram)
    if header is None:
        return
    body = datagram[HEADER_OCTETS:]
    assert encode_message(header, body) == datagram
    check_chain(header.next_payload, body)


def check_chain(first: int, body: bytes, padding: int = 0) -> None:
    chain = parsed(parse_payloads, first, body, padding=padding)
    if chain is None:
        return
    assert chain
    assert len(chain) <= len(body) // 4, "no payload without octets of its own"
    assert chain[0].payload.type == first
    assert len(body) - chain[-1].end < max(1, padding), "no octet is left over"
    for item in chain:
        assert item.payload.body() == as_sent(item)
    if all(as_sent(item) == item.body for item in chain):
        assert encode_payloads([item.payload for item in chain]) == body[: chain[-1].end]


@fuzz(400)
@given(st.binary(max_size=400))
def test_arbitrary_octets_make_no_parser_fail(data: bytes) -> None:
    check_message(data)
    for parse in (parse_proposals, parse_attributes):
        parsed(parse, data, 0)
    assert udp.classify(data) in udp.Kind
    header = ip.parse_ipv4(data)
    assert header is None or str(header)
    ip.ports_of(data[0] if data else 0, data)
    assert 0 <= ip.checksum(data) <= 0xFFFF


@fuzz(400)
@given(st.sampled_from(sorted(PAYLOADS)), st.one_of(texts, texts.map(lambda rest: b"\0\0\0\1" + rest)))  # the DOI
def test_any_body_of_any_payload_is_a_value_or_a_parse_error(kind: int, body: bytes) -> None:
    check_chain(kind, (len(body) + 4).to_bytes(4, "big") + body)


@pytest.mark.draft("WIRE-2")
@fuzz(600)
@given(messages, edits, st.booleans())
def test_edited_messages_are_values_or_parse_errors(message: bytes, changes: list[Edit], mend: bool) -> None:
    check_message(edited(message, changes, mend=mend))


@fuzz(600)
@given(st.sampled_from(clear), edits)
def test_edited_clear_messages_are_values_or_parse_errors(message: bytes, changes: list[Edit]) -> None:
    damaged = edited(message, changes)
    check_message(damaged)
    check_chain(damaged[16] if len(damaged) > 16 else 1, damaged[HEADER_OCTETS:], padding=16)


@fuzz(600)
@given(st.lists(payloads, min_size=1, max_size=3), edits)
def test_edited_chains_of_every_payload_are_values_or_parse_errors(chain: list[Payload], changes: list[Edit]) -> None:
    header = Header(b"a cookie", bytes(8), chain[0].type, 2, 0, 0)
    check_message(edited(encode_message(header, encode_payloads(chain)), changes))


@pytest.mark.parametrize("length", range(4))
def test_a_payload_shorter_than_its_header_is_refused(length: int) -> None:
    """A parser that believes it goes on where it has been, or before."""
    chain = payload(b"abcd", 13) + bytes([13, 0, 0, length]) + payload(b"abcd")
    with pytest.raises(ParseError, match=f"length {length}"):
        parse_payloads(13, chain)


@fuzz(200)
@given(messages, messages, st.integers(0, 0xFFFF), edits)
def test_spliced_messages_are_values_or_parse_errors(head: bytes, tail: bytes, at: int, changes: list[Edit]) -> None:
    both = spliced(head, tail, at)
    check_message(both)
    check_message(edited(both, changes))


@fuzz(200)
@given(st.sampled_from(offers), edits)
def test_an_offer_is_a_value_that_goes_back_as_it_came_or_a_parse_error(offer: bytes, changes: list[Edit]) -> None:
    assert encode_proposals(parse_proposals(offer, 0)) == offer
    damaged = edited(offer, changes, mend=False)
    found = parsed(parse_proposals, damaged, 0)
    if found is None:
        return
    assert encode_proposals(found) == damaged
    assert all(a.number >= 0 for p in found for t in p.transforms for a in t.attributes)


@pytest.mark.draft("NATD-8")
@fuzz(60)
@given(st.binary(max_size=40).filter(lambda body: len(body) != 16))
def test_nat_discovery_of_any_other_length_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(ParseError) as caught:
        parse_payloads(PayloadType.NAT_DISCOVERY, (len(body) + 4).to_bytes(4, "big") + body)
    assert caught.value.payload == "NAT-D"


@pytest.mark.draft("WIRE-3")
@fuzz(200)
@given(st.one_of(st.binary(max_size=8), few), st.one_of(st.binary(max_size=60), few))
def test_every_datagram_is_one_kind(head: bytes, rest: bytes) -> None:
    """WIRE-3's words, not its code: zero marker and more is ESP, one 0xFF a keepalive, a cookie IKE."""
    datagram = head + rest
    if len(datagram) > 8 and not any(datagram[:8]):
        expected = udp.Kind.ESP
    elif len(datagram) >= 8 and any(datagram[:8]):
        expected = udp.Kind.IKE
    else:
        expected = udp.Kind.KEEPALIVE if datagram == b"\xff" else udp.Kind.JUNK
    assert udp.classify(datagram) is expected


@fuzz(300)
@given(texts, st.integers(0, 255), st.sampled_from([1, 2, 3, 4, 9]))
def test_any_identity_of_a_peer_is_known_or_a_parse_error(data: bytes, other: int, kind: int) -> None:
    for id_type in (kind, other):
        payload = parsed(Identification.parse, bytes([id_type, 0, 0, 0]) + data, 0)
        identity = parsed(Identity.from_payload, payload) if payload else None
        assert identity is None or (identity.text and identity.text.isprintable())


@fuzz(300)
@given(edits)
def test_edited_distinguished_names_are_names_or_value_errors(changes: list[Edit]) -> None:
    name = distinguished_name.encode("CN=server,O=Tests + OU=Fuzz,C=FI,emailAddress=a@b.example")
    try:
        text = distinguished_name.decode(edited(name, changes, mend=False))
    except ValueError:
        return
    assert text.isprintable()


def sa_of(transforms: int, attribute: bytes) -> bytes:
    """An SA payload of so many transforms; proposals hold 255 at most."""
    proposals = []
    while transforms:
        here = min(255, transforms)
        transforms -= here
        inside = b"".join(
            bytes([3 if n < here - 1 else 0, 0]) + (8 + len(attribute)).to_bytes(2, "big") + b"\1\1\0\0" + attribute
            for n in range(here)
        )
        head = bytes([2 if transforms else 0, 0]) + (8 + len(inside)).to_bytes(2, "big") + bytes([1, 1, 0, here])
        proposals.append(head + inside)
    body = bytes(3) + b"\1" + bytes(3) + b"\1" + b"".join(proposals)
    return bytes(2) + (4 + len(body)).to_bytes(2, "big") + body


def payload(body: bytes, following: int = 0) -> bytes:
    return bytes([following, 0]) + (4 + len(body)).to_bytes(2, "big") + body


BIG: dict[str, Callable[[], tuple[int, bytes]]] = {
    "16,000 empty vendor IDs": lambda: (13, payload(b"", 13) * 16_000 + payload(b"")),
    "a loop of the same payload": lambda: (13, payload(b"", 13) * 16_000),
    "one vendor ID": lambda: (13, payload(bytes(MOST_OCTETS - HEADER_OCTETS - 4))),
    "14,000 SPIs": lambda: (12, payload(bytes([0, 0, 0, 1, 3, 4]) + (14_000).to_bytes(2, "big") + bytes(56_000))),
    "60,000 SPIs of one octet": lambda: (
        12,
        payload(bytes([0, 0, 0, 1, 3, 1]) + (60_000).to_bytes(2, "big") + bytes(60_000)),
    ),
    "256 transforms": lambda: (1, sa_of(256, b"\x80\x0b\0\1")),
    "4,500 transforms": lambda: (1, sa_of(4_500, b"\x80\x0b\0\1")),
    "14,000 attributes": lambda: (1, sa_of(1, b"\x80\x0b\0\1" * 14_000)),
    "one attribute of 60,000 octets": lambda: (1, sa_of(1, b"\0\x0c\xea\x60" + b"\xff" * 60_000)),
}


@pytest.mark.parametrize("what", BIG)
def test_work_and_memory_are_bounded_by_the_size_of_the_input(what: str) -> None:
    first, body = BIG[what]()
    assert len(body) <= MOST_OCTETS - HEADER_OCTETS
    began = time.process_time()
    check_chain(first, body)
    assert time.process_time() - began < 1.0, "far more than linear work"


@pytest.mark.draft("SEC-4")
def test_an_offer_has_no_more_transforms_than_anybody_needs() -> None:
    """Each transform of a stranger is compared with the suites of every connection."""
    first, body = BIG["256 transforms"]()
    (item,) = parse_payloads(first, body)
    assert item.payload.type == PayloadType.SA
    with pytest.raises(ParseError, match="more than 256 transforms"):
        parse_payloads(*BIG["4,500 transforms"]())
