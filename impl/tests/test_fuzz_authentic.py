"""A peer that has the keys and talks nonsense: it may lose its own SAs by that, and nobody's process."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from fuzz_world import Stage, fuzz, recovers
from hypothesis import given
from hypothesis import strategies as st
from ike_world import World
from test_isakmp import payloads as any_payload

from espthrunat.ike import events, keying
from espthrunat.ike.ike_sa import IkeSa, covered
from espthrunat.wire.isakmp import (
    HEADER_OCTETS,
    Chain,
    ExchangeType,
    encode_message,
    encode_payloads,
    parse_header,
    parse_payloads,
)
from espthrunat.wire.payloads import (
    Delete,
    Hash,
    Identification,
    IdType,
    KeyExchange,
    Nonce,
    Notification,
    NotifyType,
    Payload,
    PayloadType,
    SecurityAssociation,
    Signature,
)
from espthrunat.wire.proposal import Attribute, Proposal, Transform

Seal = Callable[[IkeSa, int, Sequence[Payload]], bytes]

ESTABLISHED = Stage("main-psk", 9)
message_ids = st.integers(1, 2**32 - 1)
digests = st.binary(min_size=32, max_size=32)


def sealed(
    sa: IkeSa, exchange: int, message_id: int, first: int, rest: bytes, *, iv: bytes = b"", nonce: bytes = b""
) -> bytes:
    """Authentic: any octets behind a true HASH, which claim to begin with a payload of type `first`."""
    assert sa.suite is not None
    assert sa.keys is not None
    digest = keying.quick_hash2(sa.suite.hash, sa.keys.a, message_id, nonce, rest)
    plain = struct.pack("!BxH", first, 4 + len(digest)) + digest + rest
    return encrypted(sa, exchange, message_id, Hash.type, plain, iv or sa.phase2_iv(message_id))


def encrypted(sa: IkeSa, exchange: int, message_id: int, first: int, plain: bytes, iv: bytes) -> bytes:
    """Any octets under the true cipher key."""
    ciphertext = keying.encrypt(sa.cipher_key, iv, plain + bytes(-len(plain) % 16))
    return encode_message(sa.header(exchange, message_id, first=first, encrypted=True), ciphertext)


def opened(world: World, number: int, iv: bytes) -> tuple[Chain, bytes, bytes]:
    """The n-th message that was sent, decrypted by its sender's keys."""
    data, to_server = world.wire[number]
    (sa,) = (world.client if to_server else world.server).ike_sas()
    return sa.open(parse_header(data), data, iv)


def give(world: World, data: bytes, *, to_server: bool = True) -> None:
    try:
        world.inject(data, to_server=to_server)
    except Exception as error:
        raise AssertionError(f"{error!r} because of {data.hex()}") from error


# what a peer may say: payloads of every kind, with numbers that mean something now and then


def about(world: World) -> st.SearchStrategy[Payload]:
    """Payloads that know the SPIs and cookies of the world that they go to."""
    sas = [*world.client.ike_sas(), *world.server.ike_sas()]
    children = [*world.client.children(), *world.server.children()]
    spis = [spi.to_bytes(4, "big") for c in children for spi in (c.inbound_spi, c.outbound_spi)]
    spis += [sa.initiator_cookie + sa.responder_cookie for sa in sas]
    spi = st.one_of(st.sampled_from([*spis, b"", bytes(4), b"\xff" * 16]), st.binary(max_size=20))
    known = st.sampled_from([*(int(kind) for kind in NotifyType), 0, 8192, 24576, 24577, 40960, 65535])
    protocol = st.sampled_from([0, 1, 2, 3, 4, 255])
    many = st.lists(st.sampled_from([s for s in spis if len(s) == 4] or [bytes(4)]), min_size=1, max_size=300)
    return st.one_of(
        st.builds(Notification, st.one_of(known, st.integers(0, 65535)), protocol, spi, st.binary(max_size=40)),
        st.builds(Delete, protocol, spi.filter(bool).map(lambda one: (one,))),
        st.builds(Delete, protocol, many.map(tuple)),
        any_payload,
    )


