"""A batch comes to what one packet after the other comes to, with every suite; what is wrong costs itself only."""

from __future__ import annotations

import itertools
import os
import random

import numpy as np
import pytest
from fuzz_world import fuzz
from hypothesis import given
from hypothesis import strategies as st

from espthrunat.esp.batches import Opened, open_rows, plaintext_of, seal_rows
from espthrunat.esp.frames import FrameCache, Frames
from espthrunat.esp.replay import ReplayWindow
from espthrunat.esp.sa import LAST_SEQUENCE, Drop, InboundSa, OutboundSa, SequenceExhaustedError
from espthrunat.esp.suites import SUITES, EspSuite, Mode

SPI = 0x12345678
every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)


def keymat(suite: EspSuite) -> bytes:
    return bytes(range(1, 1 + suite.keymat_octets))


def pair(suite: EspSuite, next_header: int | None = 4) -> tuple[OutboundSa, InboundSa]:
    return OutboundSa(SPI, suite, keymat(suite)), InboundSa(SPI, suite, keymat(suite), next_header=next_header)


def sealed(sa: OutboundSa, packets: list[bytes], cache: FrameCache | None = None, next_header: int = 4) -> list[bytes]:
    """Seal packets of one length as a batch."""
    length = len(packets[0])
    frames = (cache or FrameCache(65507, 64)).get(sa.suite, length)
    rows = np.frombuffer(b"".join(packets), np.uint8).reshape(len(packets), length)
    plaintext_of(sa, frames)[: len(packets), :length] = rows
    seal_rows(sa, frames, len(packets), length, next_header)
    assert not frames.array[:, :8].any(), "the marker"
    return [row[8:].tobytes() for row in frames.array[: len(packets)]]


def opened(sa: InboundSa, packets: list[bytes], begin: int = 0) -> Opened | None:
    """Open ESP packets of one length as a batch that begins at row `begin`."""
    rows = bytearray(b"".join(bytes(8) + packet for packet in packets))
    frames = Frames(np.frombuffer(rows, np.uint8).reshape(len(packets), -1), sa.suite)
    return open_rows(sa, frames, begin, len(packets))


def inner(result: Opened | None) -> list[bytes]:
    assert result is not None
    return [row.tobytes() for rows, _ in result.groups for row in rows]


