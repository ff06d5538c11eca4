"""Main Mode and Quick Mode between two endpoints, on a clock that only the test moves."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from ike_world import INITIATOR, RESPONDER, SERVER, Nat, World, intact

from espthrunat.esp.suites import SUITES
from espthrunat.ike import events
from espthrunat.ike.groups import GROUPS
from espthrunat.ike.identity import Identity, IdentityPattern
from espthrunat.ike.policy import EncapsulationPolicy, IkeSuite, Secret
from espthrunat.messages import Encapsulation, Path, Selector

MESSAGES = 9  # Main Mode has six, Quick Mode three


def test_a_connection_through_a_nat_comes_up_in_nine_messages() -> None:
    world = World().connect(5.0)
    assert world.up
    assert len(world.wire) == MESSAGES
    assert world.client_sa().encapsulation == Encapsulation.UDP
    assert world.server_sa().path == Path(SERVER, 500, "203.0.113.2", 1024), "the responder answers the mapped port"


@pytest.mark.draft("NATD-5")
@pytest.mark.draft("NATD-6")
def test_both_ends_detect_the_nat() -> None:
    world = World().connect()
    for log in (world.client_events, world.server_events):
        assert [e.nat for e in log if isinstance(e, events.NatDetected)] == [True]


@pytest.mark.draft("QM-2")
def test_without_a_nat_both_ends_say_so_and_esp_needs_no_udp() -> None:
    world = World(nat=Nat(public=None)).connect()
    for log in (world.client_events, world.server_events):
        assert [e.nat for e in log if isinstance(e, events.NatDetected)] == [False]
    assert world.up
    assert world.client_sa().encapsulation == Encapsulation.NONE


def test_policy_may_force_udp_without_a_nat() -> None:
    forced = replace(INITIATOR, encapsulation=EncapsulationPolicy.ALWAYS)
    world = World(forced, nat=Nat(public=None)).connect()
    assert world.up
    assert world.client_sa().encapsulation == Encapsulation.UDP


@pytest.mark.draft("QM-3")
def test_an_offer_without_udp_is_refused_where_policy_wants_udp() -> None:
    strict = replace(RESPONDER, encapsulation=EncapsulationPolicy.ALWAYS)
    world = World(INITIATOR, strict, nat=Nat(public=None)).connect()
    assert not world.client.children()
    assert not world.server.children()
    assert 'encapsulation = "always" forbids' in world.reasons(world.server_events)
    assert "NO-PROPOSAL-CHOSEN" in world.reasons(world.client_events)


def test_a_policy_without_udp_says_that_the_nat_is_in_its_way() -> None:
    never = replace(INITIATOR, encapsulation=EncapsulationPolicy.NEVER)
    world = World(never).connect()
    assert not world.client.children()
    assert "a NAT lies between" in world.reasons(world.client_events)


@pytest.mark.parametrize(
    "suite",
    [
        "aes128-sha1-modp2048",
        "aes256-sha256-modp3072",
        "aes128-sha384-modp4096",
        "aes256-sha512-ecp256",
        "aes256-sha1-ecp384",
    ],
)
def test_every_hash_key_length_and_group_works(suite: str) -> None:
    suites = (IkeSuite.from_name(suite),)
    world = World(replace(INITIATOR, ike_suites=suites), replace(RESPONDER, ike_suites=suites)).connect()
    assert world.up


@pytest.mark.parametrize("pfs", [None, "modp2048", "ecp256", "ecp384"])
@pytest.mark.parametrize("esp", list(SUITES))
def test_every_esp_suite_works_with_and_without_pfs(esp: str, pfs: str | None) -> None:
    suites, group = (SUITES[esp],), GROUPS[pfs] if pfs else None
    client = replace(INITIATOR, esp_suites=suites, pfs=group)
    world = World(client, replace(RESPONDER, esp_suites=suites, pfs=group)).connect()
    assert world.up
    assert world.client_sa().suite.name == esp


def test_pfs_gives_other_keys_than_none() -> None:
    plain = World().connect().client_sa()
    group = GROUPS["ecp256"]
    secret = World(replace(INITIATOR, pfs=group), replace(RESPONDER, pfs=group)).connect().client_sa()
    assert plain.inbound_keymat != secret.inbound_keymat


def test_the_responder_takes_the_first_suite_that_it_allows() -> None:
    offered = tuple(IkeSuite.from_name(s) for s in ("aes256-sha512-modp4096", "aes128-sha256-ecp256"))
    world = World(replace(INITIATOR, ike_suites=offered)).connect()
    assert world.up
    assert [e.suite for e in world.client_events if isinstance(e, events.IkeSaEstablished)] == ["aes128-sha256-ecp256"]


@pytest.mark.parametrize("lost", range(MESSAGES))
def test_any_single_datagram_may_be_lost(lost: int) -> None:
    world = World(fate=lambda n, d, s: [] if n == lost else intact(n, d, s)).connect()
    assert world.up


@pytest.mark.parametrize("doubled", range(MESSAGES))
def test_any_datagram_may_come_twice(doubled: int) -> None:
    world = World(fate=lambda n, d, s: intact(n, d, s) * (2 if n == doubled else 1)).connect()
    assert world.up


@pytest.mark.parametrize("late", range(MESSAGES))
def test_any_datagram_may_come_after_its_retransmission(late: int) -> None:
    world = World(fate=lambda n, d, s: [(0.8, d)] if n == late else intact(n, d, s)).connect()
    assert world.up


@pytest.mark.parametrize("late", range(MESSAGES))
def test_a_datagram_repeated_long_afterwards_changes_nothing(late: int) -> None:
    world = World(fate=lambda n, d, s: [*intact(n, d, s), (90.0, d)] if n == late else intact(n, d, s)).connect(30.0)
    before = (world.client_sa(), world.server_sa())
    world.run(120.0)
    assert world.up
    assert (world.client_sa(), world.server_sa()) == before


def test_an_initiator_gives_up_with_a_reason_when_nobody_answers() -> None:
    world = World(fate=lambda n, d, s: []).connect()
    assert "no valid answer to Main Mode message 1" in world.reasons(world.client_events)
    assert len(world.wire) == INITIATOR.retransmission.tries
    assert not world.client.ike_sas()


def test_retransmission_backs_off() -> None:
    times: list[float] = []
    world = World()

    def note_and_lose(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        times.append(world.now)
        return []

    world.fate = note_and_lose
    world.connect()
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps == [0.5, 1.0, 2.0, 4.0]


def test_a_connection_that_is_kept_up_tries_again() -> None:
    dead = True
    world = World(replace(INITIATOR, start=True), fate=lambda n, d, s: [] if dead else intact(n, d, s))
    world.connect(20.0)
    assert not world.up
    dead = False
    world.run(30.0)
    assert world.up


def test_a_wrong_pre_shared_key_is_named_at_both_ends_and_makes_no_sa() -> None:
    world = World(replace(INITIATOR, secret=Secret(b"another key"))).connect()
    assert not world.client.children()
    assert not world.server.children()
    assert "pre-shared keys differ" in world.reasons(world.client_events)
    assert "the keys differ" in world.reasons(world.server_events)
    assert "another key" not in repr(world.client_events) + repr(world.server_events) + repr(INITIATOR)


def test_a_wrong_key_is_noticed_before_every_retransmission_has_been_tried() -> None:
    world = World(replace(INITIATOR, secret=Secret(b"another key"))).connect(2.0)
    assert "AUTHENTICATION-FAILED (not authenticated)" in world.reasons(world.client_events)


def test_a_forged_refusal_does_not_stop_an_exchange() -> None:
    world = World()
    world.fate = lambda n, d, s: [] if n == 1 else intact(n, d, s)  # message 2 is lost: time to forge
    world.client.initiate("server", world.now)
    world.run(0.1)
    forged = bytearray(world.wire[0][0][:8] + bytes(8) + b"\x0b\x10\x05\x00" + bytes(4))
    notification = b"\x00\x00\x00\x0c\x00\x00\x00\x01\x01\x00\x00\x0e"
    world.inject(bytes(forged) + (28 + len(notification)).to_bytes(4, "big") + notification, to_server=False)
    world.fate = lambda n, d, s: [(0.3, d)]
    world.run(0.3)
    assert world.client.ike_sas(), "the initiator still waits"


def test_an_unknown_identity_is_refused_though_its_key_is_right() -> None:
    world = World(replace(INITIATOR, local_identity=Identity.from_text("stranger.example"))).connect()
    assert not world.server.children()
    assert "stranger.example" in world.reasons(world.server_events)


def test_a_responder_that_proves_to_be_another_is_refused() -> None:
    world = World(replace(INITIATOR, remote_identity=IdentityPattern("bank.example"))).connect()
    assert not world.client.children()
    assert "proved to be server.example, the connection wants bank.example" in world.reasons(world.client_events)


@pytest.mark.draft("ID-1")
def test_an_address_is_no_identity_behind_a_nat() -> None:
    address = replace(INITIATOR, local_identity=Identity.from_text("192.168.1.11"))
    anyone = replace(RESPONDER, remote_identity=IdentityPattern("any"))
    world = World(address, anyone).connect()
    assert "must be a name, not an address" in world.reasons(world.client_events)
    assert World(address, anyone, nat=Nat(public=None)).connect().up


@pytest.mark.draft("SEC-2")
@pytest.mark.parametrize("stolen", ["10.99.0.7/32", "192.168.1.0/24", "0.0.0.0/0"])
def test_a_client_gets_no_traffic_but_what_static_policy_gives_it(stolen: str) -> None:
    greedy = replace(INITIATOR, selector=Selector(stolen, "10.99.0.1/32"))
    world = World(greedy).connect()
    assert not world.server.children()
    assert stolen in world.reasons(world.server_events)
    assert "INVALID-ID-INFORMATION" in world.reasons(world.client_events)


def test_no_common_ike_suite_is_named_at_both_ends() -> None:
    world = World(replace(INITIATOR, ike_suites=(IkeSuite.from_name("aes256-sha512-modp4096"),))).connect()
    assert "no IKE suite that is allowed" in world.reasons(world.server_events)
    assert "NO-PROPOSAL-CHOSEN (not authenticated)" in world.reasons(world.client_events)


def test_no_common_esp_suite_is_named_at_both_ends() -> None:
    world = World(replace(INITIATOR, esp_suites=(SUITES["aes256-sha256"],))).connect()
    assert "no ESP suite that is allowed" in world.reasons(world.server_events)
    assert "NO-PROPOSAL-CHOSEN" in world.reasons(world.client_events)


def test_a_responder_finds_the_right_one_of_several_keys() -> None:
    world = World()
    others = [
        replace(RESPONDER, name=f"other{n}", secret=Secret(b"%d" % n), selector=Selector("10.0.0.1/32", "10.0.1.1/32"))
        for n in range(5)
    ]
    world.server.connections = {c.name: c for c in [*others, RESPONDER]}
    world.connect()
    assert world.up
    assert world.server_sa().connection == "client1"


def test_shutting_down_deletes_at_both_ends() -> None:
    world = World().connect()
    world.client.shut_down(world.now)
    world.run(1.0)
    for endpoint in (world.client, world.server):
        assert not endpoint.children()
        assert not endpoint.ike_sas()


def test_a_lifetime_ends_at_both_ends() -> None:
    world = World(replace(INITIATOR, esp_lifetime=100, rekey=False), replace(RESPONDER, rekey=False)).connect(50.0)
    assert world.up
    world.run(60.0)
    assert not world.client.children()
    assert not world.server.children()


def test_a_responder_is_up_only_once_the_initiator_has_confirmed() -> None:
    world = World(fate=lambda n, d, s: [] if n == 8 else intact(n, d, s))  # Quick Mode's last message is lost
    world.connect(0.2)
    assert world.client.usable_children()
    assert world.server.children(), "traffic is accepted"
    assert not world.server.usable_children(), "but none may be sent"
    world.run(5.0)
    assert world.server.usable_children()


def test_two_clients_with_one_address_and_different_ports_are_two_peers() -> None:
    world = World().connect()
    first = world.server_sa()
    world.nat.forget()
    world.nat.first_port = 7777
    second = World(nat=world.nat, seed=7)
    second.server = world.server
    second.connect()
    assert {child.path.remote_port for child in world.server.children()} == {1024, 7777}
    assert first in world.server.children()
