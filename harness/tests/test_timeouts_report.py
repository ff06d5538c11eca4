"""What keepalives cost, whether a tunnel was idle, and how a benchmark of timeouts is told: on made-up measurements."""

from __future__ import annotations

import io
import json
import pathlib
import re

import msgspec
import pytest
from rich.console import Console

from natbed.bench.record import Machine
from natbed.bench.timeouts import evidence
from natbed.bench.timeouts.costs import METHODS, ONE_PORT, RFC_3948, TWO_PORTS, break_even, keepalive_cost
from natbed.bench.timeouts.pace import Pace
from natbed.bench.timeouts.plots import HELD, LOST, plots
from natbed.bench.timeouts.record import (
    KEPT,
    SILENT,
    Between,
    KeepalivesSeen,
    Lifetime,
    Outage,
    Overhead,
    Recovery,
    Survival,
    TimeoutsRecord,
    Trial,
    Trouble,
    conclude,
)
from natbed.bench.timeouts.report import WIDTH, show
from natbed.bench.timeouts.survival import judge_silence
from natbed.bench.timeouts.watch import ESP_IN_UDP, IKE, KEEPALIVE, PLAIN_ESP, Packet, packets
from natbed.bench.timeouts.wire_costs import SIZES, count_keepalives, overheads
from natbed.capture import Frame, write_pcap
from natbed.checks import Verdict
from natbed.stacks.base import StackError

CLIENT, SERVER = "192.168.1.11", "203.0.113.18"
MACHINE = Machine(processors=2, kernel="6.1", python="3.11", natbed="0.1", congestion="cubic", load=0.0)


# costs


def test_what_keeps_the_mappings_of_each_method_for_an_hour() -> None:
    costs = {method: keepalive_cost(method, 20.0) for method in METHODS}
    assert {m: (c.idle_packets, c.idle_octets) for m, c in costs.items()} == {
        ONE_PORT: (180, 5220),
        TWO_PORTS: (360, 10_440),
        RFC_3948: (180, 5220),
    }
    assert {m: (c.busy_packets, c.busy_octets) for m, c in costs.items()} == {
        ONE_PORT: (0, 0),
        TWO_PORTS: (180, 5220),
        RFC_3948: (0, 0),
    }, "IKE's own mapping sees no traffic while ESP passes"
    assert {m: (m.esp, m.ike) for m in METHODS} == {ONE_PORT: (16, 0), TWO_PORTS: (8, 0), RFC_3948: (8, 4)}
    assert break_even(20.0) * 8 == costs[TWO_PORTS].busy_octets


def packet(seconds: float, kind: str = KEEPALIVE, octets: int = 29, zeros: int = 0) -> Packet:
    return Packet(seconds, CLIENT, SERVER, kind, octets, zeros)


def test_keepalives_are_counted_while_they_are_watched() -> None:
    sent = [packet(99.9), *(packet(101 + n * 1.01) for n in range(9)), packet(104, ESP_IN_UDP, 120), packet(110.5)]
    seen = count_keepalives("client1", sent, 100.0, 110.0, busy=False, nat=True, pace=Pace(20))
    assert (seen.packets, seen.octets, seen.interval, seen.watched) == (9, 261, 20, 200)
    assert seen.mean == pytest.approx(20.2)
    assert seen.longest == pytest.approx(20.2)
    assert seen.hourly == pytest.approx(3600 / 20.2)
    none = count_keepalives("client2", sent[:1], 100.0, 110.0, busy=True, nat=True, pace=Pace(20))
    assert (none.packets, none.hourly, none.mean) == (0, 0, None)


def test_octets_of_each_size_come_from_both_captures() -> None:
    plain = [packet(n, PLAIN_ESP, size + 60) for n, size in enumerate(SIZES)]
    in_udp = [packet(n, ESP_IN_UDP, size + 76, 8) for n, size in enumerate(SIZES)]
    found = overheads([*plain, packet(9, IKE, 200)], [packet(0), *in_udp])
    assert found == [Overhead(inner=size, plain=size + 60, in_udp=size + 76, zeros=8) for size in SIZES]
    with pytest.raises(
        StackError, match=r"^of 6 packets 6 went as ESP through the router and 5 in UDP through the NAT$"
    ):
        overheads(plain, in_udp[1:])


