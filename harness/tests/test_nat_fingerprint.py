"""What is measured of real NATs from the inside is what they were made to be."""

from __future__ import annotations

import pathlib
import shutil
import socket
import time
from collections.abc import Iterator

import pytest
from lab_world import CLIENTS, NAT, home
from nat_survey import iptables, surveyed

from natbed.nat import presets
from natbed.nat.fingerprint import FingerprintError, judge_ports, opener
from natbed.nat.profile import Filtering, Hairpinning, Late, Mapping, Ports, ZeroChecksum
from natbed.nat.reflector import ADDRESS, ANSWER, LONGEST_DELAY, PORT, REQUEST, Message, Reflector, decode

pytestmark = pytest.mark.usefixtures("isolated")

EI, APD = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT


def test_linux_own_nat_is_measured_as_it_is_declared(tmp_path: pathlib.Path) -> None:
    with home(tmp_path, 2) as world, surveyed(world) as (surveyor, _):
        found = surveyor.measure()
    declared = presets.MASQUERADE
    assert (found.mapping, found.filtering, found.ports) == (declared.mapping, declared.filtering, declared.ports)
    assert (found.inside, found.outside, found.one_to_one) == (CLIENTS[0], NAT, False)
    assert (found.hairpinning, found.zero_checksum) == (Hairpinning.NONE, ZeroChecksum.FORWARDED)
    assert found.late is Late.DROPPED
    assert found.profile("masquerade") == declared


def test_a_one_to_one_nat_lets_anybody_begin(tmp_path: pathlib.Path) -> None:
    with home(tmp_path, 2, presets.ONE_TO_ONE) as world, surveyed(world) as (surveyor, _):
        found = surveyor.measure()
    assert found.one_to_one
    profile, declared = found.profile("one-to-one"), presets.ONE_TO_ONE
    assert (profile.kind, profile.mapping, profile.filtering, profile.ports) == (
        declared.kind,
        declared.mapping,
        declared.filtering,
        declared.ports,
    )


def test_a_plain_router_is_none(tmp_path: pathlib.Path) -> None:
    with home(tmp_path, 2, presets.ROUTED) as world, surveyed(world) as (surveyor, _):
        assert surveyor.measure().profile("routed") == presets.ROUTED


@pytest.mark.parametrize("options", ["--random-fully", "-p udp --to-ports 1024-65535 --random-fully"])
def test_a_symmetric_nat_has_a_port_for_each_destination(tmp_path: pathlib.Path, options: str) -> None:
    with home(tmp_path, 2) as world, surveyed(world) as (surveyor, _):
        iptables(world, "-t nat -F POSTROUTING")
        iptables(world, f"-t nat -A POSTROUTING -o nat-eth0 -j MASQUERADE {options}")
        assert surveyor.behaviour() == (APD, Filtering.ADDRESS_AND_PORT_DEPENDENT, Ports.RANDOM)


def test_a_forwarded_range_is_endpoint_independent_filtering(tmp_path: pathlib.Path) -> None:
    """Everything that is not known goes to one host inside: what a DMZ host sees."""
    with home(tmp_path, 2) as world, surveyed(world) as (surveyor, _):
        iptables(world, f"-t nat -A PREROUTING -i nat-eth0 -p udp -j DNAT --to-destination {CLIENTS[0]}")
        iptables(world, "-P FORWARD ACCEPT")
        iptables(world, "-F FORWARD")
        assert surveyor.behaviour() == (EI, Filtering.ENDPOINT_INDEPENDENT, Ports.PRESERVED)


def test_a_rejecting_nat_is_seen_to_reject(tmp_path: pathlib.Path) -> None:
    with home(tmp_path, 2) as world, surveyed(world) as (surveyor, _):
        iptables(world, "-F INPUT")
        iptables(world, "-A INPUT -i nat-eth0 -p udp -j REJECT")
        assert surveyor.measure().late is Late.REJECTED


def test_lost_checksums_are_seen(tmp_path: pathlib.Path) -> None:
    bare = "0>>22&0x3C@4&0xFFFF=0"  # u32: the UDP checksum
    with home(tmp_path, 2) as world, surveyed(world) as (surveyor, _):
        world.nat.run(["iptables", "-I", "FORWARD", "-p", "udp", "-m", "u32", "--u32", bare, "-j", "DROP"])
        assert surveyor.measure().zero_checksum is ZeroChecksum.DROPPED


@pytest.mark.parametrize("source", [Hairpinning.EXTERNAL, Hairpinning.INTERNAL])
def test_hairpinning_shows_whose_source_it_has(tmp_path: pathlib.Path, source: Hairpinning) -> None:
    """What the LAN sends to the outside address comes back; with its source translated too, as REQ-9 asks, or not."""
    with home(tmp_path, 2) as world, surveyed(world) as (surveyor, _):
        for number, client in enumerate(CLIENTS):
            first, last = 40_000 + 100 * number, 40_099 + 100 * number
            back = f"-i nat-eth1 -d {NAT} -p udp --dport {first}:{last} -j DNAT --to-destination {client}"
            iptables(world, f"-t nat -A PREROUTING {back}")
            world.lab[f"client{number + 1}"].sysctl({"net.ipv4.ip_local_port_range": f"{first}\t{last}"})
        if source is Hairpinning.EXTERNAL:
            iptables(world, f"-t nat -A POSTROUTING -o nat-eth1 -p udp -s 192.168.1.0/24 -j SNAT --to-source {NAT}")
        assert surveyor.measure().hairpinning is source


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft")
def test_a_full_cone_is_endpoint_independent(tmp_path: pathlib.Path) -> None:
    with home(tmp_path, 2) as world, surveyed(world) as (surveyor, _):
        iptables(world, "-F")
        world.nat.run(["nft", "-f", "-"], input=FULL_CONE)
        assert surveyor.behaviour() == (EI, Filtering.ENDPOINT_INDEPENDENT, Ports.PRESERVED)
        assert not surveyor.measure().one_to_one


