"""What is sealed can be opened once, by the right key, and by nobody who changed a bit of it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espthrunat.esp.replay import ReplayWindow
from espthrunat.esp.sa import LAST_SEQUENCE, SOFT_SEQUENCE, Drop, InboundSa, OutboundSa, SequenceExhaustedError
from espthrunat.esp.suites import SUITES, EspSuite

SPI = 0x12345678
every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)


def keymat(suite: EspSuite) -> bytes:
    return bytes(range(1, 1 + suite.keymat_octets))


def pair(suite: EspSuite, window: int = 1024) -> tuple[OutboundSa, InboundSa]:
    return OutboundSa(SPI, suite, keymat(suite)), InboundSa(SPI, suite, keymat(suite), window=window)


@every_suite
def test_round_trip_for_every_size(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    packets = [bytes([size & 0xFF]) * size for size in range(1500)]
    assert receiver.open(sender.seal(packets)) == packets
    assert (receiver.packets, receiver.octets) == (sender.packets, sender.octets) == (1500, sum(range(1500)))


@every_suite
def test_sequence_numbers_count_up_from_one(suite: EspSuite) -> None:
    sender, _ = pair(suite)
    sealed = sender.seal([b"a", b"b"]) + sender.seal([b"c"])
    assert [struct.unpack_from("!II", packet) for packet in sealed] == [(SPI, 1), (SPI, 2), (SPI, 3)]


@pytest.mark.parametrize("suite", [suite for suite in SUITES.values() if suite.iv_octets], ids=lambda suite: suite.name)
def test_the_iv_never_repeats(suite: EspSuite) -> None:
    sender, _ = pair(suite)
    ivs = {packet[8 : 8 + suite.iv_octets] for packet in sender.seal([b"the same"] * 1000)}
    assert len(ivs) == 1000


def test_two_senders_with_one_cbc_key_use_different_ivs() -> None:
    suite = SUITES["aes128-sha256"]
    (first,), (second,) = (OutboundSa(SPI, suite, keymat(suite)).seal([b"the same"]) for _ in range(2))
    assert first[8:24] != second[8:24]


@every_suite
def test_every_flipped_bit_is_noticed_and_costs_only_its_packet(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    good, _, bad = sender.seal([b"good", b"", b"bad"])  # number 3 is one bit away from 0 nowhere
    for bit in range(len(bad) * 8):
        forged = bytearray(bad)
        forged[bit // 8] ^= 1 << bit % 8
        (drop,) = receiver.open([bytes(forged)])
        assert drop is (Drop.MALFORMED if bit < 32 else Drop.ICV), f"bit {bit} gave {drop!r}"
    assert receiver.open([good, b"", bad]) == [b"good", Drop.MALFORMED, b"bad"]
    assert receiver.dropped["icv"] == len(bad) * 8 - 32


@every_suite
def test_every_shorter_packet_is_refused(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    (packet,) = sender.seal([bytes(100)])
    for octets in range(len(packet)):
        assert receiver.open([packet[:octets]])[0] in (Drop.MALFORMED, Drop.ICV)
    assert receiver.open([packet]) == [bytes(100)]


@given(st.binary(max_size=200))
def test_random_octets_are_refused(octets: bytes) -> None:
    for suite in SUITES.values():
        _, receiver = pair(suite)
        (drop,) = receiver.open([SPI.to_bytes(4, "big") + octets])
        assert isinstance(drop, Drop)


@every_suite
def test_another_key_opens_nothing(suite: EspSuite) -> None:
    sender, _ = pair(suite)
    stranger = InboundSa(SPI, suite, bytes(suite.keymat_octets))
    assert stranger.open(sender.seal([b"secret"])) == [Drop.ICV]


@every_suite
def test_what_is_inside_must_be_what_was_agreed(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    tcp = sender.seal([b"transport"], next_header=6)
    dummy = sender.seal([b"noise"], next_header=59)
    assert receiver.open(tcp + dummy) == [Drop.NEXT_HEADER, Drop.DUMMY]
    assert receiver.dropped == {"next_header": 1, "dummy": 1}


@every_suite
def test_transport_mode_carries_any_protocol_but_dummies(suite: EspSuite) -> None:
    sender = OutboundSa(SPI, suite, keymat(suite))
    receiver = InboundSa(SPI, suite, keymat(suite), next_header=None)
    sealed = sender.seal([b"tcp"], 6) + sender.seal([b"noise"], 59) + sender.seal([b"udp"], 17) + sender.seal([b"ip"])
    assert receiver.open_any([*sealed, sealed[0]]) == [
        (6, b"tcp"),
        Drop.DUMMY,
        (17, b"udp"),
        (4, b"ip"),
        Drop.REPLAY,
    ]


@every_suite
@pytest.mark.parametrize(
    "trailer",
    [bytes([1, 2, 3, 9, 4, 4]), bytes([0, 0, 0, 0, 4, 4]), bytes([1, 2, 3, 4, 255, 4])],
    ids=["last octet", "zeros", "longer than the packet"],
)
def test_padding_must_describe_itself(suite: EspSuite, trailer: bytes) -> None:
    sender, receiver = pair(suite)
    transform = sender._transform
    plaintext = bytes(32 - len(trailer)) + trailer
    packet = transform.seal(struct.pack("!II", SPI, 1), transform.seed(1), plaintext)
    assert receiver.open([packet]) == [Drop.PADDING]


@every_suite
def test_the_sequence_never_wraps(suite: EspSuite) -> None:
    sender = OutboundSa(SPI, suite, keymat(suite), sequence=LAST_SEQUENCE - 3)
    receiver = InboundSa(SPI, suite, keymat(suite))
    with pytest.raises(SequenceExhaustedError):
        sender.seal([b"1", b"2", b"3", b"4"])
    assert receiver.open(sender.seal([b"1", b"2", b"3"])) == [b"1", b"2", b"3"]
    with pytest.raises(SequenceExhaustedError):
        sender.seal([b"4"])
    assert sender.sequence == LAST_SEQUENCE


def test_rekey_is_asked_for_in_time() -> None:
    suite = SUITES["aes128gcm16"]
    sender = OutboundSa(SPI, suite, keymat(suite), sequence=SOFT_SEQUENCE - 1)
    assert not sender.needs_replacement
    sender.seal([b""])
    assert sender.needs_replacement


@every_suite
def test_reprs_hide_the_keys(suite: EspSuite) -> None:
    for sa in pair(suite):
        assert repr(sa) == f"{type(sa).__name__}(spi=0x12345678, suite={suite.name}, sequence=0)"


@pytest.mark.draft("SA-5")
@settings(max_examples=300)
@given(
    st.integers(64, 200),
    st.lists(st.tuples(st.one_of(st.integers(0, 700), st.integers(0, LAST_SEQUENCE)), st.booleans()), max_size=150),
)
def test_replay_window_is_the_plain_model(size: int, arrivals: list[tuple[int, bool]]) -> None:
    """The model remembers all that was seen; forged packets (False) are looked at, never marked."""
    window, seen, top = ReplayWindow(size), set[int](), 0
    for sequence, authentic in arrivals:
        expected = sequence > 0 and sequence not in seen and sequence > top - size
        assert window.is_fresh(sequence) is expected
        if expected and authentic:
            window.mark(sequence)
            seen.add(sequence)
            top = max(top, sequence)
    assert window.top == top


@every_suite
def test_each_packet_is_taken_once_in_any_order(suite: EspSuite) -> None:
    sender, receiver = pair(suite, window=64)
    sealed = sender.seal([b"%d" % number for number in range(1, 101)])
    assert receiver.open([sealed[49], sealed[0], sealed[49], sealed[0]]) == [b"50", b"1", Drop.REPLAY, Drop.REPLAY]
    assert receiver.open([sealed[99], sealed[36], sealed[35]]) == [b"100", b"37", Drop.REPLAY]


@every_suite
def test_a_forged_sequence_number_does_not_move_the_window(suite: EspSuite) -> None:
    sender, receiver = pair(suite)
    (packet,) = sender.seal([b"late"])
    forged = packet[:4] + (0x7FFFFFFF).to_bytes(4, "big") + packet[8:]
    assert receiver.open([forged, packet]) == [Drop.ICV, b"late"]


def test_a_window_smaller_than_64_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        ReplayWindow(63)