def frame(protocol: int, data: bytes, ports: tuple[int, int] = (500, 500)) -> bytes:
    udp = b"" if protocol == 50 else ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big") + bytes(4)
    ip = bytes([0x45, 0]) + (20 + len(udp + data)).to_bytes(2, "big") + bytes(5) + bytes([protocol]) + bytes(2)
    ends = bytes(map(int, CLIENT.split("."))) + bytes(map(int, SERVER.split(".")))
    padding = bytes(max(46 - len(ip + ends + udp + data), 0))
    return bytes(12) + b"\x08\x00" + ip + ends + udp + data + padding


def test_packets_of_a_capture_are_told_apart_by_what_they_begin_with(tmp_path: pathlib.Path) -> None:
    spi = b"\xc0\x00\x00\x01"
    contents = [
        frame(17, b"\xff"),
        frame(17, bytes(8) + spi + bytes(40)),
        frame(17, spi + bytes(40)),
        frame(50, spi + bytes(40)),
        frame(17, b"\xff", (40_000, 4999)),
        bytes(12) + b"\x08\x06" + bytes(46),
    ]
    write_pcap(tmp_path / "pcap", [Frame(n, n * 10**9, data, truncated=False) for n, data in enumerate(contents)])
    found = packets(tmp_path / "pcap")
    assert [(one.kind, one.octets, one.zeros) for one in found] == [
        (KEEPALIVE, 29, 0),
        (ESP_IN_UDP, 80, 8),
        (IKE, 72, 0),
        (PLAIN_ESP, 64, 0),
    ]
    assert {(one.source, one.destination) for one in found} == {(CLIENT, SERVER)}
    assert [one.seconds for one in found] == [0, 1, 2, 3]


# idleness


def test_a_silence_is_what_the_nat_has_seen() -> None:
    knock = packet(99.99, ESP_IN_UDP)
    silence, void = judge_silence(5.0, SILENT, 100.0, 105.0, [knock])
    assert (round(silence, 3), void) == (5.01, "")
    silence, void = judge_silence(5.0, KEPT, 100.0, 110.0, [knock, packet(105.2)])
    assert (round(silence, 3), void) == (5.21, "")


@pytest.mark.parametrize(
    ("kind", "asked", "passed", "reason"),
    [
        (SILENT, 105.0, [], "nothing had passed the NAT"),
        (SILENT, 105.0, [packet(99, ESP_IN_UDP), packet(101)], "1 keepalives passed"),
        (SILENT, 105.0, [packet(99, ESP_IN_UDP), packet(101, IKE)], "not idle: IKE passed"),
        (KEPT, 110.0, [packet(99.9, ESP_IN_UDP)], "0 keepalives passed"),
        (KEPT, 110.0, [packet(99.9, ESP_IN_UDP), packet(104), packet(108)], "2 keepalives passed"),
        (SILENT, 107.0, [packet(99.9, ESP_IN_UDP)], "a silence of 7.10 s, where one of 5.00 s was planned"),
    ],
)
def test_a_trial_that_was_not_as_planned_says_nothing(
    kind: str, asked: float, passed: list[Packet], reason: str
) -> None:
    assert judge_silence(5.0, kind, 100.0, asked, passed)[1] == reason


# the whole


def trial(kind: str, timeout: float, silence: float, void: str = "") -> Trial:
    kept = kind == KEPT
    return Trial(
        round=1,
        client="client1",
        kind=kind,
        timeout=timeout,
        keepalive=silence * kept,
        idle=silence * (1 + kept),
        silence=silence,
        data=silence < timeout,
        rekey=silence < timeout,
        void=void,
    )


def outage(fault: str, policy: str, sender: str, away: float | None, lost: int) -> Outage:
    return Outage(
        fault=fault,
        policy=policy,
        sender=sender,
        round=1,
        client="client1",
        happened="the NAT nat1 rebooted",
        lasted=6.0,
        away=away,
        lost=lost,
        sent=900,
        mappings=["203.0.113.2:500", "203.0.113.2:39"],
    )


