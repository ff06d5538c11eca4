"""Damaged and forged datagrams: nothing crashes, and nothing moves an SA that stands."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ike_world import CLIENT, SERVER, World, intact

from espthrunat.messages import Path


def mutations(data: bytes, seed: int) -> list[bytes]:
    """Damage of every kind: flipped bits, cut ends, additions, exchanged octets."""
    chance = random.Random(seed)
    damaged = []
    for _ in range(20):
        octets = bytearray(data)
        octets[chance.randrange(len(octets))] ^= 1 << chance.randrange(8)
        damaged.append(bytes(octets))
    damaged += [data[: chance.randrange(len(data))] for _ in range(5)]
    damaged += [data + chance.randbytes(chance.randrange(1, 40)) for _ in range(5)]
    for _ in range(5):
        octets = bytearray(data)
        start = chance.randrange(len(octets))
        octets[start : start + 8] = chance.randbytes(min(8, len(octets) - start))
        damaged.append(bytes(octets))
    return [d for d in damaged if d != data]


@pytest.mark.parametrize("step", range(9))
def test_a_damaged_copy_of_any_message_after_it_harms_nothing(step: int) -> None:
    def fate(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        arrivals = intact(number, data, to_server)
        if number == step:
            arrivals += [(0.02 + i / 1000, d) for i, d in enumerate(mutations(data, step))]
        return arrivals

    assert World(fate=fate).connect().up


@pytest.mark.parametrize("step", range(9))
def test_damaged_datagrams_leave_an_established_sa_as_it_was(step: int) -> None:
    world = World().connect()
    before = (world.client_sa(), world.server_sa())
    data, to_server = world.wire[step]
    for damaged in mutations(data, 100 + step):
        world.inject(damaged, to_server=to_server)
        world.inject(damaged, to_server=not to_server)
    world.run(120.0)
    assert world.up
    assert (world.client_sa(), world.server_sa()) == before


@pytest.mark.draft("SEC-4")
def test_a_message_from_another_port_moves_no_sa() -> None:
    world = World().connect()
    before = world.server_sa()
    for data, to_server in list(world.wire):
        if to_server:
            world.server.receive_datagram(data, Path(SERVER, 500, "203.0.113.2", 4000), world.now)
    assert world.server_sa() == before
    half_open = [sa for sa in world.server.ike_sas() if not sa.established]
    assert len(half_open) <= 1, "a forged first packet makes at most one more half-open Main Mode"


def test_half_open_exchanges_are_bounded() -> None:
    world = World()
    world.client.initiate("server", 0.0)
    first = bytearray(world.client.datagrams_to_send()[0][0])
    for number in range(1500):
        first[:8] = (number + 1).to_bytes(8, "big")
        world.server.receive_datagram(bytes(first), Path(SERVER, 500, f"203.0.113.{number // 100 + 1}", 500), 0.0)
    assert len(world.server.ike_sas()) == 1000
    world.server.datagrams_to_send()
    world.run(120.0)
    assert all(sa.established for sa in world.server.ike_sas()), "half-open exchanges end"


@given(st.binary(max_size=400))
def test_arbitrary_octets_are_refused_quietly(data: bytes) -> None:
    world = World()
    world.server.receive_datagram(data, Path(SERVER, 500, CLIENT, 500), 0.0)
    assert not world.server.children()
    assert not world.server.datagrams_to_send()


@given(st.binary(max_size=300), st.sampled_from([2, 4, 5, 32]), st.integers(0, 255), st.booleans())
def test_well_formed_headers_with_arbitrary_bodies_do_no_harm(
    body: bytes, exchange: int, first: int, encrypted: bool
) -> None:
    world = World().connect(1.0)
    before = (world.client_sa(), world.server_sa())
    cookies = world.wire[-1][0][:16]
    message_id = b"\x12\x34\x56\x78" if exchange not in (2, 4) else bytes(4)
    header = cookies + bytes([first, 0x10, exchange, int(encrypted)]) + message_id
    datagram = header + (28 + len(body)).to_bytes(4, "big") + body
    world.inject(datagram, to_server=True)
    world.inject(datagram, to_server=False)
    assert (world.client_sa(), world.server_sa()) == before
