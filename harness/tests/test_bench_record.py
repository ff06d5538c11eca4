"""What a benchmark concludes from its samples, and how that is shown."""

from __future__ import annotations

import io
import json
import pathlib
import re

import msgspec
import pytest
from bench_world import FIELD, OURS, PLAIN, PROGRAM, SLOW, THEIRS, everything, record, samples
from rich.console import Console

from natbed.bench import evidence
from natbed.bench.page import page
from natbed.bench.plots import plots
from natbed.bench.record import REPEATED, SINGLES, TRAINS, Figure, Problem, Ratio, Spread, figures, ratios
from natbed.bench.report import WIDTH, cell, number, show
from natbed.bench.throughput import rotated
from natbed.checks import Verdict
from natbed.results.store import StoreError

UDP_FAILED = Problem(round=2, candidate=THEIRS.name, verdict=Verdict.FAILED, reason="UDP, trains: no rate without loss")


def shown(*arguments: object) -> str:
    output = io.StringIO()
    show(record(*arguments), Console(file=output, width=WIDTH))  # type: ignore[arg-type]
    return output.getvalue()


# figures and ratios


def test_a_figure_is_the_median_with_minimum_and_maximum() -> None:
    taken = samples({(OURS.name, "udp"): [300.0, 100.0, 220.0, 210.0]})
    (figure,) = figures({OURS.name: [(TRAINS, "udp")]}, taken, [])
    assert figure == Figure(
        candidate=OURS.name, wire=TRAINS, quantity="udp", spread=Spread(215.0, 100.0, 300.0, 4), failed=0
    )


def test_what_is_missing_is_counted_and_what_was_not_asked_for_is_not() -> None:
    taken = samples({(THEIRS.name, "udp"): [300.0, None, 200.0], (THEIRS.name, "ping"): [200.0, 200.0, 200.0]})
    found = figures({THEIRS.name: [(TRAINS, "udp"), (TRAINS, "ping"), (SINGLES, "udp")]}, taken, [UDP_FAILED])
    by_key = {(one.wire, one.quantity): one for one in found}
    assert by_key[TRAINS, "udp"].failed == 1
    assert by_key[TRAINS, "udp"].spread == Spread(250.0, 200.0, 300.0, 2)
    assert by_key[TRAINS, "ping"].failed == 0
    assert (by_key[SINGLES, "udp"].spread, by_key[SINGLES, "udp"].failed) == (None, 1), "the round ended before it"
    assert figures({PLAIN.name: [(TRAINS, "udp")]}, taken, [UDP_FAILED]) == [], "not reached yet is not failed"


def test_ratios_are_of_medians_and_of_each_round() -> None:
    taken = samples(
        {
            (OURS.name, "tcp_forward"): [100.0, 400.0, 330.0],
            (THEIRS.name, "tcp_forward"): [200.0, 100.0, 300.0],
        }
    )
    (ratio,) = ratios([(OURS, THEIRS)], taken)
    assert ratio == Ratio(
        over=OURS.name,
        under=THEIRS.name,
        wire=TRAINS,
        quantity="tcp_forward",
        of_medians=330 / 200,
        by_round=Spread(1.1, 0.5, 4.0, 3),
    )


def test_a_round_that_lacks_one_of_both_has_no_ratio() -> None:
    taken = samples({(OURS.name, "udp"): [100.0, 400.0, None], (THEIRS.name, "udp"): [None, 100.0, 300.0]})
    (ratio,) = ratios([(OURS, THEIRS), (OURS, PLAIN)], taken)
    assert (ratio.by_round.count, ratio.by_round.median, ratio.of_medians) == (1, 4.0, 250 / 200)


def test_a_peer_that_took_no_processor_time_to_speak_of_has_no_ratio() -> None:
    taken = samples({(OURS.name, "cpu_client"): [1.0], (THEIRS.name, "cpu_client"): [0.0]})
    assert ratios([(OURS, THEIRS)], taken) == []


def test_each_suite_is_compared_with_the_peer_then_itself_then_the_plain_path() -> None:
    assert FIELD.pairs() == [(OURS, THEIRS), (OURS, SLOW), (OURS, PLAIN)]


