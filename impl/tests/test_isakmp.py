"""ISAKMP on the wire: every payload comes back as it went, and whatever is wrong has a place and a name."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espthrunat.wire.errors import ParseError
from espthrunat.wire.isakmp import Header, encode_message, encode_payloads, parse_header, parse_payloads
from espthrunat.wire.payloads import (
    Certificate,
    CertificateRequest,
    Delete,
    Hash,
    Identification,
    KeyExchange,
    NatDiscovery,
    Nonce,
    Notification,
    Payload,
    PayloadType,
    SecurityAssociation,
    Signature,
    VendorId,
)
from espthrunat.wire.proposal import Attribute, Proposal, Transform

octet = st.integers(0, 255)
attributes = st.one_of(
    st.builds(Attribute, st.integers(0, 0x7FFF), st.integers(0, 0xFFFF)),
    st.builds(Attribute, st.integers(0, 0x7FFF), st.binary(max_size=12)),
)
transforms = st.builds(Transform, octet, octet, st.lists(attributes, max_size=6).map(tuple))
proposals = st.builds(
    Proposal, octet, octet, st.binary(max_size=16), st.lists(transforms, min_size=1, max_size=4).map(tuple)
)
free_id_types = octet.filter(lambda t: t not in (1, 4))
payloads: st.SearchStrategy[Payload] = st.one_of(
    st.builds(SecurityAssociation, st.lists(proposals, min_size=1, max_size=3).map(tuple)),
    st.builds(KeyExchange, st.binary(min_size=1, max_size=512)),
    st.builds(Hash, st.binary(min_size=1, max_size=64)),
    st.builds(Certificate, octet, st.binary(max_size=200)),
    st.builds(CertificateRequest, octet, st.binary(max_size=60)),
    st.builds(Signature, st.binary(min_size=1, max_size=512)),
    st.builds(Nonce, st.binary(min_size=8, max_size=256)),
    st.builds(VendorId, st.binary(max_size=40)),
    st.builds(NatDiscovery, st.binary(min_size=16, max_size=16)),
    st.builds(Identification, free_id_types, st.binary(max_size=40), octet, st.integers(0, 0xFFFF)),
    st.builds(Identification, st.just(1), st.binary(min_size=4, max_size=4)),
    st.builds(Identification, st.just(4), st.binary(min_size=8, max_size=8)),
    st.builds(Notification, st.integers(0, 0xFFFF), octet, st.binary(max_size=32), st.binary(max_size=32)),
    st.builds(Delete, octet, st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=5).map(tuple)),
)


@given(st.lists(payloads, min_size=1, max_size=6))
def test_every_payload_comes_back_as_it_went(chain: list[Payload]) -> None:
    parsed = parse_payloads(chain[0].type, encode_payloads(chain))
    assert [item.payload for item in parsed] == chain
    assert [item.body for item in parsed] == [payload.body() for payload in chain]


@given(
    st.builds(
        Header,
        st.binary(min_size=8, max_size=8).filter(any),
        st.binary(min_size=8, max_size=8),
        octet,
        octet,
        st.integers(0, 7),
        st.integers(0, 2**32 - 1),
    ),
    st.binary(max_size=60),
)
def test_every_header_comes_back_as_it_went(header: Header, body: bytes) -> None:
    parsed = parse_header(encode_message(header, body))
    assert parsed.length == 28 + len(body)
    assert parsed == Header(
        header.initiator_cookie,
        header.responder_cookie,
        header.next_payload,
        header.exchange,
        header.flags,
        header.message_id,
        28 + len(body),
    )


@given(st.binary(max_size=300))
def test_arbitrary_octets_are_a_value_or_a_parse_error(data: bytes) -> None:
    with suppress(ParseError):
        parse_header(data)


@given(octet, st.binary(max_size=300))
def test_arbitrary_chains_are_a_value_or_a_parse_error(first: int, data: bytes) -> None:
    with suppress(ParseError):
        chain = parse_payloads(first, data)
        assert chain[-1].end == len(data), "no octet is left over"


@given(st.lists(payloads, min_size=1, max_size=3), st.data())
def test_a_cut_or_stretched_chain_is_refused(chain: list[Payload], data: st.DataObject) -> None:
    octets = encode_payloads(chain)
    cut = data.draw(st.integers(0, len(octets) - 1))
    with pytest.raises(ParseError):
        parse_payloads(chain[0].type, octets[:cut])
    with pytest.raises(ParseError, match="trailing"):
        parse_payloads(chain[0].type, octets + b"\0")


def damaged(position: int, value: int) -> bytes:
    message = bytearray(encode_message(Header(b"A" * 8, bytes(8), 10, 2, 0, 0), encode_payloads([Nonce(b"N" * 8)])))
    message[position] = value
    return bytes(message)


@pytest.mark.draft("WIRE-2")
def test_a_zero_initiator_cookie_is_refused() -> None:
    message = bytes(8) + damaged(8, 0)[8:]
    with pytest.raises(ParseError, match="header at octet 0: the initiator cookie is zero"):
        parse_header(message)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"short", "header at octet 0: 5 octets, 28 needed"),
        (damaged(17, 0x20), "header at octet 17: version 2.0"),
        (damaged(19, 0x10), "header at octet 19: unknown flags 0x10"),
        (damaged(27, 41), "header at octet 24: length 41 in a datagram of 40 octets"),
        (damaged(27, 40) + b"\0", "header at octet 24: length 40 in a datagram of 41 octets"),
    ],
)
def test_a_wrong_header_is_named(message: bytes, says: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_header(message)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("first", "body", "says"),
    [
        (0, b"", "header at octet 28: a message without payloads"),
        (99, struct.pack("!BBH", 0, 0, 4), "payload 99 at octet 28: unknown payload type"),
        (10, b"\0\0", "NONCE at octet 28: 2 octets left, 4 needed"),
        (10, struct.pack("!BBH", 0, 7, 12) + bytes(8), "NONCE at octet 29: reserved octet is 7"),
        (10, struct.pack("!BBH", 0, 0, 3) + bytes(8), "NONCE at octet 30: length 3"),
        (10, struct.pack("!BBH", 0, 0, 8) + bytes(4), "NONCE at octet 32: 4 octets, 8 to 256 are allowed"),
        (130, struct.pack("!BBH", 0, 0, 8) + bytes(4), "NAT-D at octet 32: 4 octets, 16 are allowed"),
        (6, struct.pack("!BBH", 0, 0, 4), "CERT at octet 32: 0 octets, 1 needed"),
        (7, struct.pack("!BBH", 0, 0, 4), "CERTREQ at octet 32: 0 octets, 1 needed"),
        (9, struct.pack("!BBH", 0, 0, 4), "SIG at octet 32: 0 octets, 1 to 2048 are allowed"),
        (1, struct.pack("!BBHII", 0, 0, 12, 2, 1), "SA at octet 32: DOI 2"),
        (12, struct.pack("!BBHIBBH", 0, 0, 12, 1, 3, 4, 1), "D at octet 37: 1 SPIs of 4 octets in 0"),
    ],
)
def test_a_wrong_payload_is_named(first: int, body: bytes, says: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_payloads(first, body)
    assert str(caught.value).startswith(says)


def test_padding_behind_ciphertext_is_less_than_a_block() -> None:
    octets = encode_payloads([Nonce(b"N" * 8)])
    assert len(parse_payloads(PayloadType.NONCE, octets + bytes(15), padding=16)) == 1
    with pytest.raises(ParseError, match="16 trailing octets"):
        parse_payloads(PayloadType.NONCE, octets + bytes(16), padding=16)