OUTAGES = [
    outage("port change", "strict", "client", 240.0, 400),
    outage("port change", "strict", "client", 300.0, 500),
    outage("port change", "authenticated", "client", 0.0, 10),
    outage("port change", "authenticated", "server", None, 800),
    outage("port change", "strict", "server", 250.0, 420),
]


def record(**changed: object) -> TimeoutsRecord:
    timeouts = [180.0, 600.0]
    found = TimeoutsRecord(
        started="2026-11-28T06:00:00.000+00:00",
        took=123.4,
        speed=60.0,
        timeouts=timeouts,
        rounded={"590": 600.0},
        parts=["lifetime", "survival", "costs", "recovery"],
        machine=MACHINE,
        lifetimes=[
            Lifetime(state=state, configured=one, cliff=Between(low=one, high=one + 4), probes=40)
            for state in ("unreplied", "replied")
            for one in timeouts
        ],
        survival=[
            Survival(kind=kind, timeout=one, cliff=Between(low=one - 20, high=one + 20), trials=8)
            for kind in (SILENT, KEPT)
            for one in timeouts
        ],
        trials=[trial(kind, one, one * part) for kind in (SILENT, KEPT) for one in timeouts for part in (0.5, 0.9, 1.2)]
        + [trial(SILENT, 180.0, 400.0, void="0 keepalives passed")],
        costs=[keepalive_cost(method, 20.0) for method in METHODS],
        keepalives=[
            KeepalivesSeen(
                client="client1",
                busy=False,
                nat=True,
                interval=60,
                watched=600,
                packets=9,
                octets=261,
                mean=60.1,
                longest=61,
            ),
            KeepalivesSeen(
                client="client2",
                busy=True,
                nat=True,
                interval=60,
                watched=600,
                packets=0,
                octets=0,
                mean=None,
                longest=None,
            ),
        ],
        overheads=[Overhead(inner=64, plain=120, in_udp=136, zeros=8)],
        recovery=Recovery(dpd=180, keepalive=120, within=720, interval=0.6, outages=OUTAGES),
        troubles=[],
        verdict=Verdict.PASSED,
        reason="everything was measured",
    )
    return msgspec.structs.replace(found, **changed)


def shown(one: TimeoutsRecord) -> list[str]:
    text = io.StringIO()
    show(one, Console(file=text, width=WIDTH, color_system=None, soft_wrap=True))
    return text.getvalue().splitlines()


def rows(lines: list[str], title: str) -> list[list[str]]:
    """The words of a table's lines below its heads, up to the caption."""
    begin = next(n for n, line in enumerate(lines) if line.strip() == title)
    return [line.split() for line in lines[begin:] if line.strip()]


def test_the_tables_say_what_was_measured_and_how_well() -> None:
    lines = shown(record())
    assert (
        max(
            len(line) for line in lines if re.match(r" (timeout|inner|500 alone|two ports|idle|busy|port change)", line)
        )
        <= WIDTH
    )
    text = [" ".join(line.split()) for line in lines]
    assert "timeout 180 s 182 182" in text
    assert text[text.index("timeout 180 s 182 182") + 1] == "+-2 +-2"
    at = text.index("timeout 600 s 600 600")
    assert text[at + 1 : at + 3] == ["+-20 +-20", "8 trials 8 trials"]
    assert "500 alone (this draft) 180 5220 0 0 16 0" in text
    assert "two ports (draft, 6.2) 360 10440 180 5220 8 0" in text
    assert "The marker costs as much as a second port from 652 ESP packets an hour on." in text
    assert "idle, behind the NAT 9 261 60 61 60" in text
    assert "busy, behind the NAT 0 0 - - 0" in text
    assert "inner 64 120 136 16 8 5.9" in text
    at = text.index("port change, client 270.0 450 0.0 10")
    assert text[at + 1] == "240.0 to 300.0"
    at = text.index("port change, server 250.0 420 not within 800")
    assert text[at + 1 : at + 3] == ["720 s", "1 of 1"]
    assert "for each 180 s, keepalives sent each 120 s; a datagram goes each" in text
    assert "0.6 s, which is the resolution. How long it takes that a move is seen depends on" in text
    assert "a timeout of 590 s cannot be had at this speed: it was 600 s" in text
    assert "1 of 13 trials said nothing and do not count; one: 0 keepalives passed" in text
    assert any(line.startswith("speed 60: seconds are model seconds, 60 of them a real one;") for line in text)
    assert "verdict passed" in text