def test_rounds_begin_with_another_candidate_each_time() -> None:
    orders = [rotated("abc", by) for by in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], (Verdict.PASSED, "everything was measured")),
        ([Verdict.FAILED], (Verdict.FAILED, "round 1, plain: reason 0")),
        ([Verdict.FAILED, Verdict.LAB_BROKEN], (Verdict.LAB_BROKEN, "round 2, plain: reason 1")),
    ],
)
def test_in_a_broken_lab_no_implementation_has_failed(verdicts: list[Verdict], expected: tuple[Verdict, str]) -> None:
    problems = [
        Problem(round=n + 1, candidate=PLAIN.name, verdict=verdict, reason=f"reason {n}")
        for n, verdict in enumerate(verdicts)
    ]
    found = record(everything(), problems)
    assert (found.verdict, found.reason) == expected


def test_nothing_measured_is_no_success() -> None:
    assert record([]).verdict is Verdict.LAB_BROKEN


# the table


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (13958.6, 0, "13959"),
        (0.4, 0, "0.4"),
        (1.234, 2, "1.23"),
        (15.87, 2, "15.9"),
        (123.4, 2, "123"),
        (0.0123, 2, "0.01"),
        (0.0042, 2, "0.0042"),
        (0.0, 2, "0.00"),
    ],
)
def test_a_number_has_what_is_worth_reading(value: float, digits: int, expected: str) -> None:
    assert number(value, digits) == expected


def test_a_cell_hides_no_failure() -> None:
    def figure(spread: Spread | None, failed: int) -> Figure:
        return Figure(candidate="plain", wire=TRAINS, quantity="udp", spread=spread, failed=failed)

    assert cell(figure(Spread(5.0, 4.0, 6.0, 3), 0), 0) == ["5", "4-6"]
    assert cell(figure(Spread(5.0, 4.0, 6.0, 3), 2), 0) == ["5", "4-6", "2 failed"]
    assert cell(figure(Spread(5.0, 5.0, 5.0, 1), 0), 0) == ["5"], "one value has no range"
    assert cell(figure(None, 3), 0) == ["failed"]
    assert cell(None, 0) == ["-"]


def test_the_table_shows_figures_ratios_and_what_went_wrong_in_80_columns() -> None:
    taken = [one for one in everything() if (one.round, one.candidate, one.quantity) != (2, THEIRS.name, "udp")]
    output = shown(taken, [UDP_FAILED])
    assert "\N{HORIZONTAL ELLIPSIS}" not in output, "nothing is cut off"
    assert all(len(line) <= 80 for line in output.splitlines())
    rows = [line.split() for line in output.splitlines()]
    assert ["plain", "840", "798", "420", "109", "-", "-"] in rows
    assert ["800-880", "760-836", "400-440", "104-114"] in rows
    ours = rows.index(["espthrunat", "420", "399", "210", "55", "2.10", "3.15"])
    assert rows[ours + 1][:2] == ["aes128-sha1", "400-440"]
    assert ["1", "failed"] in rows, "beside the figures of the rounds that have one"
    compared = rows.index([":", "strongswan"])
    assert rows[compared - 2][:3] == ["espthrunat", "2.00", "2.00"]
    assert rows[compared - 1][:2] == ["aes128-sha1", "2.00-2.00"]
    assert [":", "no", "batches"] in rows
    assert [":", "plain"] in rows
    assert "failed     strongswan aes128-sha1, round 2: UDP, trains: no rate without loss" in output
    assert "verdict   failed" in output
    assert "strongswan 5.9.8" in output


def test_wide_ranges_of_a_fast_machine_fit_too() -> None:
    wide = {"tcp_forward": 12728.0, "tcp_reverse": 10516.0, "udp": 10050.0, "ping": 312.0}
    taken = [
        msgspec.structs.replace(one, value=wide.get(one.quantity, 11.6) * (1.3 if one.round == 2 else 1.0))
        for one in everything()
    ]
    output = shown(taken, [])
    assert "\N{HORIZONTAL ELLIPSIS}" not in output, "nothing is cut off"
    assert ["12728-16546", "10516-13671", "10050-13065", "312-406"] in [line.split() for line in output.splitlines()]


