"""Impaired links do what was asked, have measured that before they are relied on, and are as before afterwards."""

from __future__ import annotations

import random
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from natbed.impairments import proof, queueing
from natbed.impairments.base import Impairment, ImpairmentError
from natbed.impairments.fragments import in_fragments
from natbed.impairments.link import ImpairedLink
from natbed.impairments.names import ImpairmentNameError, parse_impairment
from natbed.lab import Lab
from natbed.node import Node
from natbed.topology_files import find

isolated = pytest.mark.usefixtures("isolated")
SERVER = "203.0.113.18"
TRACES = ("iptables-save", "nft list ruleset", "tc qdisc show", "ip -oneline link")


@pytest.fixture(scope="module")
def lab(isolated: None) -> Iterator[Lab]:
    with Lab(find("A")(clients=1)) as lab:
        yield lab


def traces(lab: Lab) -> list[str]:
    """All that an impairment may leave."""
    shown = [node.run(command.split()).stdout for node in lab.nodes for command in TRACES]
    lines = [line.partition(" qdisc ")[0] for text in shown for line in text.splitlines()]
    return [line for line in lines if line.startswith(("-A", "qdisc", "table ip natbed")) or " mtu " in line]


def impaired(lab: Lab, **fields: object) -> ImpairedLink:
    """From the Internet to the server, without netem, so that the test is the same everywhere."""
    return ImpairedLink(lab, "internet", "server", Impairment(**fields), netem=False)  # type: ignore[arg-type]


def flow(lab: Lab, count: int, size: int = 20, wait: float = 0.3) -> list[tuple[int, float, int]]:
    """Numbered UDP datagrams from the Internet's router to the server: number, seconds under way, octets."""

    def udp(node: Node) -> socket.socket:
        return node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    came = []
    with udp(lab["internet"]) as sender, udp(lab["server"]) as receiver:
        receiver.bind((SERVER, 0))
        receiver.settimeout(wait)
        sender.connect(receiver.getsockname())
        begun = []
        for number in range(count):
            begun.append(time.monotonic())
            sender.send(number.to_bytes(4, "big") + bytes(size - 4))
        try:
            while True:
                data = receiver.recv(4000)
                number = int.from_bytes(data[:4], "big")
                came.append((number, time.monotonic() - begun[number], len(data)))
        except TimeoutError:
            return came


@isolated
def test_every_nth_is_lost_and_no_other(lab: Lab) -> None:
    before = traces(lab)
    with impaired(lab, every_nth=4) as record:
        assert [number for number, *_ in flow(lab, 12)] == [0, 1, 2, 4, 5, 6, 8, 9, 10]
        assert (record.means, record.deterministic) == ({"every_nth": "statistic"}, ["every_nth"])
        assert record.measured["loss"] == pytest.approx(0.25, abs=0.01)
    assert len(flow(lab, 12)) == 12
    assert traces(lab) == before


@isolated
def test_a_share_is_lost(lab: Lab) -> None:
    with impaired(lab, loss=0.3) as record:
        assert record.means == {"loss": "statistic"}
        assert 0.2 < record.measured["loss"] < 0.4
        assert 100 < len(flow(lab, 200)) < 180


@isolated
def test_packets_are_delayed_in_their_order(lab: Lab) -> None:
    before = traces(lab)
    with impaired(lab, delay=0.05) as record:
        came = flow(lab, 50)
        assert record.means == {"delay": "NFQUEUE"}
    assert [number for number, *_ in came] == list(range(50))
    delays = [seconds for _, seconds, _ in came]
    assert min(delays) >= 0.05
    assert sorted(delays)[25] < 0.09
    assert record.measured["delay"] == pytest.approx(0.055, abs=0.02)
    assert record.passed["packets"] == 50
    assert max(seconds for _, seconds, _ in flow(lab, 20)) < 0.04
    assert traces(lab) == before


