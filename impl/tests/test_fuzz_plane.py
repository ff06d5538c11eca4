"""The plane's way in: every datagram is counted in exactly one place, and no SA moves for what is not authentic."""

from __future__ import annotations

import pytest
from fuzz_world import Edit, edited, edits, fuzz, real_messages
from hypothesis import given
from hypothesis import strategies as st

from espthrunat.esp.sa import OutboundSa
from espthrunat.esp.suites import SUITES
from espthrunat.messages import AddSa, Direction, Encapsulation, FromPlane, Mode, Path, Rebound, Selector
from espthrunat.plane.counters import Count, Counters
from espthrunat.plane.inbound import InboundFlow
from espthrunat.plane.keepalive import Keepalives
from espthrunat.plane.sadb import SaDatabase
from espthrunat.wire.ip import ICMP, IPV4, TCP, UDP, build_ipv4
from espthrunat.wire.udp import ESP_MARKER, KEEPALIVE

LOCAL = ("203.0.113.18", 500)
PEER = ("203.0.113.2", 1024)
ELSEWHERE = ("203.0.113.66", 4500)
INSIDE, HERE = "10.1.0.1", "10.99.0.1"
TUNNEL, ROAMING, TRANSPORT, BARE = 0x1001, 0x1002, 0x1003, 0x1004
SPIS = {TUNNEL: "aes128gcm16", ROAMING: "aes128-sha256", TRANSPORT: "null-sha256", BARE: "3des-sha1"}
IN_TRANSPORT = (TRANSPORT, BARE)

octets = st.binary(max_size=120)
spis = st.sampled_from(sorted(SPIS))
sources = st.sampled_from([PEER, ELSEWHERE, (PEER[0], 4500), (ELSEWHERE[0], 1024)])
inner_heads = st.tuples(
    st.sampled_from([0x45, 0x46, 0x4F, 0x40, 0x60, 0]), st.sampled_from([0, ICMP, IPV4, TCP, UDP, 50, 255])
)


class PlaneParts:
    """A whole way in without a device: what it gives to the kernel and to the daemon is kept, in place of both."""

    def __init__(self) -> None:
        self.kernel: list[bytes] = []
        self.ike: list[tuple[Path, bytes]] = []
        self.said: list[FromPlane] = []
        self.counters = Counters(lambda: 0.0)
        self.sadb = SaDatabase(lambda: 0.0)
        keepalives = Keepalives(lambda: 0.0)
        self.flow = InboundFlow(self.sadb, self, self, self.counters, keepalives)  # type: ignore[arg-type]
        self.peer: dict[int, OutboundSa] = {}
        for spi, suite in SPIS.items():
            keymat = bytes([spi & 0xFF]) * SUITES[suite].keymat_octets
            transport = spi in IN_TRANSPORT
            self.sadb.add(
                AddSa(
                    spi,
                    Direction.INBOUND,
                    suite,
                    keymat,
                    Path(*LOCAL, *PEER),
                    Encapsulation.NONE if spi == BARE else Encapsulation.UDP,
                    Selector(f"{LOCAL[0]}/32", f"{PEER[0]}/32")
                    if transport
                    else Selector(f"{HERE}/32", f"{INSIDE}/32"),
                    f"policy{spi}",
                    Mode.TRANSPORT if transport else Mode.TUNNEL,
                    rebinding=spi == ROAMING,
                )
            )
            self.peer[spi] = OutboundSa(spi, SUITES[suite], keymat)

    # what the kernel and the daemon are to the way in

    def write(self, packets: list[bytes], header: bytes = b"") -> None:
        self.kernel += packets

    def send(self, message: FromPlane) -> None:
        self.said.append(message)

    def send_datagrams(self, items: list[tuple[Path, bytes]]) -> None:
        self.ike += items

    # what tests ask

    @property
    def accounted(self) -> int:
        """Datagrams that were given to somebody or counted as dropped or as a keepalive."""
        values = self.counters.values
        dropped = sum(number for name, number in values.items() if name.startswith("drop_"))
        return dropped + values[Count.KEEPALIVE_IN] + len(self.kernel) + len(self.ike)

    @property
    def paths(self) -> dict[int, bool]:
        """Whether each SA is where it was, and nowhere else."""
        udp = {spi: self.sadb.find_inbound(spi, PEER, LOCAL) is not None for spi in SPIS if spi != BARE}
        bare = self.sadb.find_inbound(BARE, (PEER[0], 0), (LOCAL[0], 0)) is not None
        elsewhere = any(self.sadb.find_inbound(spi, ELSEWHERE, LOCAL) for spi in SPIS)
        return {**udp, BARE: bare, 0: not elsewhere}

    def sealed(self, spi: int, inner: bytes, next_header: int = IPV4) -> bytes:
        return self.peer[spi].seal([inner], next_header)[0]

    def arrive(self, datagram: bytes, source: tuple[str, int] = PEER) -> None:
        before = self.accounted
        self.flow.datagrams([(datagram, source)], LOCAL)
        assert self.accounted == before + 1, f"{self.counters.values} after {datagram.hex()} from {source}"

    def arrive_bare(self, packet: bytes, address: str = PEER[0]) -> None:
        before = self.accounted
        self.flow.esp_packets([(packet, (address, 0))], (LOCAL[0], 0))
        assert self.accounted == before + 1, f"{self.counters.values} after {packet.hex()} from {address}"