def test_what_tcp_sent_again_is_told_though_nothing_can_be_divided_by_it() -> None:
    taken = [one for one in everything() if (one.candidate, one.quantity) != (THEIRS.name, REPEATED)]
    taken += samples({(THEIRS.name, REPEATED): (0.0, 0.0, 7.0)})
    output = " ".join(shown(taken, []).split())
    told = "again, packets travel in trains: plain 0; espthrunat aes128-sha1 0; espthrunat aes128-sha1, no batches 0; "
    assert f"TCP segments sent {told}strongswan aes128-sha1 0 (at most 7)" in output
    assert not [one for one in record(taken).ratios if one.quantity == REPEATED]


def test_the_same_trouble_in_several_rounds_is_one_line() -> None:
    again = Problem(round=3, candidate=UDP_FAILED.candidate, verdict=Verdict.FAILED, reason=UDP_FAILED.reason)
    assert "strongswan aes128-sha1, round 2, 3: UDP" in shown(everything(), [UDP_FAILED, again])


@pytest.mark.parametrize(("load", "warned"), [(0.99, False), (1.0, True)])
def test_figures_of_a_busy_machine_come_with_a_warning(load: float, warned: bool) -> None:
    found = record(everything())
    found = msgspec.structs.replace(found, machine=msgspec.structs.replace(found.machine, load=load))
    output = io.StringIO()
    show(found, Console(file=output, width=WIDTH))
    assert ("the machine was busy" in output.getvalue()) is warned
    assert ("the machine was busy" in page(found)) is warned


# the page and the record


def test_the_page_needs_nothing_but_itself_and_shows_whiskers(tmp_path: pathlib.Path) -> None:
    found = record(everything(), [UDP_FAILED])
    json_file, html = evidence.save(found, tmp_path)
    text = html.read_text()
    assert not re.search(r"""(src|href)\s*=|@import|url\(""", text.partition('id="plotly"')[0])
    assert len(text) < 2_500_000, "plotly's program is compressed"
    data = json.loads(re.search(r'id="plots">(.*?)</script>', text, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert len(data) == len(plots(found)) == 8, "TCP and CPU on both wires, UDP, round trip, and ratios of both wires"
    tcp = data[0]
    forward = next(trace for trace in tcp["data"] if trace["type"] == "bar" and trace["name"] == "forward")
    assert forward["x"] == pytest.approx([420.0, 280.0, 210.0])
    assert forward["error_x"]["array"] == pytest.approx([20.0, 800 * 1.1 / 3 - 280, 10.0])
    assert forward["error_x"]["arrayminus"] == pytest.approx([20.0, 280 - 800 / 3, 10.0])
    assert "path without IPsec: 840 / 798" in tcp["layout"]["title"]["text"]
    assert len(set(forward["marker"]["color"])) == 3, "implementations are told apart"
    for wanted in ("<td>420<small>400-440</small></td>", "espthrunat aes128-sha1 : strongswan", UDP_FAILED.reason):
        assert wanted in text, "what a browser without scripts shows"
    assert json_file.name == "throughput.json"


def test_the_record_can_be_read_again(tmp_path: pathlib.Path) -> None:
    found = record(everything(), [UDP_FAILED])
    evidence.save(found, tmp_path)
    assert evidence.load(tmp_path) == found
    (tmp_path / evidence.RECORD).write_text("{}")
    with pytest.raises(StoreError, match="no readable record"):
        evidence.load(tmp_path)


def test_without_samples_there_is_no_page(tmp_path: pathlib.Path) -> None:
    assert [file.name for file in evidence.save(record([]), tmp_path)] == [evidence.RECORD]


def test_where_nothing_can_be_written_is_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StoreError, match=r"missing/throughput.json: cannot be written: No such file"):
        evidence.save(record([]), tmp_path / "missing")


def test_the_plain_path_has_no_processor_time_and_singles_no_datagrams() -> None:
    wanted = PROGRAM.expected(PLAIN)
    assert not [quantity for _, quantity in wanted if quantity.startswith("cpu")]
    assert [quantity for wire, quantity in PROGRAM.expected(OURS) if wire == SINGLES] == [
        "tcp_forward",
        "tcp_reverse",
        "tcp_repeated",
        "cpu_client",
        "cpu_server",
    ]
