"""Endpoints in every stage of every exchange, and datagrams from people who have no keys."""

from __future__ import annotations

import pytest
from fuzz_world import (
    CHANGES,
    ENDS,
    HONEST,
    STAGES,
    STRANGE,
    Edit,
    Stage,
    edited,
    edits,
    fuzz,
    half_open,
    hit,
    is_first_message,
    real_messages,
    recovers,
    spliced,
)
from hypothesis import given
from hypothesis import strategies as st
from ike_world import World

from espthrunat.ike import events
from espthrunat.wire.isakmp import HEADER_OCTETS

STRANGERS = [data for _, data in real_messages()]  # whose cookies no stage knows
index = st.integers(0, 0xFFFF)
heads = st.tuples(st.sampled_from([2, 4, 5, 6, 32]), st.integers(0, 255), st.booleans(), st.booleans())
edited_lists = st.lists(st.tuples(index, edits), min_size=1, max_size=8)


def headed(cookies: bytes, head: tuple[int, int, bool, bool], body: bytes) -> bytes:
    """A header that is in order before a body that need not be."""
    exchange, first, encrypted, zero = head
    rest = bytes([first, 0x10, exchange, encrypted]) + (bytes(4) if zero else b"\1\2\3\4")
    return cookies + rest + (HEADER_OCTETS + len(body)).to_bytes(4, "big") + body


def own(world: World, which: int, changes: list[Edit]) -> bytes:
    """One of the messages that were sent in this world, edited, its cookies with it."""
    messages = [data for data, _ in world.wire]
    data = messages[which % len(messages)]
    if which % 3 == 0:
        data = spliced(data, STRANGERS[which % len(STRANGERS)], which)
    return edited(data, changes)


def own_or_arbitrary(world: World, which: int, changes: list[Edit]) -> bytes:
    return own(world, which, changes) if world.wire else edited(STRANGERS[which % len(STRANGERS)], changes)


def live_cookies(world: World) -> set[bytes]:
    return {sa.initiator_cookie for sa in (*world.client.ike_sas(), *world.server.ike_sas())}


def goes_on(stage: Stage, world: World) -> None:
    """The honest exchange completes, or has never ended."""
    before = (world.client.children(), world.server.children())
    world.run(120.0)
    assert world.up, f"{stage}: {world.reasons(world.client_events)} / {world.reasons(world.server_events)}"
    assert not half_open(world.client)
    assert not half_open(world.server), "what strangers have begun ends"
    if stage.authenticated and not stage.rekey and len(before[0]) == len(before[1]) == 1:
        assert (world.client.children(), world.server.children()) == before


def test_the_stages_are_what_they_say() -> None:
    """Otherwise all that follows would be said of something else."""
    for stage in STAGES:
        world, gate = stage.reach()
        assert gate.left <= 0 or not stage.rekey
        proven = [any(sa.established for sa in end.ike_sas()) for end in (world.client, world.server)]
        if not stage.rekey:
            assert all(proven) == stage.authenticated, str(stage)
        gate.open()
        goes_on(stage, world)


@pytest.mark.draft("SEC-4", "WIRE-4")
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_whoever_is_elsewhere_disturbs_nothing(stage: Stage) -> None:
    """Someone who reads along, but sends from another address: edited copies of all that was sent, cookies and all."""

    @fuzz(5)
    @given(edited_lists)
    def strangers(attack: list[tuple[int, list[Edit]]]) -> None:
        world, gate = stage.reach()
        for which, changes in attack:
            damaged = own_or_arbitrary(world, which, changes)
            for to_server in (True, False):
                said = hit(world, damaged, STRANGE[to_server], to_server=to_server)
                assert not any(isinstance(e, CHANGES) for e in said)
        gate.open()
        goes_on(stage, world)

    strangers()


@pytest.mark.draft("SEC-4", "WIRE-2")
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_whoever_knows_no_cookies_disturbs_nothing(stage: Stage) -> None:
    """Someone who forges the peer's own address and port, but has never seen a message of this exchange."""

    @fuzz(5)
    @given(edited_lists, st.lists(st.tuples(heads, st.binary(max_size=120)), max_size=4), st.binary(max_size=80))
    def forgers(
        attack: list[tuple[int, list[Edit]]], bodies: list[tuple[tuple[int, int, bool, bool], bytes]], octets: bytes
    ) -> None:
        world, gate = stage.reach()
        known = live_cookies(world)
        attacks = [edited(STRANGERS[which % len(STRANGERS)], changes) for which, changes in attack]
        attacks += [headed(b"stranger" + bytes(8), head, body) for head, body in bodies]
        attacks += [headed(b"stranger" * 2, head, body) for head, body in bodies]
        attacks.append(octets)
        for damaged in attacks:
            assert damaged[:8] not in known
            for to_server in (True, False):
                hit(world, damaged, HONEST[to_server], to_server=to_server)
        gate.open()
        goes_on(stage, world)

    forgers()