def honest(parts: PlaneParts, spi: int) -> bytes:
    if spi in IN_TRANSPORT:
        return parts.sealed(spi, b"\x04\x00\x00\x50" + bytes(16), TCP)
    source, destination = (bytes(map(int, address.split("."))) for address in (INSIDE, HERE))
    return parts.sealed(spi, build_ipv4(source, destination, UDP, 12) + b"\x04\x00\x00\x50\x00\x0c\0\0abcd")


def test_what_is_honest_reaches_the_kernel() -> None:
    """Otherwise the tests below would only ever see drops."""
    parts = PlaneParts()
    for spi in SPIS:
        if spi == BARE:
            parts.arrive_bare(honest(parts, spi))
        else:
            parts.arrive(ESP_MARKER + honest(parts, spi))
    assert len(parts.kernel) == len(SPIS)
    parts.arrive(ESP_MARKER + honest(parts, ROAMING), ELSEWHERE)
    assert [type(message) for message in parts.said].count(Rebound) == 1
    assert not parts.paths[0], "what may move, and proves itself, moves"


@pytest.mark.draft("WIRE-3", "KA-4")
@fuzz(200)
@given(octets, sources)
def test_arbitrary_datagrams_are_counted_once(datagram: bytes, source: tuple[str, int]) -> None:
    parts = PlaneParts()
    before = parts.paths
    parts.arrive(datagram, source)
    parts.arrive(ESP_MARKER + datagram, source)
    parts.arrive_bare(datagram)
    parts.arrive(KEEPALIVE, source)
    assert parts.counters.values[Count.KEEPALIVE_IN] == 1 + (datagram == KEEPALIVE)
    assert parts.paths == before
    assert not parts.kernel
    assert not parts.said


@pytest.mark.draft("SEC-4", "WIRE-4")
@fuzz(200)
@given(spis, edits, sources, st.booleans())
def test_edited_esp_reaches_nobody_and_moves_nothing(
    spi: int, changes: list[Edit], source: tuple[str, int], marker: bool
) -> None:
    """Edited with the marker, which makes IKE of it, and behind it; from the peer's address and from others."""
    parts = PlaneParts()
    before = parts.paths
    packet = honest(parts, spi)
    real = ESP_MARKER + packet
    damaged = edited(real, changes, mend=False) if marker else ESP_MARKER + edited(packet, changes, mend=False)
    if damaged == real:
        return
    parts.arrive(damaged, source)
    if damaged[len(ESP_MARKER) :] != packet:
        parts.arrive_bare(damaged[len(ESP_MARKER) :])
    assert parts.paths == before
    assert not parts.kernel
    assert not parts.said
    assert all(data == damaged for _, data in parts.ike)
    if spi == BARE:
        parts.arrive_bare(packet)
    else:
        parts.arrive(real)
    assert len(parts.kernel) == 1, "the true packet is taken after all"


