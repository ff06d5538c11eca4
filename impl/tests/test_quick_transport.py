"""Quick Mode in transport mode: who is named, what is compared, and what each end's SA is then for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ike_world import CLIENT, INITIATOR, PUBLIC, RESPONDER, SERVER
from quick_world import QuickWorld, agree, child_of, transport

from espthrunat.ike.identity import Identity
from espthrunat.ike.nat_traversal import NatStatus
from espthrunat.ike.policy import EncapsulationPolicy
from espthrunat.ike.quick_mode import PolicyRefusal
from espthrunat.messages import Encapsulation, Mode, Selector
from espthrunat.wire.isakmp import Chain
from espthrunat.wire.payloads import Identification, IdType, NotifyType, Payload, SecurityAssociation
from espthrunat.wire.proposal import Phase2Attribute

TCP, UDP = 6, 17
HTTP, L2TP = 80, 1701


def mode_on_the_wire(message: Chain) -> int | None:
    (proposal,) = message.one(SecurityAssociation).proposals
    return proposal.transforms[0].attribute(Phase2Attribute.ENCAPSULATION_MODE)


def without_ids(message: Chain) -> list[Payload]:
    return [item.payload for item in message[1:] if not isinstance(item.payload, Identification)]


@pytest.mark.draft("QM-1")
@pytest.mark.parametrize(
    ("mode", "nat", "number"),
    [
        (Mode.TRANSPORT, NatStatus.DETECTED, 61441),
        (Mode.TRANSPORT, NatStatus.NONE, 2),
        (Mode.TUNNEL, NatStatus.DETECTED, 61440),
        (Mode.TUNNEL, NatStatus.NONE, 1),
    ],
)
def test_the_encapsulation_mode_on_the_wire(mode: Mode, nat: NatStatus, number: int) -> None:
    client, server = INITIATOR, RESPONDER
    if mode == Mode.TRANSPORT:
        client, server = transport(client), transport(server)
    world = QuickWorld((client,), (server,), nat=nat)
    ends = world.run(client)
    assert agree(*ends)
    assert [mode_on_the_wire(message) for message in world.wire[:2]] == [number, number]
    for end in ends:
        assert child_of(end).mode == mode
        wanted = Encapsulation.UDP if nat == NatStatus.DETECTED else Encapsulation.NONE
        assert child_of(end).encapsulation == wanted


@pytest.mark.draft("QM-2")
def test_policy_may_force_udp_in_transport_mode_too() -> None:
    forced = replace(transport(INITIATOR), encapsulation=EncapsulationPolicy.ALWAYS)
    world = QuickWorld((forced,), (transport(RESPONDER),), nat=NatStatus.NONE)
    assert agree(*world.run(forced))
    assert mode_on_the_wire(world.wire[0]) == 61441


@pytest.mark.draft("QM-4")
def test_behind_a_nat_names_stand_for_source_and_destination() -> None:
    client = transport(INITIATOR, UDP, L2TP, L2TP)
    world = QuickWorld((client,), (transport(RESPONDER, UDP, L2TP),))
    world.run(client)
    expected = [
        Identification(IdType.FQDN, b"client1.example", UDP, L2TP),
        Identification(IdType.FQDN, b"server.example", UDP, L2TP),
    ]
    assert world.wire[0].all(Identification) == expected
    assert world.wire[1].all(Identification) == expected, "the responder repeats them"


@pytest.mark.draft("QM-4")
@pytest.mark.parametrize("nat", [NatStatus.NONE, NatStatus.UNKNOWN])
def test_an_address_is_a_proxy_identity_where_it_is_real(nat: NatStatus) -> None:
    client = transport(INITIATOR)
    world = QuickWorld((client,), (transport(RESPONDER),), nat=nat)
    world.run(client)
    assert world.wire[0].all(Identification) == [
        Identification(IdType.IPV4_ADDR, bytes([192, 168, 1, 11])),
        Identification(IdType.IPV4_ADDR, bytes([203, 0, 113, 18])),
    ]


@pytest.mark.draft("QM-4")
def test_a_user_at_a_name_is_sent_as_what_it_is() -> None:
    client = replace(transport(INITIATOR), local_identity=Identity.from_text("anna@example.org"))
    world = QuickWorld((client,), (transport(RESPONDER),))
    world.run(client)
    assert world.wire[0].all(Identification)[0] == Identification(IdType.USER_FQDN, b"anna@example.org")


@pytest.mark.draft("QM-6")
def test_each_end_sees_the_traffic_between_the_addresses_of_main_mode() -> None:
    client = transport(INITIATOR, TCP, 0, HTTP)
    world = QuickWorld((client,), (transport(RESPONDER, TCP, HTTP),))
    here, there = world.run(client)
    assert child_of(here).selector == Selector(f"{CLIENT}/32", f"{SERVER}/32", TCP, 0, HTTP)
    assert child_of(there).selector == Selector(f"{SERVER}/32", f"{PUBLIC}/32", TCP, HTTP, 0)


@pytest.mark.draft("QM-6")
@pytest.mark.draft("SEC-2")
@pytest.mark.parametrize(
    "claim",
    [
        Identification(IdType.IPV4_ADDR, bytes([10, 99, 0, 7])),
        Identification(IdType.FQDN, b"somebody.else"),
        Identification(IdType.FQDN, b"\xff\x00\n"),
        Identification(IdType.IPV4_ADDR_SUBNET, bytes(8)),
        Identification(11, b"a key id"),
    ],
)
def test_whatever_transport_identities_claim_the_address_of_main_mode_counts(claim: Identification) -> None:
    client = transport(INITIATOR)
    world = QuickWorld((client,), (transport(RESPONDER),))
    world.run(client)
    message = world.craft(world.client, [*without_ids(world.wire[0]), claim, claim], message_id=78)
    assert child_of(world.answer(message)).selector == Selector(f"{SERVER}/32", f"{PUBLIC}/32")


@pytest.mark.draft("QM-8")
@pytest.mark.parametrize("policy", [0, L2TP])
def test_behind_a_nat_the_source_port_is_ignored(policy: int) -> None:
    client = transport(INITIATOR, UDP, 40_000, L2TP)
    world = QuickWorld((client,), (transport(RESPONDER, UDP, L2TP, policy),))
    here, there = world.run(client)
    assert child_of(here).selector.local_port == 40_000
    assert child_of(there).selector.remote_port == 0
    assert child_of(there).selector.local_port == L2TP


@pytest.mark.draft("QM-8")
def test_without_a_nat_the_source_port_counts() -> None:
    client = transport(INITIATOR, UDP, 40_000, L2TP)
    same, other = transport(RESPONDER, UDP, L2TP, 40_000), transport(RESPONDER, UDP, L2TP, L2TP)
    here, there = QuickWorld((client,), (same,), nat=NatStatus.NONE).run(client)
    assert child_of(there).selector == Selector(f"{SERVER}/32", f"{CLIENT}/32", UDP, L2TP, 40_000)
    assert agree(here, there)
    with pytest.raises(PolicyRefusal, match="protocol 17 port 40000"):
        QuickWorld((client,), (other,), nat=NatStatus.NONE).run(client)


@pytest.mark.draft("QM-6")
@pytest.mark.draft("SEC-2")
@pytest.mark.parametrize("nat", [NatStatus.DETECTED, NatStatus.NONE])
@pytest.mark.parametrize("asked", [(TCP, 0, 22), (TCP, 0, 0), (UDP, 0, HTTP), (0, 0, 0)])
def test_protocol_and_destination_port_must_be_the_policys(asked: tuple[int, int, int], nat: NatStatus) -> None:
    client = transport(INITIATOR, *asked)
    world = QuickWorld((client,), (transport(RESPONDER, TCP, HTTP),), nat=nat)
    with pytest.raises(PolicyRefusal, match="no connection of this peer protects") as refused:
        world.run(client)
    assert refused.value.notify == NotifyType.INVALID_ID_INFORMATION
    assert not world.server.sent


@pytest.mark.parametrize("odd", [0, 1])
def test_two_identities_of_different_protocols_are_refused(odd: int) -> None:
    client = transport(INITIATOR, TCP, 0, HTTP)
    world = QuickWorld((client,), (transport(RESPONDER, TCP, HTTP),))
    world.run(client)
    ids = world.wire[0].all(Identification)
    ids[odd] = replace(ids[odd], protocol=UDP)
    message = world.craft(world.client, [*without_ids(world.wire[0]), *ids], message_id=78)
    with pytest.raises(PolicyRefusal, match="no connection of this peer"):
        world.answer(message)


def test_no_identities_mean_all_traffic_between_the_hosts() -> None:
    client = transport(INITIATOR)
    world = QuickWorld((client,), (transport(RESPONDER),))
    world.run(client)
    bare = world.craft(world.client, without_ids(world.wire[0]), message_id=78)
    assert child_of(world.answer(bare)).selector == Selector(f"{SERVER}/32", f"{PUBLIC}/32")
    for narrow in ((TCP, HTTP), (TCP, 0)):
        other = QuickWorld((client,), (transport(RESPONDER, *narrow),))
        with pytest.raises(PolicyRefusal, match="all traffic between the two hosts"):
            other.answer(bare)


def test_one_identity_alone_is_refused() -> None:
    client = transport(INITIATOR)
    world = QuickWorld((client,), (transport(RESPONDER),))
    world.run(client)
    (one, _) = world.wire[0].all(Identification)
    with pytest.raises(PolicyRefusal, match="1 identities"):
        world.answer(world.craft(world.client, [*without_ids(world.wire[0]), one], message_id=78))


@pytest.mark.draft("QM-3")
@pytest.mark.parametrize(
    ("client_policy", "server_policy", "nat", "reason"),
    [
        ("auto", "always", NatStatus.NONE, 'ESP without UDP, which encapsulation = "always" forbids'),
        ("always", "never", NatStatus.NONE, 'ESP in UDP, which encapsulation = "never" forbids'),
        ("never", "auto", NatStatus.DETECTED, "a NAT lies between"),
        ("always", "auto", NatStatus.UNKNOWN, "the peer has not announced ESP in UDP"),
    ],
)
def test_encapsulation_policies_refuse_in_transport_mode_too(
    client_policy: str, server_policy: str, nat: NatStatus, reason: str
) -> None:
    client = replace(transport(INITIATOR), encapsulation=EncapsulationPolicy(client_policy))
    server = replace(transport(RESPONDER), encapsulation=EncapsulationPolicy(server_policy))
    with pytest.raises(PolicyRefusal, match=reason) as refused:
        QuickWorld((client,), (server,), nat=nat).run(client)
    assert refused.value.notify == NotifyType.NO_PROPOSAL_CHOSEN


@pytest.mark.draft("QM-3")
def test_plain_transport_mode_is_refused_where_a_nat_lies_between() -> None:
    client = transport(INITIATOR)
    world = QuickWorld((client,), (transport(RESPONDER),))
    world.client.sa.nat = NatStatus.NONE  # the client lies to itself
    with pytest.raises(PolicyRefusal, match="the NAT between would not let through"):
        world.run(client)


@pytest.mark.parametrize("offered", list(Mode))
def test_a_mode_that_policy_does_not_have_is_named(offered: Mode) -> None:
    clients = {Mode.TUNNEL: INITIATOR, Mode.TRANSPORT: transport(INITIATOR)}
    servers = {Mode.TUNNEL: transport(RESPONDER), Mode.TRANSPORT: RESPONDER}
    with pytest.raises(PolicyRefusal, match=f"it offers {offered} mode, the policy has t") as refused:
        QuickWorld((clients[offered],), (servers[offered],)).run(clients[offered])
    assert refused.value.notify == NotifyType.NO_PROPOSAL_CHOSEN


def test_of_both_modes_in_one_proposal_the_policys_is_taken() -> None:
    client = transport(INITIATOR)
    world = QuickWorld((client,), (transport(RESPONDER),))
    world.run(client)
    (proposal,) = world.wire[0].one(SecurityAssociation).proposals
    (transform,) = proposal.transforms
    kind = Phase2Attribute.ENCAPSULATION_MODE
    tunnel = tuple(replace(a, value=61440) if a.type == kind else a for a in transform.attributes)
    transforms = (replace(transform, attributes=tunnel), replace(transform, number=2))
    both = SecurityAssociation((replace(proposal, transforms=transforms),))
    payloads = [both if isinstance(i.payload, SecurityAssociation) else i.payload for i in world.wire[0][1:]]
    assert child_of(world.answer(world.craft(world.client, payloads, message_id=78))).mode == Mode.TRANSPORT


@pytest.mark.parametrize("first", list(Mode))
def test_tunnel_and_transport_mode_stand_side_by_side_with_one_peer(first: Mode) -> None:
    tunnel, plain = RESPONDER, replace(transport(RESPONDER), name="transport")
    servers = (tunnel, plain) if first == Mode.TUNNEL else (plain, tunnel)
    world = QuickWorld((INITIATOR, transport(INITIATOR)), servers)
    _, one = world.run(INITIATOR, message_id=1)
    _, other = world.run(transport(INITIATOR), message_id=2)
    assert (child_of(one).connection, child_of(one).mode) == ("client1", Mode.TUNNEL)
    assert (child_of(other).connection, child_of(other).mode) == ("transport", Mode.TRANSPORT)
    assert child_of(one).selector == RESPONDER.selector


# a server that begins


@pytest.mark.draft("QM-8")
@pytest.mark.parametrize("phase1_by_client", [True, False], ids=["phase 1 by client", "phase 1 by server"])
@pytest.mark.parametrize("server_knows_port", [True, False])
def test_both_ends_may_renew_a_pair_and_its_traffic_stays_the_same(
    server_knows_port: bool, phase1_by_client: bool
) -> None:
    client = transport(INITIATOR, UDP, L2TP, L2TP)
    server = transport(RESPONDER, UDP, L2TP, L2TP if server_knows_port else 0)
    first = [child_of(end).selector for end in QuickWorld((client,), (server,)).run(client)]
    world = QuickWorld((client,), (server,), phase1_by_client=phase1_by_client)
    resolved = replace(server, remote=PUBLIC, remote_port=world.server.sa.path.remote_port)
    for number, (connection, by_client) in enumerate([(resolved, False), (client, True), (resolved, False)]):
        ends = world.run(connection, by_client=by_client, message_id=100 + number)
        assert agree(*ends)
        assert [child_of(end).selector for end in ends] == first
        assert [child_of(end).initiator for end in ends] == [by_client, not by_client]


@pytest.mark.draft("QM-4")
def test_a_server_that_begins_names_itself_first() -> None:
    client, server = transport(INITIATOR), transport(RESPONDER)
    world = QuickWorld((client,), (server,))
    world.run(server, by_client=False)
    names = [payload.data for payload in world.wire[0].all(Identification)]
    assert names == [b"server.example", b"client1.example"]


def test_a_client_finds_the_connection_that_its_server_renews() -> None:
    web = replace(transport(INITIATOR, TCP, 0, HTTP), name="web")
    l2tp = replace(transport(INITIATOR, UDP, L2TP, L2TP), name="l2tp")
    world = QuickWorld((web, l2tp), (transport(RESPONDER, UDP, L2TP),))
    client, _ = world.run(transport(RESPONDER, UDP, L2TP), by_client=False)
    assert child_of(client).connection == "l2tp"
    assert child_of(client).selector == Selector(f"{CLIENT}/32", f"{SERVER}/32", UDP, L2TP, L2TP)


@pytest.mark.draft("SEC-2")
def test_a_server_gets_no_port_of_its_client_that_the_clients_policy_does_not_give_it() -> None:
    client = transport(INITIATOR, TCP, 5000, HTTP)
    for wrong in (transport(RESPONDER, TCP, 22), transport(RESPONDER, TCP, HTTP, 6000), transport(RESPONDER)):
        with pytest.raises(PolicyRefusal, match="no connection of this peer protects"):
            QuickWorld((client,), (wrong,)).run(wrong, by_client=False)