def attacked(stage: Stage, examples: int, attack: Callable[[World, st.DataObject], None]) -> None:
    """Run an attack on many fresh worlds; afterwards an honest peer must get its connection again."""

    @fuzz(examples)
    @given(st.data())
    def examine(data: st.DataObject) -> None:
        world, gate = stage.reach()
        attack(world, data)
        for child in (*world.client.children(), *world.server.children()):
            assert child.outbound_spi > 255, "SPIs up to 255 are reserved"
        gate.open()
        assert recovers(world), f"{world.reasons(world.client_events)} / {world.reasons(world.server_events)}"

    examine()


PHASE2_STAGES = [
    ESTABLISHED,
    Stage("main-psk", 6),
    Stage("main-psk", 7),
    Stage("main-psk", 8),
    Stage("transport", 7),
    Stage("main-psk", 1, "quick"),
    Stage("main-psk", 3, "phase 1"),
]


@pytest.mark.parametrize("stage", PHASE2_STAGES, ids=str)
@pytest.mark.parametrize("exchange", [ExchangeType.INFORMATIONAL, ExchangeType.QUICK])
def test_authentic_nonsense_crashes_nothing(stage: Stage, exchange: ExchangeType) -> None:
    """Any payloads, known or not, in any number and order, under a HASH that is right."""

    def attack(world: World, data: st.DataObject) -> None:
        chains = st.lists(st.lists(about(world), min_size=1, max_size=5), min_size=1, max_size=3)
        for chain in data.draw(chains):
            for to_server in (True, False):
                sender = world.client if to_server else world.server
                for sa in [sa for sa in sender.ike_sas() if sa.established and sa.keys]:
                    message_id = data.draw(message_ids)
                    message = sealed(sa, exchange, message_id, chain[0].type, encode_payloads(chain))
                    give(world, message, to_server=to_server)
                    give(world, message, to_server=to_server)

    attacked(stage, 8, attack)


@pytest.mark.parametrize("exchange", [ExchangeType.INFORMATIONAL, ExchangeType.QUICK])
def test_malformed_chains_under_a_true_hash_change_nothing(exchange: ExchangeType) -> None:
    """Unknown payload types, lengths that do not fit, loops, trailing octets; and chains without HASH in front."""

    def attack(world: World, data: st.DataObject) -> None:
        (sa,) = world.client.ike_sas()
        before = (world.client_sa(), world.server_sa())
        delete = Delete(3, (before[0].inbound_spi.to_bytes(4, "big"),))
        for first, rest, message_id in data.draw(
            st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=120), message_ids), min_size=1, max_size=5)
        ):
            iv = sa.phase2_iv(message_id)
            give(world, encrypted(sa, exchange, message_id, first, rest, iv))
            give(world, encrypted(sa, exchange, message_id, Delete.type, encode_payloads([delete]), iv))
            give(world, encrypted(sa, exchange, message_id, Hash.type, encode_payloads([Hash(bytes(32)), delete]), iv))
            if first not in (PayloadType.NONE, PayloadType.NOTIFICATION, PayloadType.DELETE):
                give(world, sealed(sa, exchange, message_id, first, rest))
        assert (world.client_sa(), world.server_sa()) == before

    attacked(ESTABLISHED, 30, attack)


def permuted(chain: Sequence[Payload], data: st.DataObject) -> list[Payload]:
    """The right payloads in a wrong order, some of them missing, doubled or altered."""
    left = list(data.draw(st.permutations(chain)))
    changes = st.sampled_from(["drop", "double", "alter", "add", "as it is"])
    for change in data.draw(st.lists(changes, min_size=1, max_size=3)):
        at = data.draw(st.integers(0, max(0, len(left) - 1)))
        if not left or change == "add":
            left.insert(at, data.draw(any_payload))
        elif change == "drop":
            del left[at]
        elif change == "double":
            left.insert(at, left[at])
        elif change == "alter":
            left[at] = altered(left[at], data)
    return left or [Nonce(b"nonsense")]


def one_altered(chain: Sequence[Payload], data: st.DataObject) -> list[list[Payload]]:
    """All in order but for one payload: each of them in turn."""
    return [[altered(p, data) if n == at else p for n, p in enumerate(chain)] for at in range(len(chain))]


def without_proof(chain: Sequence[Payload]) -> list[Payload]:
    return [p for p in chain if p.type not in (PayloadType.HASH, PayloadType.SIGNATURE)]


