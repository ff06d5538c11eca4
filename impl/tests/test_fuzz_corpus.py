"""Every input of the corpus, against every parser and against live endpoints: each file is a regression test."""

from __future__ import annotations

import functools

import pytest
from fuzz_world import HONEST, STRANGE, Stage, corpus, hit, read_hex, recovers
from ike_world import World
from test_fuzz_control import check as check_request
from test_fuzz_plane import ELSEWHERE, PEER, PlaneParts
from test_fuzz_wire import check_chain, check_message, parsed

from espthrunat.ike.identity import Identity
from espthrunat.wire import ip
from espthrunat.wire.payloads import PAYLOADS, Identification
from espthrunat.wire.proposal import parse_attributes, parse_proposals

INPUTS = corpus()
every_input = pytest.mark.parametrize("name", INPUTS)

ESTABLISHED = Stage("main-psk", 9)
STAGES = [
    Stage("main-psk", 0),
    Stage("main-psk", 3),
    Stage("main-rsa", 5),
    Stage("aggressive-psk", 1),
    Stage("main-psk", 7),
    Stage("main-psk", 1, "phase 1"),
]


def test_the_corpus_has_what_it_should() -> None:
    assert len(INPUTS) >= 40
    assert {name.partition("-")[0] for name in INPUTS} <= {"real", "made", "found"}
    assert all(INPUTS.values()), "an empty file"
    assert read_hex("# a remark\n00ff # another\n10") == b"\x00\xff\x10"


@pytest.mark.draft("WIRE-2", "NATD-8")
@every_input
def test_no_parser_fails(name: str) -> None:
    data = INPUTS[name]
    check_message(data)
    check_request(data)
    ip.parse_ipv4(data)
    for body in (data, data[28:], data[40:]):
        for kind in PAYLOADS:
            check_chain(kind, body, padding=16)
            check_chain(kind, (len(body) + 4).to_bytes(4, "big") + body)
        for parse in (parse_proposals, parse_attributes):
            parsed(parse, body, 0)
        for id_type in (1, 2, 3, 4, 9):
            payload = parsed(Identification.parse, bytes([id_type, 0, 0, 0]) + body, 0)
            identity = parsed(Identity.from_payload, payload) if payload else None
            assert identity is None or identity.text.isprintable()


def test_real_messages_are_understood() -> None:
    """Otherwise the corpus would show nothing but refusals."""
    for name, data in INPUTS.items():
        if name.startswith("real-"):
            check_message(data)
            assert int.from_bytes(data[24:28], "big") == len(data), name


@pytest.mark.draft("WIRE-3", "SEC-4")
@every_input
def test_the_plane_counts_it_once_and_moves_nothing(name: str) -> None:
    parts = PlaneParts()
    before = parts.paths
    for source in (PEER, ELSEWHERE):
        parts.arrive(INPUTS[name], source)
        parts.arrive(bytes(8) + INPUTS[name], source)
        parts.arrive_bare(INPUTS[name], source[0])
    assert parts.paths == before
    assert not parts.kernel


@functools.cache
def established() -> World:
    return ESTABLISHED.reach()[0]


@pytest.mark.draft("SEC-4", "WIRE-4")
@every_input
def test_an_established_connection_does_not_notice(name: str) -> None:
    world = established()
    before = (world.client_sa(), world.server_sa())
    for to_server in (True, False):
        hit(world, INPUTS[name], HONEST[to_server], to_server=to_server)
        hit(world, INPUTS[name], STRANGE[to_server], to_server=to_server)
        real = world.wire[-1][0][:16]
        hit(world, real + INPUTS[name][16:], HONEST[to_server], to_server=to_server)
    assert (world.client_sa(), world.server_sa()) == before
    assert world.up


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_all_inputs_at_once_in_the_middle_of_an_exchange_cost_one_attempt_at_most(stage: Stage) -> None:
    world, gate = stage.reach()
    for data in INPUTS.values():
        cookies = [sa.initiator_cookie + sa.responder_cookie for sa in world.client.ike_sas()]
        for damaged in (data, *(mine + data[16:] for mine in cookies)):
            for to_server in (True, False):
                hit(world, damaged, STRANGE[to_server], to_server=to_server)
                hit(world, damaged, HONEST[to_server], to_server=to_server)
    gate.open()
    assert recovers(world), f"{world.reasons(world.client_events)} / {world.reasons(world.server_events)}"