@isolated
@pytest.mark.parametrize("stalls", [0, 2, 3])
def test_a_machine_that_stood_still_is_measured_again_but_a_delay_that_stays_too_long_is_none(
    lab: Lab, stalls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains: list[proof.Probes] = []

    def late(*_: object) -> proof.Probes:
        trains.append(proof.Probes(40, [(number, 0.25 if len(trains) < stalls else 0.051) for number in range(40)]))
        return trains[-1]

    monkeypatch.setattr(proof, "_send", late)
    if stalls < 3:
        with impaired(lab, delay=0.05) as record:
            assert record.measured["delay"] == 0.051
        assert len(trains) == stalls + 1
    else:
        with (
            pytest.raises(ImpairmentError, match=r"^delay: 250\.0 ms instead of 50\.0 ms$"),
            impaired(lab, delay=0.05),
        ):
            pytest.fail("it was relied on")
        assert len(trains) == 3


@isolated
@pytest.mark.parametrize(("seconds", "trains"), [((0.2,), 2), ((0.2, 0.2, 0.2), 3), ((-0.2,), 1)])
def test_a_rate_that_is_too_low_is_measured_again_and_one_that_is_too_high_is_not(
    lab: Lab, seconds: tuple[float, ...], trains: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, sent = list(seconds), []

    def late(*_: object) -> proof.Probes:
        took = 0.4 + (more.pop() if more else 0.0)
        sent.append(proof.Probes(0, octets=250_000 + 16_000, first=1.0, last=1.0 + took))
        return sent[-1]

    monkeypatch.setattr(proof, "_send_much", late)
    if len(seconds) < trains:
        with impaired(lab, rate=5e6) as record:
            assert record.measured["rate"] == 5e6
    else:
        with (
            pytest.raises(ImpairmentError, match=r"^rate: \d+\.\d\d Mbit/s instead of 5\.00 Mbit/s$"),
            impaired(lab, rate=5e6),
        ):
            pytest.fail("it was relied on")
    assert len(sent) == trains


def test_probes_that_come_after_a_standstill_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found, waits = proof.Probes(1), 0
    sender, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    reader.setblocking(False)
    wait = select.select

    def standstill(*arguments: Any) -> Any:
        nonlocal waits
        waits += 1
        if waits == 1:
            time.sleep(0.1)  # what the machine does here
            return [], [], []
        if waits == 2:
            sender.send(bytes([0x45]) + bytes(19) + proof._probe(7))
        return wait(*arguments)

    monkeypatch.setattr(select, "select", standstill)
    with sender, reader:
        proof._read_the_last(reader, found, 0.05)
    assert [number for number, _ in found.came] == [7]


@isolated
def test_jitter_makes_delays_differ(lab: Lab) -> None:
    with impaired(lab, delay=0.05, jitter=0.04) as record:
        came = flow(lab, 50)
    assert record.measured["shortest_delay"] < 0.03
    assert record.measured["longest_delay"] > 0.07
    assert record.deterministic == ["jitter"]
    numbers = [number for number, *_ in came]
    assert sorted(numbers) == list(range(50))
    assert numbers != sorted(numbers), "some overtake others"
    assert min(seconds for _, seconds, _ in came) >= 0.01


@isolated
def test_packets_are_doubled_damaged_and_overtaken_the_same_each_time(lab: Lab) -> None:
    """UDP with a changed bit has a wrong checksum and does not arrive.

    By seed 10 no bit of a checksum is changed: one of 0x0008, say, would become 0, and UDP lets pass what has none.
    """
    seen, counts = [], []
    for _ in range(2):
        with impaired(lab, delay=0.02, reorder=0.2, duplicate=0.2, corrupt=0.2, seed=10) as record:
            seen.append(sorted(number for number, *_ in flow(lab, 100)))
            assert record.deterministic == ["corrupt", "duplicate", "reorder"]
        counts.append(record.passed)
    assert seen[0] == seen[1]
    assert counts[0] == counts[1]
    for name in ("doubled", "corrupted", "overtaking"):
        assert 5 < counts[0][name] < 40, counts
    assert len(set(seen[0])) == 100 - counts[0]["corrupted"]
    assert len(seen[0]) > len(set(seen[0])), "some came twice"
    for name in ("reorder", "duplicate", "corrupt"):
        assert record.measured[name] == pytest.approx(0.2, abs=0.08)


@isolated
def test_what_a_nat_has_put_together_is_doubled_as_the_link_carried_it(lab: Lab) -> None:
    tracking = [["iptables", f"-{what}", "INPUT", "-m", "conntrack", "--ctstate", "INVALID"] for what in "AD"]
    lab["server"].run(tracking[0])  # makes the kernel put fragments together before anything else sees them
    try:
        with impaired(lab, duplicate=0.5) as record:
            # few at a time: all that a receiver who comes late finds waiting has to fit its buffer
            came = [(train, number) for train in range(4) for number, *_ in flow(lab, 10, size=3000)]
    finally:
        lab["server"].run(tracking[1])
    assert len(set(came)) == 40
    assert record.passed["packets"] == 40, "it was put together"
    assert len(came) - 40 == record.passed["doubled"] > 10


def test_fragments_carry_the_whole_and_fit() -> None:
    content = bytes(range(250)) * 12
    packet = bytes.fromhex("45000bcc1234000040110000c0000201c0000202") + content
    pieces = in_fragments(packet, 1500)
    assert [len(piece) for piece in pieces] == [1500, 1500, 60]
    assert b"".join(piece[20:] for piece in pieces) == content
    assert [piece[6:8].hex() for piece in pieces] == ["2000", "20b9", "0172"]
    for piece in pieces:
        assert int.from_bytes(piece[2:4], "big") == len(piece)
        words = struct.unpack("!10H", piece[:20])
        assert sum(words) % 0xFFFF == 0
        assert piece[4:6] + piece[8:10] + piece[12:20] == packet[4:6] + packet[8:10] + packet[12:20]
    assert in_fragments(packet, 4000) == [packet]
    assert in_fragments(pieces[0], 576) == [pieces[0]], "not again"


@isolated
def test_loss_and_delay_together_are_one_queues(lab: Lab) -> None:
    with impaired(lab, delay=0.01, loss=0.5) as record:
        assert record.means == {"delay": "NFQUEUE", "loss": "NFQUEUE"}
        first = [number for number, *_ in flow(lab, 60)]
    with impaired(lab, delay=0.01, loss=0.5):
        assert [number for number, *_ in flow(lab, 60)] == first, "the same seed"
    with impaired(lab, delay=0.01, loss=0.5, seed=2):
        assert [number for number, *_ in flow(lab, 60)] != first
    assert record.deterministic == ["loss"]


@isolated
def test_a_rate_is_kept(lab: Lab) -> None:
    with impaired(lab, rate=5e6) as record:
        begin = time.monotonic()
        came = flow(lab, 60, size=1400)
        seconds = max(seconds for _, seconds, _ in came)
        assert time.monotonic() - begin > 0.08
        octets = sum(size + 42 for *_, size in came) - 16_000
        assert octets * 8 / seconds < 5e6 * 1.2
        assert record.means == {"rate": "tbf"}
        assert record.measured["rate"] == pytest.approx(5e6, rel=0.15)


@isolated
def test_fragments_are_dropped_and_whole_packets_are_not(lab: Lab) -> None:
    with impaired(lab, drop_fragments=True) as record:
        assert flow(lab, 3, size=1900) == []
        assert len(flow(lab, 3, size=1400)) == 3
        assert record.means == {"drop_fragments": "nftables"}
    assert len(flow(lab, 3, size=1900)) == 3


@isolated
def test_an_mtu_is_the_links_as_long_as_it_lasts(lab: Lab) -> None:
    before = traces(lab)
    ping = ["ping", "-c", "1", "-W", "1", "-M", "do", "-s", "1300", SERVER]
    with impaired(lab, mtu=1280):
        assert "1280" in lab["internet"].run(ping, check=False).stdout + lab["internet"].run(ping, check=False).stderr
        assert len(flow(lab, 1, size=1200)) == 1
    lab["internet"].run(ping)
    assert traces(lab) == before


@isolated
def test_the_other_direction_is_as_it_was(lab: Lab) -> None:
    with impaired(lab, delay=0.05):
        # -U: else the kernel's time of a reply counts, of before it was queued
        said = lab["server"].run(["ping", "-U", "-c", "5", "-i", "0.2", "-W", "2", "203.0.113.17"]).stdout
    milliseconds = [float(text) for text in re.findall(r"time=([\d.]+) ms", said)]
    assert len(milliseconds) == 5
    assert 50 < min(milliseconds) <= max(milliseconds) < 100, "once, not twice"


@isolated
def test_an_impairment_that_does_something_else_is_a_broken_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = traces(lab)
    monkeypatch.setattr(ImpairedLink, "_statistic", lambda self: ["PREROUTING", "-i", "lo", "-j", "DROP"])
    with (
        pytest.raises(ImpairmentError, match=r"loss: 0 packets instead of 200, give or take 64"),
        impaired(lab, loss=0.2),
    ):
        pass
    monkeypatch.setattr(queueing.Queueing, "begin_anew", _ruin)
    with pytest.raises(ImpairmentError, match=r"delay: \d\.\d ms instead of 30\.0 ms"), impaired(lab, delay=0.03):
        pass
    assert traces(lab) == before


def _ruin(victim: queueing.Queueing) -> None:
    victim._impairment = Impairment()
    victim._random = random.Random(1)
    victim._number = 0


@isolated
def test_what_cannot_be_impaired_says_why(lab: Lab) -> None:
    with pytest.raises(ImpairmentError, match="home is a LAN, where no rule sees a packet: loss from home to the node"):
        ImpairedLink(lab, "client1", "home", Impairment(loss=0.1), netem=False).__enter__()
    with pytest.raises(ImpairmentError, match="no link between client1 and server"):
        ImpairedLink(lab, "client1", "server", Impairment(loss=0.1))
    with ImpairedLink(lab, "home", "client1", Impairment(loss=0.1), netem=False) as record:
        assert 0.04 < record.measured["loss"] < 0.17


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": 5}, "loss 5: a share is between 0 and 1"),
        ({"delay": -1}, "delay -1: it cannot be negative"),
        ({"loss": 0.1, "every_nth": 3}, "loss and every_nth: one of them"),
        ({"every_nth": 1}, "every_nth 1: that is a link that is down"),
        ({"delay": 1, "jitter": 2}, "jitter 2: not more than the delay, 1"),
        ({"reorder": 0.1}, "reorder: nothing can be overtaken without a delay"),
        ({"mtu": 60}, "mtu 60: IPv4 needs 68 octets"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Impairment(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "impairment"),
    [
        ("loss 5 %", Impairment(loss=0.05)),
        ("loss 5%", Impairment(loss=0.05)),
        ("delay 30 ms jitter 5ms", Impairment(delay=0.03, jitter=0.005)),
        ("delay 1.5 s", Impairment(delay=1.5)),
        ("delay 30", Impairment(delay=0.03)),
        ("rate 10 Mbit/s nth 7", Impairment(rate=10e6, every_nth=7)),
        ("rate 64kbit/s", Impairment(rate=64e3)),
        ("fragments mtu 1400 seed 3", Impairment(drop_fragments=True, mtu=1400, seed=3)),
    ],
)
def test_impairments_as_people_write_them(text: str, impairment: Impairment) -> None:
    assert parse_impairment(f"internet nat {text}") == ("internet", "nat", impairment)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "impair FROM TO WHAT ...; `help impair` says"),
        ("internet nat", "impair FROM TO WHAT ...; `help impair` says"),
        ("internet nat rain 5", "no impairment 'rain'; there are loss, nth, "),
        ("internet nat delay", "delay what: it takes a number, in ms"),
        ("internet nat delay much", "delay much: it takes a number, in ms"),
        ("internet nat nth 2.5", "nth 2.5: it takes a whole number"),
        ("internet nat loss 200", "loss 2.0: a share is between 0 and 1"),
    ],
)
def test_a_wrong_impairment_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ImpairmentNameError, match=re.escape(message)):
        parse_impairment(text)