@pytest.mark.draft("SEC-4", "WIRE-4")
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.authenticated], ids=str)
def test_whoever_has_no_keys_disturbs_nothing_once_both_ends_have(stage: Stage) -> None:
    """Someone on the path, with everything that was sent."""

    @fuzz(25)
    @given(edited_lists, st.lists(st.tuples(heads, st.binary(max_size=120)), max_size=4))
    def forgers(attack: list[tuple[int, list[Edit]]], bodies: list[tuple[tuple[int, int, bool, bool], bytes]]) -> None:
        world, gate = stage.reach()
        real = {data for data, _ in world.wire}
        attacks = [own(world, which, changes) for which, changes in attack]
        attacks += [headed(world.wire[-1][0][:16], head, body) for head, body in bodies]
        for damaged in attacks:
            if damaged in real:
                continue
            for to_server in (True, False):
                said = hit(world, damaged, HONEST[to_server], to_server=to_server)
                assert not any(isinstance(e, CHANGES) for e in said)
        gate.open()
        goes_on(stage, world)

    forgers()


@pytest.mark.draft("SEC-4", "NATD-8")
@pytest.mark.parametrize("ends", ["main-psk", "main-rsa", "aggressive-psk"])
def test_one_wrong_bit_anywhere_in_any_message_changes_nothing_that_stands(ends: str) -> None:
    """All octets of all messages, NAT discovery and vendor IDs among them, which no HASH covers."""
    world, _ = Stage(ends, 9).reach()
    before = (world.client_sa(), world.server_sa(), len(world.client.ike_sas()))
    for data, to_server in list(world.wire):
        for at in range(8, len(data)):
            damaged = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            said = hit(world, damaged, HONEST[to_server], to_server=to_server)
            assert not any(isinstance(e, CHANGES) for e in said), f"{said} because of octet {at} of {data.hex()}"
    assert (world.client_sa(), world.server_sa(), len(world.client.ike_sas())) == before


@pytest.mark.parametrize("stage", [stage for stage in STAGES if not stage.authenticated], ids=str)
def test_whoever_is_on_the_path_can_spoil_phase_1_and_nothing_more(stage: Stage) -> None:
    """Messages in the clear can be forged by who sees the cookies; that may cost an attempt, and never more."""

    @fuzz(5)
    @given(edited_lists, st.lists(st.tuples(heads, st.binary(max_size=120)), max_size=4))
    def forgers(attack: list[tuple[int, list[Edit]]], bodies: list[tuple[tuple[int, int, bool, bool], bytes]]) -> None:
        world, gate = stage.reach()
        attacks = [own(world, which, changes) for which, changes in attack]
        for cookies in [sa.initiator_cookie + sa.responder_cookie for sa in world.client.ike_sas()]:
            attacks += [headed(cookies, head, body) for head, body in bodies]
            attacks += [
                cookies + spliced(STRANGERS[which % len(STRANGERS)], b"", 0)[16:] for which, _ in attack
            ]  # the right message of another exchange
        for damaged in attacks:
            for to_server in (True, False):
                hit(world, damaged, HONEST[to_server], to_server=to_server)
        gate.open()
        assert recovers(world), f"{world.reasons(world.client_events)} / {world.reasons(world.server_events)}"

    forgers()


@pytest.mark.draft("WIRE-4")
@pytest.mark.parametrize("stage", [Stage("main-psk", 9), Stage("main-psk", 4), Stage("aggressive-psk", 2)], ids=str)
def test_esp_with_a_damaged_marker_makes_no_state_and_gets_no_answer(stage: Stage) -> None:
    """What IKE sees of it: octets of which the first eight are not all zero."""

    @fuzz(60)
    @given(st.integers(0, 63), st.integers(0, 0xFFFFFFFF), st.integers(1, 50), st.binary(max_size=120))
    def damage(bit: int, spi: int, sequence: int, ciphertext: bytes) -> None:
        marker = (1 << bit).to_bytes(8, "big")
        datagram = marker + spi.to_bytes(4, "big") + sequence.to_bytes(4, "big") + ciphertext
        before = (world.client.children(), world.server.children(), len(world.server.ike_sas()))
        for to_server in (True, False):
            said = hit(world, datagram, HONEST[to_server], to_server=to_server)
            assert [type(event) for event in said] == [events.DatagramRefused], "one thing that a log can limit"
        assert (world.client.children(), world.server.children(), len(world.server.ike_sas())) == before

    world, gate = stage.reach()
    damage()
    gate.open()
    goes_on(stage, world)


def test_a_flood_of_first_messages_leaves_no_more_than_one_half_open_exchange_each() -> None:
    first = [data for data in STRANGERS if is_first_message(data)]
    assert len(first) == len(ENDS), "one an exchange"

    @fuzz(25)
    @given(st.lists(st.tuples(st.sampled_from(first), st.integers(1, 0xFFFF), edits), min_size=1, max_size=30))
    def flood(attack: list[tuple[bytes, int, list[Edit]]]) -> None:
        world, gate = Stage("main-psk", 9).reach()
        sent = set()
        for message, cookie, changes in attack:
            damaged = edited(cookie.to_bytes(8, "big") + message[8:], changes)
            sent.add(damaged[:8])
            hit(world, damaged, STRANGE[True], to_server=True)
            hit(world, damaged, STRANGE[True], to_server=True)
        assert half_open(world.server) <= len(sent)
        gate.open()
        goes_on(Stage("main-psk", 9), world)

    flood()