@every_suite
def test_a_batch_opens_one_by_one_and_the_other_way_round(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    _, by_batch = pair(suite)
    cache = FrameCache(65507, 64)
    chance = random.Random(1)
    for length in [1, 2, 3, 4, 13, 14, 15, 16, 17, 100, 1400, 1430, 20, 100]:
        packets = [chance.randbytes(length) for _ in range(40)]
        batch = sealed(sender, packets, cache)
        single = sender.seal(packets)
        assert receiver.open(batch + single) == packets * 2
        assert inner(opened(by_batch, single)) == packets
    assert (sender.packets, sender.octets) == (receiver.packets, receiver.octets)
    assert by_batch.packets * 2 == receiver.packets


@every_suite
def test_numbers_go_on_from_batch_to_packet_to_batch(suite: EspSuite) -> None:
    sender, _ = pair(suite)
    packets = [bytes(10)] * 5
    numbers = [
        int.from_bytes(packet[4:8], "big")
        for batch in (sealed(sender, packets), sender.seal(packets), sealed(sender, packets))
        for packet in batch
    ]
    assert numbers == list(range(1, 16))


@pytest.mark.parametrize("suite", [suite for suite in SUITES.values() if suite.iv_octets], ids=lambda suite: suite.name)
def test_ivs_never_repeat_in_and_across_batches(suite: EspSuite) -> None:
    sender, _ = pair(suite)
    cache = FrameCache(65507, 64)
    packets = [b"the same"] * 50
    everything = [p for _ in range(10) for p in sealed(sender, packets, cache) + sender.seal(packets)]
    assert len({packet[8 : 8 + suite.iv_octets] for packet in everything}) == 1000


def test_the_iv_of_gcm_is_the_sequence_number() -> None:
    """RFC 4106, 3.1: unique; and no other SA's batch in the same memory leaves anything behind."""
    suite, cache = SUITES["aes128gcm16"], FrameCache(65507, 64)
    one, _ = pair(suite)
    other = OutboundSa(SPI + 1, suite, bytes(suite.keymat_octets))
    for _ in range(3):
        sealed(one, [bytes(20)] * 7, cache)
        for packet in sealed(other, [bytes(20)] * 9, cache):
            assert packet[8:16] == bytes(4) + packet[4:8]


@pytest.mark.parametrize(
    "suite", [suite for suite in SUITES.values() if suite.cipher.mode is Mode.CBC], ids=lambda suite: suite.name
)
def test_the_iv_of_cbc_is_an_encrypted_random_block(suite: EspSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 3602, 3: unpredictable. All of the batch's blocks come from the system's randomness."""
    asked: list[int] = []
    real = os.urandom

    def urandom(octets: int) -> bytes:
        asked.append(octets)
        return real(octets)

    monkeypatch.setattr(os, "urandom", urandom)
    first = sealed(OutboundSa(SPI, suite, keymat(suite)), [b"the same"] * 8)
    second = sealed(OutboundSa(SPI, suite, keymat(suite)), [b"the same"] * 8)
    assert asked == [8 * suite.iv_octets] * 2
    assert len({packet[8 : 8 + suite.iv_octets] for packet in first + second}) == 16


@every_suite
def test_forged_packets_cost_themselves_only(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    packets = [bytes([number]) * 100 for number in range(40)]
    batch = sealed(sender, packets)
    whole = list(batch)
    wrong = {0, 7, 8, 39}
    for number in wrong:
        octets = bytearray(batch[number])
        octets[8 + number % (len(octets) - 8)] ^= 1
        batch[number] = bytes(octets)
    result = opened(receiver, batch)
    assert inner(result) == [packet for number, packet in enumerate(packets) if number not in wrong]
    assert result is not None
    assert result.drops == [(Drop.ICV, len(wrong))]
    assert receiver.dropped == {"icv": len(wrong)}
    assert receiver.packets == 36
    # The true ones are taken after all; what was taken already is not.
    late = receiver.open(whole)
    assert [number for number, packet in enumerate(late) if isinstance(packet, bytes)] == sorted(wrong)


@every_suite
def test_every_octet_of_an_icv_counts_in_every_row(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    batch = sealed(sender, [bytes(20)] * (2 * suite.icv_octets))
    forged = [bytearray(packet) for packet in batch]
    for number in range(suite.icv_octets):
        forged[2 * number][-1 - number] ^= 0x80
    result = opened(receiver, [bytes(packet) for packet in forged])
    assert result is not None
    assert result.drops == [(Drop.ICV, suite.icv_octets)]
    late = receiver.open(batch)
    assert [isinstance(packet, bytes) for packet in late] == [True, False] * suite.icv_octets


@every_suite
def test_batches_in_the_same_memory_do_not_disturb_each_other(suite: EspSuite) -> None:
    """Ciphers work in place: what one batch leaves behind must not get into another, shorter, longer or elsewhere."""
    sender, receiver = pair(suite)
    cache, chance = FrameCache(65507, 64), random.Random(2)
    memory = np.zeros((40, 0), np.uint8)
    frames: Frames | None = None
    for count, begin in ((3, 0), (40, 0), (7, 20), (1, 39), (25, 2)):
        packets = [chance.randbytes(101) for _ in range(count)]
        batch = sealed(sender, packets, cache)
        if frames is None:
            memory = np.zeros((40, 8 + len(batch[0])), np.uint8)
            frames = Frames(memory, suite)
        rows = np.frombuffer(b"".join(batch), np.uint8).reshape(count, -1)
        memory[begin : begin + count, 8:] = rows
        assert inner(open_rows(receiver, frames, begin, begin + count)) == packets


@every_suite
def test_a_batch_that_is_not_fresh_is_left_to_be_taken_one_by_one(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    packets = [b"%04d" % number for number in range(30)]
    batch = sealed(sender, packets)
    for odd in ([*batch[:5], batch[3]], [batch[1], batch[0]], [batch[2], batch[2]]):
        assert opened(receiver, odd) is None
    assert inner(opened(receiver, batch[10:20])) == packets[10:20]
    assert opened(receiver, batch[15:25]) is None
    assert inner(opened(receiver, batch[:10])) == packets[:10], "late, but in the window"
    assert opened(receiver, batch[5:6]) is None
    assert receiver.open(batch) == [Drop.REPLAY] * 20 + packets[20:]


@every_suite
def test_a_length_that_the_suite_does_not_know_is_left_too(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    batch = sealed(sender, [bytes(40)] * 5)
    for octets in (0, 3, 8, 8 + suite.iv_octets + suite.icv_octets, len(batch[0]) - 1):
        if octets >= 8:
            assert opened(receiver, [packet[:octets] for packet in batch]) is None
    assert receiver.sequence == 0


@every_suite
def test_only_some_rows_are_opened_where_only_some_are_asked_for(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    packets = [b"%04d" % number for number in range(30)]
    assert inner(opened(receiver, sealed(sender, packets), begin=11)) == packets[11:]


@every_suite
def test_trailers_are_looked_at_row_by_row(suite: EspSuite) -> None:
    """Packets that differ in length by less than the padding arrive equally long."""
    sender, receiver = pair(suite, next_header=None)
    alignment = suite.cipher.alignment
    contents = [(6, b"x" * (alignment * 4 - 2 - number % alignment)) for number in range(20)]
    contents += [(17, b"y" * (alignment * 4 - 2))] * 5 + [(59, b"z" * (alignment * 4 - 2))] * 3
    batch = [packet for next_header, content in contents for packet in sender.seal([content], next_header)]
    assert len({len(packet) for packet in batch}) == 1
    result = opened(receiver, batch)
    assert result is not None
    found = [(next_header, row.tobytes()) for rows, next_header in result.groups for row in rows]
    assert found == contents[:25]
    assert result.drops == [(Drop.DUMMY, 3)]


@every_suite
@pytest.mark.parametrize(
    "trailer",
    [bytes([1, 2, 3, 9, 4, 4]), bytes([0, 0, 0, 0, 4, 4]), bytes([1, 2, 3, 4, 255, 4])],
    ids=["last octet", "zeros", "longer than the packet"],
)
@pytest.mark.parametrize("wrong", [{2}, {0}, {0, 1, 2, 3}], ids=["a row", "the first", "all"])
def test_padding_must_describe_itself(suite: EspSuite, trailer: bytes, wrong: set[int]) -> None:
    sender, receiver = pair(suite)
    transform = sender.transform
    good = bytes(26) + bytes([1, 2, 3, 4, 4, 4])
    bad = bytes(32 - len(trailer)) + trailer
    plaintexts = [bad if number in wrong else good for number in range(4)]
    batch = [
        transform.seal(SPI.to_bytes(4, "big") + number.to_bytes(4, "big"), transform.seed(number), plaintext)
        for number, plaintext in enumerate(plaintexts, 1)
    ]
    result = opened(receiver, batch)
    assert inner(result) == [bytes(26)] * (4 - len(wrong))
    assert result is not None
    assert result.drops == [(Drop.PADDING, len(wrong))]


@every_suite
def test_what_is_inside_must_be_what_was_agreed(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    result = opened(receiver, sealed(sender, [bytes(40)] * 3, next_header=6) + sealed(sender, [bytes(40)] * 2))
    assert inner(result) == [bytes(40)] * 2
    assert receiver.dropped == {"next_header": 3}


@every_suite
def test_a_batch_never_wraps_the_sequence(suite: EspSuite) -> None:
    sender = OutboundSa(SPI, suite, keymat(suite), sequence=LAST_SEQUENCE - 3)
    with pytest.raises(SequenceExhaustedError):
        sealed(sender, [b"1", b"2", b"3", b"4"])
    assert sender.sequence == LAST_SEQUENCE - 3
    receiver = InboundSa(SPI, suite, keymat(suite))
    assert receiver.open(sealed(sender, [b"1", b"2", b"3"])) == [b"1", b"2", b"3"]
    with pytest.raises(SequenceExhaustedError):
        sealed(sender, [b"4"])


@pytest.mark.draft("SA-5")
@fuzz(300)
@given(st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=20), max_size=20), st.integers(1, 90))
def test_the_window_takes_batches_as_it_takes_packets(batches: list[list[int]], jump: int) -> None:
    together, single = ReplayWindow(64), ReplayWindow(64)
    for base, batch in enumerate(batches):
        sequences = sorted(number + base * jump for number in batch) if base % 2 else batch
        rises = all(one < other for one, other in itertools.pairwise(sequences))
        expected = rises and all(map(single.is_fresh, sequences))
        assert together.are_fresh(sequences) is expected
        if expected:
            together.mark_all(sequences)
            for sequence in sequences:
                single.mark(sequence)
        assert together.top == single.top
        assert [together.is_fresh(n) for n in range(900)] == [single.is_fresh(n) for n in range(900)]


def test_memory_is_shared_and_bounded() -> None:
    cache = FrameCache(65507, 64, kept=3)
    suite = SUITES["aes128gcm16"]
    first = cache.get(suite, 100)
    assert cache.get(suite, 100) is first
    assert cache.get(suite, 99) is first, "as long with its padding"
    for length in (200, 300, 400):
        cache.get(suite, length)
    assert cache.get(suite, 100) is not first, "the oldest went"
    assert cache.get(suite, 30).array.shape[0] == 64
    assert cache.get(suite, 65000).array.shape[0] == 1
    assert cache.get(suite, 1430).array.nbytes <= 65507
