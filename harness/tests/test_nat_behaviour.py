"""Real NATs, seen by programs outside: what each preset declares is what they see."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from lab_world import CLIENTS, NAT
from nat_outside import FIRST, INSIDE, SECOND, Street, street

from natbed.conntrack import udp_mappings
from natbed.nat import presets
from natbed.nat.profile import (
    Filtering,
    Fragments,
    Hairpinning,
    Kind,
    Late,
    Mapping,
    NatProfile,
    Pooling,
    Ports,
    Refresh,
    ZeroChecksum,
)
from natbed.nat.remembering import paired

pytestmark = pytest.mark.usefixtures("isolated")

EI, AD, APD = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
TRANSLATING = [preset for preset in presets.PRESETS.values() if preset.kind is not Kind.NONE]
SO_NO_CHECK = 11  # asm-generic/socket.h


def profile(**axes: Any) -> NatProfile:
    """A NAT that differs from a port-restricted cone in these axes."""
    return msgspec.structs.replace(presets.PORT_RESTRICTED_CONE, name="tried", **axes)


@pytest.fixture(params=TRANSLATING, ids=lambda preset: preset.name)
def home(request: pytest.FixtureRequest) -> Iterator[Street]:
    with street(request.param) as made:
        yield made


def outside(home: Street) -> tuple[socket.socket, socket.socket, socket.socket]:
    """Two sockets at one address, and one at another."""
    return home.at("server", FIRST), home.at("server", SECOND), home.at("stranger", FIRST)


# each preset


def test_a_preset_maps_filters_and_lasts_as_it_declares(home: Street) -> None:
    declared, see = home.nat.profile, outside(home)
    assert home.filtering(home.at("client1", INSIDE), *see) == declared.filtering
    assert home.mapping(home.at("client1", INSIDE + 1), *see) == declared.mapping
    left = {one.seconds for one in udp_mappings(home.nat) if not one.assured}
    assert left
    assert left <= set(range(declared.udp_timeout - 2, declared.udp_timeout + 1))


def test_a_preset_gives_the_ports_and_addresses_that_it_declares(home: Street) -> None:
    declared, (server, _, stranger) = home.nat.profile, outside(home)
    clients = [home.at(name, 500) for name in ("client1", "client2")]
    seen = [[home.seen(client, at) for at in (server, stranger)] for client in clients]
    (first, _), (second, _) = seen
    assert first != second, "the server cannot tell its clients apart"
    if declared.kind is Kind.ONE_TO_ONE:
        assert seen == [[("203.0.113.3", 500)] * 2, [("203.0.113.4", 500)] * 2]
        return
    for inside, views in zip(CLIENTS, seen, strict=True):
        assert {address for address, _ in views} == {paired(inside, home.nat.where.outside)}
    low, high = declared.port_range
    if declared.ports is Ports.PRESERVED:
        assert first[1] == 500
        # MASQUERADE's own choice stays below 512
        assert second[1] < 512 if declared.name in ("masquerade", "home-router") else low <= second[1] <= high
    else:
        assert all(low <= port <= high for views in seen for _, port in views)
    if declared.ports is Ports.CONTIGUOUS:
        ports = [port for views in seen for _, port in views]
        assert ports == [low, low + 1] * 2, "each outside address has its own block"


def test_a_preset_forgets_and_treats_what_is_late_as_it_declares(home: Street) -> None:
    declared = home.nat.profile
    home.nat.forget_after(1)
    inside = home.at("client1", 500 if declared.forwards else INSIDE)
    at = home.seen(inside, server := home.at("server", FIRST))
    server.connect(at)
    server.send(b"in time")
    assert inside.recv(64) == b"in time"
    home.wait_forgotten(inside.getsockname())
    before = home.refused
    server.send(b"late")
    if declared.kind is Kind.ONE_TO_ONE or declared.forwards:
        assert inside.recv(64) == b"late"
        return
    home.wait(lambda: home.refused == before + 1, "what came late was not refused")
    if declared.late is Late.REJECTED:
        with pytest.raises(ConnectionRefusedError):
            server.recv(64)
    else:
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    # and that has taken nothing away
    again = home.seen(inside, home.at("server", SECOND))
    if declared.ports is Ports.PRESERVED:
        assert again == at


@pytest.mark.parametrize("preset", [presets.FULL_CONE, presets.CARRIER_GRADE], ids=lambda preset: preset.name)
def test_a_preset_that_hairpins_shows_inside_hosts_to_each_other_as_the_outside_sees_them(preset: NatProfile) -> None:
    with street(preset) as home:
        server = home.at("server", FIRST)
        one, other = home.at("client1", INSIDE), home.at("client2", INSIDE)
        first, second = home.seen(one, server), home.seen(other, server)
        other.sendto(b"hairpin", first)
        assert one.recvfrom(64) == (b"hairpin", second)
        one.sendto(b"back", second)
        assert other.recvfrom(64) == (b"back", first)


def test_a_forwarded_port_is_its_hosts_and_nobody_elses() -> None:
    with street(presets.PORT_FORWARD) as home:
        one, other, stranger = home.at("client1", 500), home.at("client2", 500), home.at("stranger", FIRST)
        assert home.seen(other, stranger)[1] >= 1024
        stranger.sendto(b"unasked", (NAT, 500))
        data, source = one.recvfrom(64)
        assert (data, source) == (b"unasked", stranger.getsockname())
        one.sendto(b"answer", source)
        assert stranger.recvfrom(64) == (b"answer", (NAT, 500))
        assert home.seen(one, home.at("server", FIRST)) == (NAT, 500)


# each axis, where it differs from the presets'


@pytest.mark.parametrize("mapping", [EI, AD, APD])
@pytest.mark.parametrize(
    "filtering",
    [Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT],
)
@pytest.mark.parametrize("ports", [Ports.PRESERVED, Ports.CONTIGUOUS, Ports.RANDOM])
def test_mapping_filtering_and_ports_go_together_in_every_way(
    mapping: Mapping, filtering: Filtering, ports: Ports
) -> None:
    tried = profile(mapping=mapping, filtering=filtering, ports=ports, port_range=(20_000, 20_999))
    with street(tried) as home:
        see = outside(home)
        assert home.filtering(home.at("client1", INSIDE), *see) == filtering
        assert home.mapping(home.at("client1", INSIDE + 1), *see) == mapping
        seen = home.seen(home.at("client2", INSIDE + 2), see[0])[1]
        assert seen == INSIDE + 2 if ports is Ports.PRESERVED else 20_000 <= seen <= 20_999


def test_a_mapping_is_the_same_for_one_host_while_another_has_its_port() -> None:
    with street(profile()) as home:
        see = outside(home)
        one, other = home.at("client1", INSIDE), home.at("client2", INSIDE)
        assert home.seen(one, see[0]) == (NAT, INSIDE)
        # MASQUERADE would let the second keep its port towards whom the first does not talk to
        assert home.mapping(other, *reversed(see)) is EI
        assert home.seen(other, see[2])[1] >= 10_000


def test_two_hosts_that_choose_a_port_at_once_both_get_one() -> None:
    # the one that comes second gets a port of this range, and so never one that a later pair is to choose
    with street(profile(port_range=(50_000, 59_999))) as home, ThreadPoolExecutor(2) as pool:
        server = home.at("server", FIRST)
        for port in range(INSIDE, INSIDE + 100):
            pair = [home.at(name, port) for name in ("client1", "client2")]
            start = threading.Barrier(2)

            def send(one: socket.socket, start: threading.Barrier = start) -> None:
                start.wait(5)
                one.sendto(b"at once", server.getsockname())

            list(pool.map(send, pair))
            for one in pair:  # what was lost then is sent again
                one.sendto(one.getsockname()[0].encode(), server.getsockname())
            ports: dict[bytes, int] = {}
            while len(ports) < 2:
                data, source = server.recvfrom(64)
                if data != b"at once":
                    ports[data] = source[1]
            kept, other = sorted(ports.values())
            assert kept == port, "both have lost it"
            assert 50_000 <= other <= 59_999


def test_other_timeouts_leave_what_was_learned() -> None:
    with street(profile(ports=Ports.RANDOM)) as home:
        server, _, stranger = outside(home)
        inside = home.at("client1", INSIDE)
        at = home.seen(inside, server)
        home.nat.forget_after(7)
        assert home.seen(inside, stranger) == at
        listed = home.nat.run(["nft", "list", "map", "ip", "natbed", "outside"]).stdout
        assert re.search(r"expires [67]s", listed), "its next packet has given it the new timeout"
        home.nat.forget_after(None)
        assert home.seen(inside, stranger) == at


def test_overloaded_ports_are_every_hosts_own_but_towards_one_server() -> None:
    tried = profile(ports=Ports.OVERLOADED)
    with street(tried) as home:
        server, _, stranger = outside(home)
        one, other = home.at("client1", INSIDE), home.at("client2", INSIDE)
        assert home.seen(one, server) == home.seen(other, stranger) == (NAT, INSIDE)
        other.sendto(b"lost", server.getsockname())
        assert home.seen(one, server) == (NAT, INSIDE), "what the second sent came through"


def test_pooling_that_is_arbitrary_gives_one_host_several_addresses() -> None:
    tried = profile(addresses=3, pooling=Pooling.ARBITRARY)
    with street(tried) as home:
        see = outside(home)
        found = {home.seen(home.at("client1", INSIDE + n), see[0])[0] for n in range(3)}
        assert found == {"203.0.113.2", "203.0.113.3", "203.0.113.4"}
        assert home.mapping(home.at("client1", INSIDE + 3), *see) is EI, "a mapping has one address"


def test_inbound_packets_do_not_refresh_where_only_outbound_ones_do() -> None:
    with street(profile(refresh=Refresh.OUTBOUND, udp_timeout=2, udp_timeout_stream=2)) as home:
        server, inside = home.at("server", FIRST), home.at("client1", INSIDE)
        at, began = home.seen(inside, server), time.monotonic()
        before = home.refused

        def refused() -> bool:
            server.sendto(b"refresh", at)
            return home.refused > before

        home.wait(refused, "inbound packets kept the mapping")
        assert 1.9 < time.monotonic() - began < 4


def test_outbound_packets_refresh_where_only_they_do() -> None:
    with street(profile(refresh=Refresh.OUTBOUND, udp_timeout=1, udp_timeout_stream=1)) as home:
        server, inside, began = home.at("server", FIRST), home.at("client1", INSIDE), time.monotonic()

        def long_enough() -> bool:
            server.sendto(b"back", home.seen(inside, server))
            assert inside.recv(64) == b"back"
            return time.monotonic() - began > 2

        home.wait(long_enough, "the clock stands still")


@pytest.mark.parametrize("filtering", [Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT])
def test_inbound_packets_keep_a_mapping_that_strangers_use(filtering: Filtering) -> None:
    with street(profile(filtering=filtering, udp_timeout=1, udp_timeout_stream=1)) as home:
        server, other, stranger = outside(home)
        inside = home.at("client1", INSIDE)
        at, began = home.seen(inside, server), time.monotonic()

        def long_enough() -> bool:
            server.sendto(b"refresh", at)
            assert inside.recv(64) == b"refresh"
            return time.monotonic() - began > 2

        home.wait(long_enough, "the clock stands still")
        (stranger if filtering is Filtering.ENDPOINT_INDEPENDENT else other).sendto(b"unasked", at)
        assert inside.recv(64) == b"unasked"


def test_hairpinning_may_show_the_inside() -> None:
    tried = profile(filtering=Filtering.ENDPOINT_INDEPENDENT, hairpinning=Hairpinning.INTERNAL)
    with street(tried) as home:
        one, other = home.at("client1", INSIDE), home.at("client2", INSIDE)
        other.sendto(b"hairpin", home.seen(one, home.at("server", FIRST)))
        assert one.recvfrom(64) == (b"hairpin", other.getsockname())


def test_without_hairpinning_nothing_comes_through() -> None:
    with street(profile(filtering=Filtering.ENDPOINT_INDEPENDENT)) as home:
        server, one = home.at("server", FIRST), home.at("client1", INSIDE)
        at = home.seen(one, server)
        other = home.at("client2", INSIDE, at)
        other.send(b"hairpin")
        with pytest.raises(ConnectionRefusedError):  # the NAT itself has no such port
            other.recv(64)
        server.sendto(b"end", at)
        assert one.recv(64) == b"end"


@pytest.mark.parametrize("kind", ["plain", "remembering", "one-to-one"])
@pytest.mark.parametrize("dropped", [True, False])
def test_fragments_and_packets_without_checksum_pass_or_do_not(kind: str, dropped: bool) -> None:
    of_kind = {"plain": presets.MASQUERADE, "remembering": presets.FULL_CONE, "one-to-one": presets.ONE_TO_ONE}
    tried = msgspec.structs.replace(
        of_kind[kind],
        fragments=Fragments.DROPPED if dropped else Fragments.FORWARDED,
        zero_checksum=ZeroChecksum.DROPPED if dropped else ZeroChecksum.FORWARDED,
    )
    with street(tried) as home:
        server, inside = home.at("server", FIRST), home.at("client1", INSIDE)
        inside.sendto(bytes(3000), server.getsockname())
        inside.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        inside.sendto(b"no checksum", server.getsockname())
        inside.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 0)
        inside.sendto(b"end", server.getsockname())
        came = []
        while (data := server.recv(4096)) != b"end":
            came.append(data)
        assert came == ([] if dropped else [bytes(3000), b"no checksum"])


def test_a_one_to_one_nat_may_let_in_answers_alone() -> None:
    tried = msgspec.structs.replace(presets.ONE_TO_ONE, filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT)
    with street(tried) as home:
        server, _, stranger = outside(home)
        inside = home.at("client1", INSIDE)
        at = home.seen(inside, server)
        stranger.sendto(b"unasked", at)
        server.sendto(b"answer", at)
        assert inside.recv(64) == b"answer"