def test_what_has_no_cliff_and_what_went_wrong_are_told() -> None:
    lost = Trouble(part="survival", verdict=Verdict.FAILED, reason="it held for all of 12.5 s")
    changed = record(
        speed=1.0,
        rounded={},
        lifetimes=[],
        survival=[Survival(kind=SILENT, timeout=3.0, cliff=Between(low=12.5, high=None), trials=4)],
        troubles=[lost],
        verdict=Verdict.FAILED,
        reason="survival: it held for all of 12.5 s",
    )
    text = [" ".join(line.split()) for line in shown(changed)]
    assert "timeout 3 s over 12.50 -" in text
    assert "failed survival: it held for all of 12.5 s" in text
    assert text[text.index("verdict failed") + 1] == "reason survival: it held for all of 12.5 s"
    assert "lifetime of a mapping" not in text
    assert not any(line.startswith("speed") for line in text)


def test_plots_show_every_trial_on_its_side_of_the_cliff() -> None:
    titles = [re.sub(r"<b>(.*)</b>.*", r"\1", plot.layout.title.text) for plot in plots(record())]
    assert titles == [
        "How long it lasts",
        "What a tunnel survives without keepalives",
        "What a tunnel survives with keepalives",
        "What keepalives cost",
        "What ESP in UDP adds to a packet",
        "Until traffic flows again",
    ]
    silent = plots(record())[1]
    carried, lost, configured = silent.data
    assert (carried.marker.color, lost.marker.color) == (HELD, LOST)
    assert list(carried.x) == [90, 162, 300, 540]
    assert list(lost.x) == [216, 720], "the void one is not among them"
    assert list(configured.x) == [180, 600]
    outages = plots(record())[-1].data
    assert [one.name for one in outages] == ["strict", "authenticated", "authenticated: not within 720 s"]
    assert list(outages[0].x) == [240, 300, 250]
    assert (list(outages[2].x), outages[2].marker.symbol) == ([720], "x")
    assert plots(record(recovery=None, lifetimes=[], survival=[], trials=[], costs=[], overheads=[])) == []


def test_files_are_read_back_and_the_page_needs_no_other(tmp_path: pathlib.Path) -> None:
    files = evidence.save(
        record(troubles=[Trouble(part="costs", verdict=Verdict.FAILED, reason="a <b> & c")]), tmp_path
    )
    assert files == [tmp_path / "timeouts.json", tmp_path / "timeouts.html"]
    assert evidence.load(tmp_path).survival == record().survival
    page = files[1].read_text()
    assert "<title>natbed bench timeouts 2026-11-28T06:00:00.000+00:00</title>" in page
    assert "costs: a &lt;b&gt; &amp; c" in page
    assert "<h2>lifetime of a mapping</h2>" in page
    drawn = re.search(r'id="plots">(.*?)</script>', page, re.DOTALL)
    assert drawn is not None
    assert len(json.loads(drawn[1])) == 6
    assert not re.search(r'(src|href)="', page)


def test_the_verdict_is_the_labs_before_the_implementations() -> None:
    broken = Trouble(part="costs", verdict=Verdict.LAB_BROKEN, reason="no NAT")
    failed = Trouble(part="survival", verdict=Verdict.FAILED, reason="lost")
    parts = ["survival", "costs"]
    assert conclude(parts, parts, [failed, broken]) == (Verdict.LAB_BROKEN, "costs: no NAT")
    assert conclude(parts, parts, [failed]) == (Verdict.FAILED, "survival: lost")
    assert conclude(parts, ["survival"], []) == (Verdict.LAB_BROKEN, "not measured: costs")
    assert conclude(parts, parts, []) == (Verdict.PASSED, "everything was measured")