@pytest.mark.draft("SEC-4")
@fuzz(60)
@given(spis, sources)
def test_replayed_esp_moves_nothing(spi: int, source: tuple[str, int]) -> None:
    parts = PlaneParts()
    before = parts.paths
    old, never_seen, new = (ESP_MARKER + honest(parts, spi) for _ in range(3))
    parts.arrive(old)
    parts.arrive(new)
    taken = len(parts.kernel)
    for datagram in (old, new):
        parts.arrive(datagram, source)
    if source != PEER:
        parts.arrive(never_seen, source)
    assert len(parts.kernel) == taken
    assert parts.paths == before
    if spi != BARE:
        parts.arrive(never_seen)
        assert len(parts.kernel) == taken + 1, "what came late by the right path was not used up by who showed it early"


@fuzz(300)
@given(spis, inner_heads, octets, st.integers(0, 255), st.booleans())
def test_authentic_packets_with_any_inside_are_counted_once(
    spi: int, head: tuple[int, int], inside: bytes, next_header: int, fitting: bool
) -> None:
    """The peer itself is broken or hostile: whatever is inside, it is delivered or dropped, and counted."""
    parts = PlaneParts()
    packet = bytearray(bytes([head[0], 0, 0, 0]) + inside)
    if fitting:
        packet[2:4] = len(packet).to_bytes(2, "big")
    for carried in (IPV4, ICMP, TCP, UDP, 59, next_header):
        for content in (bytes(packet), inside, b""):
            sealed = parts.sealed(spi, content, carried)
            if spi == BARE:
                parts.arrive_bare(sealed)
            else:
                parts.arrive(ESP_MARKER + sealed)
    assert all(len(given) >= 20 for given in parts.kernel)
    if spi not in IN_TRANSPORT:
        addresses = {(given[12:16], given[16:20]) for given in parts.kernel}
        assert addresses <= {(bytes((10, 1, 0, 1)), bytes((10, 99, 0, 1)))}, "the selector holds"


@fuzz(200)
@given(
    st.sampled_from([TRANSPORT, BARE]),
    st.sampled_from([0, 3, 4, 8, 11, 12, 13]),
    inner_heads,
    octets,
)
def test_authentic_icmp_with_any_quotation_is_counted_once(
    spi: int, icmp_type: int, head: tuple[int, int], rest: bytes
) -> None:
    parts = PlaneParts()
    quoted = bytearray(bytes([head[0]]) + bytes(8) + bytes([head[1]]) + rest)
    for cut in (len(quoted), 20, 21, 23, 24, 0):
        sealed = parts.sealed(spi, bytes([icmp_type, 0]) + bytes(6) + bytes(quoted[:cut]), ICMP)
        if spi == BARE:
            parts.arrive_bare(sealed)
        else:
            parts.arrive(ESP_MARKER + sealed)


@pytest.mark.draft("WIRE-3")
@fuzz(100)
@given(st.lists(st.tuples(st.integers(0, 5), octets, sources), min_size=1, max_size=20))
def test_a_mixed_batch_is_counted_as_a_whole(batch: list[tuple[int, bytes, tuple[str, int]]]) -> None:
    """What is wrong with one datagram costs that datagram only: all honest ones of the batch reach the kernel."""
    parts = PlaneParts()
    received: list[tuple[bytes, tuple[str, int]]] = []
    messages = [data for _, data in real_messages()]
    for what, data, source in batch:
        match what:
            case 0:
                received.append((KEEPALIVE, source))
            case 1:
                received.append((messages[len(data) % len(messages)], source))
            case 2:
                received.append((ESP_MARKER + TUNNEL.to_bytes(4, "big") + data, source))
            case 3:
                received.append((data, source))
            case _:
                received.append((ESP_MARKER + honest(parts, TRANSPORT if what == 4 else TUNNEL), PEER))
    good = sum(what > 3 for what, _, _ in batch)
    parts.flow.datagrams(received, LOCAL)
    assert parts.accounted == len(received)
    assert len(parts.kernel) == good
