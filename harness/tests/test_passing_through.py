"""Scenario A behind each NAT with a quirk: two clients, one after the other, fare as is declared of it."""

from __future__ import annotations

import dataclasses
import pathlib

import msgspec
import pytest
from run_world import check, options, run

from natbed import passing_through
from natbed.checks import Verdict
from natbed.nat import passthrough_presets
from natbed.nat.passthrough_presets import PASSTHROUGH, WORKS, PassThrough, Traffic
from natbed.results.record import RunRecord
from natbed.runner import RunOptions

GIVEN_UP = 20.0  # seconds; with the implementation's own patience it would be more than 31

pytestmark = pytest.mark.usefixtures("isolated")


def behind(tmp_path: pathlib.Path, known: PassThrough, clients: int = 2) -> RunOptions:
    return dataclasses.replace(options(tmp_path, clients), nat=known.profile)


def found(record: RunRecord) -> list[tuple[bool, str]]:
    return [(one["connected"], one["traffic"]) for one in check(record, "as declared").details["found"]]


@pytest.mark.parametrize("known", PASSTHROUGH.values(), ids=PASSTHROUGH)
def test_each_client_fares_as_declared(tmp_path: pathlib.Path, known: PassThrough) -> None:
    record, folder = run(behind(tmp_path, known))
    assert record.verdict is Verdict.PASSED, record.reason
    assert [one.name for one in record.checks] == ["NAT", "as declared"]
    assert check(record, "NAT").reason.endswith(f"it does what {known.profile.quirk} says")
    assert found(record) == [(one.connects, one.traffic) for one in known.of(2)]
    assert known.last.says in check(record, "as declared").reason
    assert record.notes == [passing_through.NOTE]
    assert (folder / "nat-public.pcap").stat().st_size > 1000
    assert record.seconds < GIVEN_UP, "what is never answered is given up as soon as it may be"


def test_the_last_of_three_clients_owns_port_500(tmp_path: pathlib.Path) -> None:
    record, _ = run(behind(tmp_path, passthrough_presets.LAST_OWNS_500, clients=3))
    assert record.verdict is Verdict.PASSED, record.reason
    assert found(record) == [(True, Traffic.OUTBOUND), (True, Traffic.OUTBOUND), (True, Traffic.BOTH)]


@pytest.mark.parametrize("changes", [{"mode": "transport"}, {"encapsulation": "never"}], ids=str)
def test_what_nothing_is_declared_of_is_no_verdict(tmp_path: pathlib.Path, changes: dict[str, str]) -> None:
    wanted = dataclasses.replace(options(tmp_path, 2, **changes), nat=passthrough_presets.PIN_500.profile)  # type: ignore[arg-type]
    record, _ = run(wanted)
    assert record.verdict is Verdict.LAB_BROKEN
    assert "ipsec-passthrough-pin-500 is declared of tunnel mode, and of ESP in UDP, alone" in record.reason


def test_a_client_that_is_alone_works_behind_a_pinned_port(tmp_path: pathlib.Path) -> None:
    record, _ = run(behind(tmp_path, passthrough_presets.PIN_500, clients=1))
    assert record.verdict is Verdict.PASSED, record.reason
    assert found(record) == [(True, Traffic.BOTH)]


def test_what_is_declared_wrongly_fails(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = passthrough_presets.DAMAGES_MARKER
    monkeypatch.setitem(PASSTHROUGH, known.profile.name, msgspec.structs.replace(known, alone=WORKS))
    record, _ = run(behind(tmp_path, known, clients=1))
    assert record.verdict is Verdict.FAILED
    assert "client1 has traffic neither way, declared was both ways" in record.reason