FULL_CONE = """
table ip cone {
  map learned { type inet_service : ipv4_addr . inet_service; flags dynamic; size 1024; }
  chain learn { type filter hook postrouting priority 101; oifname "nat-eth0" meta l4proto udp ct direction original \
    update @learned { udp sport : ct original ip saddr . ct original proto-src }; }
  chain back { type nat hook prerouting priority -101; iifname "nat-eth0" meta l4proto udp \
    dnat to udp dport map @learned; }
}
"""


def test_without_a_reflector_there_is_one_clear_error(tmp_path: pathlib.Path) -> None:
    with home(tmp_path, 2) as world, surveyed(world) as (surveyor, reflector):
        reflector.close()
        with pytest.raises(FingerprintError, match="does not answer"):
            surveyor.measure()


@pytest.mark.parametrize(
    ("outside", "expected"),
    [
        ((40_001, 40_002, 40_003, 40_004, 40_006), Ports.CONTIGUOUS),
        ((65_534, 65_535, 1_024, 1_025, 1_026), Ports.CONTIGUOUS),
        ((40_004, 40_003, 40_002, 40_001, 40_000), Ports.RANDOM),
        ((1, 2, 3, 4, 5), Ports.PRESERVED),
        ((9_000, 60_000, 1_200, 33_000, 33_001), Ports.RANDOM),
    ],
)
def test_ports_are_judged_in_their_order(outside: tuple[int, ...], expected: Ports) -> None:
    assert judge_ports(list(zip((1, 2, 3, 4, 5), outside, strict=True))) is expected


@pytest.fixture
def loopback() -> Iterator[tuple[Reflector, socket.socket]]:
    with Reflector(("127.0.0.21", "127.0.0.22")) as reflector, opener("127.0.0.1")(0) as sock:
        sock.settimeout(2)
        yield reflector, sock


def test_the_reflector_answers_from_where_it_is_asked_to_and_never_with_more(
    loopback: tuple[Reflector, socket.socket],
) -> None:
    reflector, sock = loopback
    (first, second), (low, high) = reflector.addresses, reflector.ports
    for flags, source in [(0, (first, low)), (PORT, (first, high)), (ADDRESS, (second, low)), (3, (second, high))]:
        request = Message(kind=REQUEST, flags=flags, transaction=b"12345678").encode()
        sock.sendto(request, (first, low))
        data, came_from = sock.recvfrom(2048)
        answer = decode(data)
        assert answer is not None
        assert (came_from, answer.endpoint, answer.other) == (source, sock.getsockname(), (second, high))
        assert len(data) <= len(request)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\0",
        Message(kind=ANSWER, transaction=b"12345678").encode(),
        Message(kind=REQUEST, transaction=b"12345678").encode()[:-1],
        Message(kind=REQUEST, transaction=b"12345678").encode() + b"\0",
        Message(kind=REQUEST, transaction=b"12345678", delay=LONGEST_DELAY + 1).encode(),
        b"x" * 32,
        b"x" * 1400,
    ],
)
def test_the_reflector_answers_no_junk(loopback: tuple[Reflector, socket.socket], junk: bytes) -> None:
    """Nor another reflector's answers: two of them would never stop."""
    reflector, sock = loopback
    server = (reflector.addresses[0], reflector.ports[0])
    sock.sendto(junk, server)
    sock.sendto(Message(kind=REQUEST, transaction=b"the last").encode(), server)
    answer = decode(sock.recv(2048))
    assert answer is not None
    assert answer.transaction == b"the last"


def test_the_reflector_holds_so_many_answers_for_one_address_and_no_more(
    loopback: tuple[Reflector, socket.socket],
) -> None:
    reflector, sock = loopback
    server = (reflector.addresses[0], reflector.ports[0])
    with opener("127.0.0.2")(0) as other:
        other.settimeout(2)
        for number in range(600):
            sock.sendto(Message(kind=REQUEST, transaction=number.to_bytes(8), delay=600).encode(), server)
            sock.sendto(Message(kind=REQUEST, transaction=b"a fence!").encode(), server)
            sock.recv(2048)
        assert len(reflector._held) == 512
        other.sendto(Message(kind=REQUEST, transaction=b"somebody", delay=0.1).encode(), server)
        assert decode(other.recv(2048)), "others are served"


def test_the_reflector_waits_before_an_answer_and_logs_a_line_a_second_at_most() -> None:
    lines: list[str] = []
    with Reflector(("127.0.0.21", "127.0.0.22"), log=lines.append) as reflector, opener("127.0.0.1")(0) as sock:
        sock.settimeout(5)
        begin = time.monotonic()
        for delay in (1.2, 0.4):
            request = Message(kind=REQUEST, transaction=str(delay).encode().ljust(8), delay=delay)
            sock.sendto(request.encode(), (reflector.addresses[0], reflector.ports[0]))
        came = []
        for _ in range(2):
            answer = decode(sock.recv(2048))
            came.append((answer.transaction.strip() if answer else b"", time.monotonic() - begin))
    assert [name for name, _ in came] == [b"0.4", b"1.2"]
    assert 0.4 <= came[0][1] < 0.9
    assert 1.2 <= came[1][1] < 1.9
    assert lines == ["requests: 2"]
