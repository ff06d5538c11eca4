"""Tunnels over links that harm packets: what may be lost there, and runs that begin anew for what goes wrong."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
from run_world import check, options, passed, run

from natbed.checks import Verdict
from natbed.checks.impaired import _conclude, may_be_lost
from natbed.checks.streams import judge_stream
from natbed.impairments.base import Impairment, ImpairmentError
from natbed.impairments.link import ImpairedLink
from natbed.runner import Run, RunOptions
from natbed.topology_files import find


def verdict(impairment: Impairment, arrived: list[int], sent: int = 500) -> tuple[Verdict, str]:
    stream = judge_stream("to the server", sent, [(number, 0.002 * number) for number in arrived])
    found = _conclude("impaired", "a link", [], [stream], impairment)
    return found.verdict, found.reason


def test_what_a_link_may_cost_is_what_it_loses_and_what_it_damages() -> None:
    assert may_be_lost(500, Impairment(delay=0.02, jitter=0.005, duplicate=0.1)) == 0
    assert 5 < may_be_lost(500, Impairment(loss=0.01)) < 50
    assert may_be_lost(500, Impairment(loss=0.01)) == may_be_lost(500, Impairment(corrupt=0.01))
    assert may_be_lost(500, Impairment(every_nth=2)) > 250


def test_more_than_that_is_the_tunnels_loss() -> None:
    everything = list(range(500))
    assert verdict(Impairment(delay=0.02), everything)[0] is Verdict.PASSED
    assert verdict(Impairment(loss=0.01), everything[5:])[0] is Verdict.PASSED
    failed, reason = verdict(Impairment(delay=0.02), everything[1:])
    assert (failed, reason) == (
        Verdict.FAILED,
        "a link: to the server: 1 of 500 datagrams were lost, and the link accounts for 0 at most",
    )
    assert verdict(Impairment(loss=0.01), everything[60:])[0] is Verdict.FAILED


def test_no_link_excuses_what_comes_twice_or_was_never_sent() -> None:
    for arrived in ([*range(500), 7], [*range(500), 1 << 62]):
        failed, reason = verdict(Impairment(duplicate=0.5, corrupt=0.5), arrived)
        assert failed is Verdict.FAILED, reason
        assert "came twice" in reason


def anew(tmp_path: pathlib.Path, **asked: str) -> RunOptions:
    return dataclasses.replace(options(tmp_path), anew=True, **asked)  # type: ignore[arg-type]


@pytest.mark.usefixtures("isolated")
def test_a_run_begins_anew_over_an_impaired_link(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natbed.checks.streams._LOST_SECONDS", 0.5)  # a datagram here takes 10 ms
    record, folder = run(anew(tmp_path, impairment="delay 10 ms duplicate 20 % corrupt 2 %"))
    passed(record)
    found = check(record, "impaired")
    assert "between internet and nat" in found.reason
    links = found.details["links"]
    assert [(one["sender"], one["receiver"]) for one in links] == [("internet", "nat"), ("nat", "internet")]
    for one in links:
        assert one["measured"]["delay"] >= 0.01
        assert one["measured"]["corrupt"] > 0
    assert min(found.details["connect_seconds"].values()) > 0.05, "IKE took the same way, three times there and back"
    assert sum(stream["lost"] for stream in found.details["streams"]) > 0, "damaged packets do not get in"
    log = (folder / "client1" / "espthrunat.log").read_text()
    assert log.count("stopped") == 2, "it was ended in order before, and at the end"


@pytest.mark.usefixtures("isolated")
def test_an_impairment_that_does_not_prove_itself_is_a_broken_lab(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(link: ImpairedLink) -> None:
        raise ImpairmentError("loss: 0 packets instead of 10")

    monkeypatch.setattr(ImpairedLink, "__enter__", refuse)
    record, _ = run(anew(tmp_path, impairment="loss 1 %"))
    assert (record.verdict, record.reason) == (Verdict.LAB_BROKEN, "lab: loss: 0 packets instead of 10")


@pytest.mark.usefixtures("isolated")
def test_a_fault_finds_tunnels_that_were_begun_anew_for_it(tmp_path: pathlib.Path) -> None:
    record, folder = run(anew(tmp_path, fault="reboot"))
    passed(record)
    assert check(record, "recovery").reason.startswith("recovered ")
    assert max(check(record, "recovery").details["away_seconds"].values()) > 0
    for host in ("client1", "server"):
        assert (folder / host / "espthrunat.log").read_text().count("stopped") == 2
        assert "dpd = 1.0" in (folder / host / "espthrunat.toml").read_text()


@pytest.mark.parametrize("begun_anew", [True, False])
def test_then_nothing_need_be_left_out_before_it(tmp_path: pathlib.Path, begun_anew: bool) -> None:
    asked = dataclasses.replace(anew(tmp_path, fault="reboot"), rekey="initiator", anew=begun_anew)
    planned = Run(find("A"), asked, lambda step: None)
    assert planned.options.idles is begun_anew
    assert bool(planned.notes) is not begun_anew
    assert (planned.options.usual_timing.dpd == 1.0) is not begun_anew