def altered(payload: Payload, data: st.DataObject) -> Payload:
    if isinstance(payload, SecurityAssociation):
        return SecurityAssociation(tuple(_altered_proposal(p, data) for p in payload.proposals))
    if isinstance(payload, KeyExchange):
        return KeyExchange(data.draw(st.sampled_from([bytes(64), b"\xff" * 64, b"\1", b"\2" * 256])))
    if isinstance(payload, Identification) and data.draw(st.booleans()):
        return replace(payload, id_type=IdType.IPV4_ADDR_SUBNET, data=data.draw(st.binary(min_size=8, max_size=8)))
    if isinstance(payload, Nonce):
        return Nonce(bytes(data.draw(st.sampled_from([8, 256]))))
    return data.draw(any_payload)


def _altered_proposal(proposal: Proposal, data: st.DataObject) -> Proposal:
    values = st.one_of(st.integers(0, 0xFFFF), st.binary(max_size=40), st.just(b"\xff" * 5000))
    attributes = st.lists(st.builds(Attribute, st.integers(0, 15), values), max_size=8)
    extra = data.draw(st.one_of(st.just([]), attributes))
    transforms = tuple(Transform(t.number, t.transform_id, (*extra, *t.attributes)) for t in proposal.transforms)
    spi = data.draw(st.sampled_from([proposal.spi, b"", bytes(4), bytes(16), b"\0\0\0\xff"]))
    return Proposal(proposal.number, data.draw(st.sampled_from([proposal.protocol] * 3 + [1, 2, 9])), spi, transforms)


def quick_mode_1(world: World, number: int) -> tuple[IkeSa, int, Chain, bytes]:
    """The client's message 1 of Quick Mode, which is the n-th of the wire: its SA, message ID, payloads, next IV."""
    (sa,) = [sa for sa in world.client.ike_sas() if sa.established]
    header = parse_header(world.wire[number][0])
    chain, _, next_iv = sa.open(header, world.wire[number][0], sa.phase2_iv(header.message_id))
    return sa, header.message_id, chain, next_iv


@pytest.mark.parametrize("stage", [Stage("main-psk", 6), Stage("transport", 6), Stage("pfs", 6)], ids=str)
def test_a_quick_mode_1_with_its_payloads_in_disorder_crashes_nothing(stage: Stage) -> None:
    def attack(world: World, data: st.DataObject) -> None:
        sa, _, chain, _ = quick_mode_1(world, 6)
        right = [item.payload for item in chain][1:]
        for message_id, wrong in enumerate([permuted(right, data), *one_altered(right, data)], 1):
            give(world, sealed(sa, ExchangeType.QUICK, message_id, wrong[0].type, encode_payloads(wrong)))

    attacked(stage, 25, attack)


@pytest.mark.parametrize("stage", [Stage("main-psk", 7), Stage("transport", 7), Stage("pfs", 7)], ids=str)
def test_a_quick_mode_2_with_its_payloads_in_disorder_crashes_nothing(stage: Stage) -> None:
    def attack(world: World, data: st.DataObject) -> None:
        sa, message_id, first, iv = quick_mode_1(world, 6)
        second, _, _ = opened(world, 7, iv)
        nonce = first.one(Nonce).data
        right = [item.payload for item in second][1:]
        for wrong in [permuted(right, data), *one_altered(right, data)]:
            octets = encode_payloads(wrong)
            give(
                world,
                sealed(sa, ExchangeType.QUICK, message_id, wrong[0].type, octets, iv=iv, nonce=nonce),
                to_server=False,
            )

    attacked(stage, 25, attack)


def test_a_quick_mode_3_with_anything_else_in_it_confirms_nothing() -> None:
    def attack(world: World, data: st.DataObject) -> None:
        sa, message_id, _, iv = quick_mode_1(world, 6)
        _, _, iv = opened(world, 7, iv)
        chain = data.draw(st.lists(any_payload, min_size=1, max_size=4))
        give(world, encrypted(sa, ExchangeType.QUICK, message_id, chain[0].type, encode_payloads(chain), iv))
        give(world, sealed(sa, ExchangeType.QUICK, message_id, chain[0].type, encode_payloads(chain), iv=iv))
        assert not world.server.usable_children()

    attacked(Stage("main-psk", 8), 25, attack)


def phase1_iv(world: World) -> bytes:
    """The IV of Main Mode's first encrypted message, from the public values on the wire."""
    publics = [parse_payloads(world.wire[n][0][16], world.wire[n][0][HEADER_OCTETS:]).one(KeyExchange) for n in (2, 3)]
    (sa,) = world.client.ike_sas()
    assert sa.suite is not None
    return keying.phase1_iv(sa.suite.hash, publics[0].data, publics[1].data)


