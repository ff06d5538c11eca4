"""The pool lends each part of its network to one peer at a time, as long as there is one."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espthrunat.ike.address_pool import AddressPool


def test_everybody_gets_another_address_and_keeps_it() -> None:
    pool = AddressPool("10.200.0.0/24")
    assert [pool.lend(name, 32) for name in "abc"] == ["10.200.0.1/32", "10.200.0.2/32", "10.200.0.3/32"]
    assert pool.lend("b", 32) == "10.200.0.2/32"
    assert len(pool) == 3


def test_all_addresses_but_the_first_and_the_last_are_lent() -> None:
    pool = AddressPool("10.200.0.0/29")
    lent = [pool.lend(number, 32) for number in range(7)]
    assert lent == [*(f"10.200.0.{host}/32" for host in range(1, 7)), None]
    pool.give_back(3)
    assert pool.lend("late", 32) == "10.200.0.4/32"
    assert pool.lend("too late", 32) is None


def test_networks_of_the_pools_own_size_and_pools_of_few_addresses() -> None:
    assert AddressPool("10.200.0.0/24").lend("a", 24) == "10.200.0.0/24"
    assert AddressPool("10.200.0.0/24").lend("a", 23) is None
    assert AddressPool("10.200.0.7/32").lend("a", 32) == "10.200.0.7/32"
    pair = AddressPool("10.200.0.6/31")
    assert [pair.lend(name, 32) for name in "abc"] == ["10.200.0.6/32", "10.200.0.7/32", None]


def test_what_was_given_back_is_lent_last() -> None:
    """Whoever had it may still be sent to, on connections that nobody has told."""
    pool = AddressPool("10.200.0.0/29")
    first = pool.lend("a", 32)
    pool.give_back("a")
    pool.give_back("a")
    others = [pool.lend(number, 32) for number in range(5)]
    assert first not in others
    assert pool.lend("b", 32) == first


def test_it_lends_no_more_than_it_may() -> None:
    pool = AddressPool("10.0.0.0/8", most=3)
    assert [pool.lend(number, 32) is None for number in range(4)] == [False, False, False, True]


def test_a_full_pool_of_thousands_finds_the_last_free_address() -> None:
    pool = AddressPool("10.200.0.0/19")
    for number in range(8190):
        assert pool.lend(number, 32)
    assert pool.lend("one more", 32) is None
    pool.give_back(4711)
    assert pool.lend("one more", 32) == "10.200.18.104/32"


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.200\.0\.1/24"):
        AddressPool("10.200.0.1/24")


STEPS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0, 26, 27, 28, 30, 31, 32])), max_size=60)


@given(STEPS)
def test_networks_never_overlap_and_none_is_refused_while_there_is_room(steps: list[tuple[int, int]]) -> None:
    whole = ipaddress.IPv4Network("10.200.0.64/26")
    pool = AddressPool(str(whole))
    lent: dict[int, ipaddress.IPv4Network] = {}
    for name, bits in steps:
        if not bits:
            pool.give_back(name)
            lent.pop(name, None)
            continue
        got = pool.lend(name, bits)
        if name in lent:
            assert got == (str(lent[name]) if lent[name].prefixlen == bits else None)
            continue
        ends = {whole.network_address, whole.broadcast_address} if bits == 32 else set()
        room = [
            part
            for part in whole.subnets(new_prefix=bits)
            if part.network_address not in ends and not any(part.overlaps(other) for other in lent.values())
        ]
        assert (got is None) == (not room)
        if got is not None:
            network = ipaddress.IPv4Network(got)
            assert network in room
            lent[name] = network
