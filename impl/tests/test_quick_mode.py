"""What else Quick Mode says and agrees on: first contact, confirmation by traffic, lifetimes, no AH."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from ike_world import INITIATOR, RESPONDER, World
from quick_world import QuickWorld, agree, child_of

from espthrunat.ike import events
from espthrunat.ike.ike_sa import NotAuthentic, Refused
from espthrunat.ike.nat_traversal import NatStatus
from espthrunat.ike.quick_mode import LINGER_SECONDS, PolicyRefusal, QuickMode, State
from espthrunat.messages import Direction
from espthrunat.wire.errors import ParseError
from espthrunat.wire.isakmp import ExchangeType, encode_payloads, parse_header
from espthrunat.wire.payloads import Hash, Nonce, Notification, NotifyType, Payload, SecurityAssociation
from espthrunat.wire.proposal import Attribute, Phase2Attribute, Proposal, Protocol, Transform

RESPONDER_LIFETIME = 24576


def quick_payloads(world: QuickWorld, number: int) -> list[Payload]:
    return [item.payload for item in world.wire[number - 1][1:]]


def with_sa(payloads: list[Payload], *proposals: Proposal) -> list[Payload]:
    return [SecurityAssociation(proposals) if isinstance(p, SecurityAssociation) else p for p in payloads]


# INITIAL-CONTACT


def test_initial_contact_stands_in_message_1_and_the_responder_notes_it() -> None:
    world = QuickWorld()
    _, server = world.run(INITIATOR, initial_contact=True)
    (said,) = world.wire[0].all(Notification)
    assert said == Notification(NotifyType.INITIAL_CONTACT, Protocol.ISAKMP, b"cookie-icookie-r")
    assert server.initial_contact
    _, again = world.run(INITIATOR, message_id=78)
    assert not again.initial_contact


@pytest.mark.parametrize(
    "other",
    [
        Notification(NotifyType.INITIAL_CONTACT, Protocol.ISAKMP, bytes(16)),
        Notification(NotifyType.INITIAL_CONTACT, Protocol.ESP, b"cookie-icookie-r"),
        Notification(24577, Protocol.ISAKMP, b"cookie-icookie-r"),
    ],
)
def test_initial_contact_about_something_else_is_none(other: Notification) -> None:
    world = QuickWorld()
    world.run(INITIATOR)
    message = world.craft(world.client, [*quick_payloads(world, 1), other], message_id=78)
    assert not world.answer(message).initial_contact


def test_initial_contact_counts_only_behind_a_true_hash() -> None:
    world = QuickWorld()
    world.run(INITIATOR, initial_contact=True)
    sa = world.client.sa
    payloads = [Hash(bytes(32)), *quick_payloads(world, 1)]
    forged, _ = sa.seal(ExchangeType.QUICK, 78, sa.phase2_iv(78), payloads)
    exchange = world.server.quick(RESPONDER, 78)
    with pytest.raises(NotAuthentic):
        exchange.respond(parse_header(forged), forged, 0.0)
    assert not exchange.initial_contact


# confirmation by traffic


def half_done() -> tuple[QuickWorld, QuickMode, QuickMode]:
    """Message 3 has been sent and has not come."""
    world = QuickWorld()
    client = world.client.quick(INITIATOR, 77)
    client.start(0.0)
    server = world.answer(world.client.sent[-1])
    world.give(client, world.server.sent[-1])
    return world, client, server


def outbound(world: QuickWorld) -> int:
    return sum(isinstance(e, events.SaEstablished) and Direction.OUTBOUND in e.directions for e in world.server.said)


def test_an_authentic_esp_packet_confirms_as_message_3_does() -> None:
    world, _, server = half_done()
    assert not outbound(world)
    server.confirm(1.0)
    assert outbound(world) == 1
    assert server.state == State.DONE
    assert world.server.ended == [(server, "")]
    sent = len(world.server.sent)
    world.server.context.timers.run(LINGER_SECONDS)
    assert len(world.server.sent) == sent, "message 2 is not repeated any more"


def test_message_3_after_confirmation_is_taken_and_changes_nothing() -> None:
    world, _, server = half_done()
    server.confirm(1.0)
    message_3 = world.client.sent[-1]
    for _ in range(2):
        server.receive(parse_header(message_3), message_3, 2.0)
    assert outbound(world) == 1
    assert len(world.server.ended) == 1


def test_a_wrong_message_3_after_confirmation_is_not_authentic() -> None:
    world, _, server = half_done()
    server.confirm(1.0)
    true = world.client.sent[-1]
    forged, _ = world.server.sa.seal(ExchangeType.QUICK, 77, world.server.sent[-1][-16:], [Hash(bytes(32))])
    with pytest.raises(NotAuthentic):
        server.receive(parse_header(true), forged, 1.0)


def test_confirmation_does_nothing_in_any_other_state() -> None:
    world = QuickWorld()
    client = world.client.quick(INITIATOR, 77)
    client.start(0.0)
    client.confirm(0.0)
    assert client.state == State.WAITS_FOR_2
    server = world.answer(world.client.sent[-1])
    world.give(client, world.server.sent[-1])
    world.give(server, world.client.sent[-1])
    for exchange in (client, server):
        exchange.confirm(1.0)
    assert outbound(world) == 1
    assert len(world.client.ended) == len(world.server.ended) == 1
    _, _, failed = half_done()
    failed.fail("for a test", 1.0)
    failed.confirm(2.0)
    assert failed.state == State.FAILED


def test_without_message_3_and_traffic_the_responder_gives_up() -> None:
    world, _, server = half_done()
    timers = world.server.context.timers
    while (due := timers.next()) is not None and not world.server.ended:
        timers.run(due)
    ((exchange, reason),) = world.server.ended
    assert exchange is server
    assert reason == "no valid answer to Quick Mode message 2 after 5 tries"
    assert not outbound(world)


# lifetimes


@pytest.mark.draft("SA-5")
@pytest.mark.parametrize(
    ("client", "server", "seconds", "octets", "told"),
    [
        ((3600, 0), (3600, 0), 3600, 0, False),
        ((100, 0), (3600, 0), 100, 0, False),
        ((3600, 0), (100, 0), 100, 0, True),
        ((100_000, 0), (90_000, 0), 90_000, 0, True),
        ((3600, 10 << 20), (3600, 20 << 20), 3600, 10 << 20, False),
        ((3600, 20 << 20), (3600, 10 << 20), 3600, 10 << 20, True),
        ((3600, 1), (3600, 0), 3600, 1024, False),
        ((3600, 0), (3600, 1025), 3600, 2048, True),
        ((100, 1 << 40), (3600, 1 << 30), 100, 1 << 30, True),
        ((3600, 1 << 45), (3600, 0), 3600, 1 << 45, False),
    ],
)
def test_both_ends_keep_the_shorter_lifetime(
    client: tuple[int, int], server: tuple[int, int], seconds: int, octets: int, told: bool
) -> None:
    here = replace(INITIATOR, esp_lifetime=client[0], esp_octets=client[1])
    there = replace(RESPONDER, esp_lifetime=server[0], esp_octets=server[1])
    world = QuickWorld((here,), (there,))
    ends = world.run(here)
    assert agree(*ends)
    for end in ends:
        assert child_of(end).expires == seconds
        assert child_of(end).octets == octets
    notifications = world.wire[1].all(Notification)
    assert [n.notify_type for n in notifications] == [RESPONDER_LIFETIME] * told
    if told:
        assert notifications[0].protocol == Protocol.ESP
        assert notifications[0].spi == child_of(ends[1]).inbound_spi.to_bytes(4, "big")


def test_seconds_and_kilobytes_are_pairs_in_order() -> None:
    client = replace(INITIATOR, esp_lifetime=3600, esp_octets=(100_000 << 10) - 5)
    world = QuickWorld((client,))
    world.run(client)
    (proposal,) = world.wire[0].one(SecurityAssociation).proposals
    kinds = (Phase2Attribute.LIFE_TYPE, Phase2Attribute.LIFE_DURATION)
    pairs = [(a.type, a.value) for a in proposal.transforms[0].attributes if a.type in kinds]
    assert pairs == [(1, 1), (2, 3600), (1, 2), (2, (100_000).to_bytes(4, "big"))]


def test_responder_lifetime_on_the_wire_is_a_list_of_attributes() -> None:
    world = QuickWorld(server=(replace(RESPONDER, esp_lifetime=100, esp_octets=2048),))
    world.run(INITIATOR)
    (said,) = world.wire[1].all(Notification)
    assert said.data == bytes.fromhex("80010001 80020064 80010002 80020002")


@pytest.mark.parametrize("spi", [bytes(4), b""])
def test_a_lifetime_of_another_sa_is_not_obeyed(spi: bytes) -> None:
    server = replace(RESPONDER, esp_lifetime=100)
    probe = QuickWorld(server=(server,))
    probe.run(INITIATOR)
    world = QuickWorld(server=(server,))
    exchange = world.client.quick(INITIATOR, 77)
    exchange.start(0.0)
    world.answer(world.client.sent[-1])
    payloads = [replace(p, spi=spi) if isinstance(p, Notification) else p for p in quick_payloads(probe, 2)]
    world.give(exchange, world.craft(world.server, payloads, nonce=world.wire[0].one(Nonce).data))
    assert child_of(exchange).expires == INITIATOR.esp_lifetime


def test_a_peer_that_names_no_lifetime_means_eight_hours() -> None:
    server = replace(RESPONDER, esp_lifetime=100_000)
    world = QuickWorld(server=(server,))
    world.run(INITIATOR)
    (proposal,) = world.wire[0].one(SecurityAssociation).proposals
    kinds = (Phase2Attribute.LIFE_TYPE, Phase2Attribute.LIFE_DURATION)
    transform = proposal.transforms[0]
    bare = replace(transform, attributes=tuple(a for a in transform.attributes if a.type not in kinds))
    payloads = with_sa(quick_payloads(world, 1), replace(proposal, transforms=(bare,)))
    assert child_of(world.answer(world.craft(world.client, payloads, message_id=78))).expires == 28_800


@pytest.mark.parametrize("octets", [8, 1000])
def test_a_count_that_no_sa_can_reach_is_no_count(octets: int) -> None:
    """It would not fit in anything that counts."""
    world = QuickWorld()
    world.run(INITIATOR)
    (proposal,) = world.wire[0].one(SecurityAssociation).proposals
    huge = (Attribute(Phase2Attribute.LIFE_TYPE, 2), Attribute(Phase2Attribute.LIFE_DURATION, b"\xff" * octets))
    transform = replace(proposal.transforms[0], attributes=proposal.transforms[0].attributes + huge)
    payloads = with_sa(quick_payloads(world, 1), replace(proposal, transforms=(transform,)))
    child = child_of(world.answer(world.craft(world.client, payloads, message_id=78)))
    assert child.octets == 0
    assert child.expires == INITIATOR.esp_lifetime


# AH


def ah(number: int) -> Proposal:
    attributes = (
        Attribute(Phase2Attribute.ENCAPSULATION_MODE, 61440),
        Attribute(Phase2Attribute.AUTHENTICATION, 2),
    )
    return Proposal(number, Protocol.AH, b"\x00\x01\x02\x03", (Transform(1, 3, attributes),))


@pytest.mark.draft("WIRE-5")
@pytest.mark.parametrize("form", ["alone", "bundle", "bundle, AH last"])
@pytest.mark.parametrize("nat", [NatStatus.DETECTED, NatStatus.NONE])
def test_ah_is_refused_alone_and_in_a_bundle(form: str, nat: NatStatus) -> None:
    world = QuickWorld(nat=nat)
    world.run(INITIATOR)
    (esp,) = world.wire[0].one(SecurityAssociation).proposals
    proposals = {"alone": [ah(1)], "bundle": [ah(1), esp], "bundle, AH last": [esp, ah(1)]}[form]
    payloads = with_sa(quick_payloads(world, 1), *proposals)
    with pytest.raises(PolicyRefusal, match="AH" if form == "alone" else "bundles of SAs") as refused:
        world.answer(world.craft(world.client, payloads, message_id=78))
    assert refused.value.notify == NotifyType.NO_PROPOSAL_CHOSEN


@pytest.mark.draft("WIRE-5")
def test_beside_an_offer_of_ah_the_one_of_esp_is_taken() -> None:
    world = QuickWorld()
    world.run(INITIATOR)
    (esp,) = world.wire[0].one(SecurityAssociation).proposals
    payloads = with_sa(quick_payloads(world, 1), ah(1), replace(esp, number=2))
    world.answer(world.craft(world.client, payloads, message_id=78))
    (chosen,) = (
        world.server.sa.open(parse_header(world.server.sent[-1]), world.server.sent[-1], world.ivs[78])[0]
        .one(SecurityAssociation)
        .proposals
    )
    assert (chosen.protocol, chosen.number) == (Protocol.ESP, 2)


@pytest.mark.draft("WIRE-5")
def test_an_answer_of_ah_is_refused() -> None:
    world = QuickWorld()
    exchange = world.client.quick(INITIATOR, 77)
    exchange.start(0.0)
    world.answer(world.client.sent[-1])
    probe = QuickWorld()
    probe.run(INITIATOR)
    payloads = with_sa(quick_payloads(probe, 2), ah(1))
    with pytest.raises(Refused, match="AH"):
        world.give(exchange, world.craft(world.server, payloads, nonce=world.wire[0].one(Nonce).data))
    assert exchange.child is None


def test_whole_endpoints_agree_on_lifetimes_too() -> None:
    world = World(replace(INITIATOR, rekey=False), replace(RESPONDER, rekey=False, esp_lifetime=100)).connect(50.0)
    assert world.up
    assert abs(world.client_sa().expires - world.server_sa().expires) < 1.0


@pytest.mark.parametrize("number", [1, 2])
def test_whatever_the_true_peer_says_is_taken_or_refused_and_nothing_else(number: int) -> None:
    """Authentic messages with damaged insides: the hash is right, so that everything behind it is read."""
    chance = random.Random(number)
    server = replace(RESPONDER, esp_lifetime=100)  # message 2 has a notification too
    probe = QuickWorld(server=(server,))
    probe.run(INITIATOR, initial_contact=True)
    whole = encode_payloads(quick_payloads(probe, number))
    first = probe.wire[number - 1][1].payload.type
    outcomes: set[str] = set()
    lines: list[str] = []
    accepted: list[events.Event] = []
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.choice([0, 1, 2, 4, 0x80, 0xFF, chance.randrange(256)])
        world = QuickWorld(server=(server,))
        exchange = world.client.quick(INITIATOR, 77)
        exchange.start(0.0, initial_contact=True)
        try:
            if number == 1:
                world.answer(world.craft_raw(world.client, first, bytes(damaged)))
            else:
                world.answer(world.client.sent[-1])
                nonce = world.wire[0].one(Nonce).data
                world.give(exchange, world.craft_raw(world.server, first, bytes(damaged), nonce=nonce))
            outcomes.add("taken")
        except (ParseError, NotAuthentic, Refused) as error:
            outcomes.add(type(error).__name__)
            lines.append(str(error))
            accepted += (world.server if number == 1 else world.client).said
    assert outcomes >= {"taken", "NotAuthentic", "ParseError", "PolicyRefusal" if number == 1 else "Refused"}
    assert not accepted, "what is refused makes no SA"
    assert all(len(line.splitlines()) == 1 for line in lines)