@pytest.mark.draft("NATD-8")
@pytest.mark.parametrize("ends", ["main-psk", "main-rsa"])
def test_a_main_mode_5_that_decrypts_and_proves_nothing_gets_nobody_in(ends: str) -> None:
    """The right payloads with one altered, or others: no SA; and the true message 5 is still taken after it."""

    @fuzz(15)
    @given(st.data())
    def examine(data: st.DataObject) -> None:
        world, gate = Stage(ends, 4).reach()
        iv = phase1_iv(world)
        (sa,) = world.client.ike_sas()
        right = [item.payload for item in opened(world, 4, iv)[0]]
        for _ in range(3):
            wrong = without_proof(permuted(right, data))
            proof = Hash if ends == "main-psk" else Signature
            wrong.extend(proof(digest) for digest in data.draw(st.lists(digests, max_size=2)))
            wrong = wrong or [Nonce(b"nonsense")]
            give(world, encrypted(sa, ExchangeType.MAIN, 0, wrong[0].type, encode_payloads(wrong), iv))
        assert not any(sa.established for sa in world.server.ike_sas())
        gate.open()
        world.run(60.0)
        assert world.up, world.reasons(world.server_events)

    examine()


@pytest.mark.parametrize("ends", ["main-psk", "main-rsa"])
def test_a_main_mode_6_that_decrypts_and_proves_nothing_is_not_believed(ends: str) -> None:
    @fuzz(15)
    @given(st.data())
    def examine(data: st.DataObject) -> None:
        world, gate = Stage(ends, 5).reach()
        (sa,) = world.client.ike_sas()
        _, _, iv = opened(world, 4, phase1_iv(world))
        right = [item.payload for item in opened(world, 5, iv)[0]]
        for _ in range(3):
            wrong = without_proof(permuted(right, data)) or [Nonce(b"nonsense")]
            message = encrypted(sa, ExchangeType.MAIN, 0, wrong[0].type, encode_payloads(wrong), iv)
            give(world, message, to_server=False)
        assert not any(sa.established for sa in world.client.ike_sas())
        gate.open()
        world.run(60.0)
        assert world.up, world.reasons(world.client_events)

    examine()


def test_an_authentic_delete_of_everything_ends_what_is_the_peers_and_nothing_else() -> None:
    """Every SPI there is and many that are not: the SAs go once, and the connection can come again."""
    world, gate = ESTABLISHED.reach()
    (sa,) = world.client.ike_sas()
    child = world.client_sa()
    spis = tuple(spi.to_bytes(4, "big") for spi in (child.inbound_spi, child.outbound_spi, 0, 1, 0xFFFFFFFF))
    cookies = sa.initiator_cookie + sa.responder_cookie
    chain: list[Payload] = [
        Delete(3, spis * 500),
        Delete(1, (cookies, cookies)),
        Delete(1, (cookies,)),
        Delete(3, spis),
    ]
    give(world, sealed(sa, ExchangeType.INFORMATIONAL, 77, chain[0].type, encode_payloads(chain)))
    assert not world.server.children()
    assert not world.server.ike_sas()
    assert len([e for e in world.server_events if isinstance(e, events.SaDeleted)]) == 1
    assert len([e for e in world.server_events if isinstance(e, events.IkeSaDeleted)]) == 1
    gate.open()
    assert recovers(world)


def test_covered_octets_are_those_behind_the_first_payload() -> None:
    """What the tests above seal is what an endpoint checks: otherwise they would all be refused for their HASH."""
    world, _ = ESTABLISHED.reach()
    (sa,) = world.client.ike_sas()
    chain: list[Payload] = [Notification(36136, 1, sa.initiator_cookie + sa.responder_cookie, b"\0\0\0\1")]
    message = sealed(sa, ExchangeType.INFORMATIONAL, 5, chain[0].type, encode_payloads(chain))
    parsed, plain, _ = sa.open(parse_header(message), message, sa.phase2_iv(5))
    assert covered(parsed, plain) == encode_payloads(chain)
    sent = len(world.wire)
    give(world, message)
    assert len(world.wire) == sent + 1, "an authentic question is answered"
