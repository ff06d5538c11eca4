"""Recovery: how long traffic stays away after a fault, in real runs and against streams that are known."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import pytest
from run_world import check, options, passed, run
from typer.testing import CliRunner

from natbed.checks import Verdict
from natbed.checks.recovery import away_seconds
from natbed.cli import app
from natbed.faults.base import Fault
from natbed.faults.daemons import DaemonKill, PlaneKill
from natbed.faults.links import LinkFlap
from natbed.faults.names import FAULTS, FaultNameError, parse
from natbed.faults.nats import MappingExpiry, NatReboot, WanRenumber
from natbed.results.record import RunRecord
from natbed.topology_files import find

isolated = pytest.mark.usefixtures("isolated")


def recover(folder: pathlib.Path, fault: str, mode: str = "tunnel", within: float = 10.0) -> RunRecord:
    record, _ = run(dataclasses.replace(options(folder, mode=mode), fault=fault, within=within))
    return record


def ike_port(mappings: list[dict[str, Any]]) -> int | None:
    """The client's, outside of the NAT."""
    ours = {"inside": ["192.168.1.11", 500], "remote": ["203.0.113.18", 500]}
    found = [one["public"][1] for one in mappings if {key: list(one[key]) for key in ours} == ours]
    return found[0] if found else None


@isolated
@pytest.mark.parametrize("mode", ["tunnel", "transport"])
def test_traffic_comes_back_after_the_nat_was_rebooted(tmp_path: pathlib.Path, mode: str) -> None:
    record = recover(tmp_path, "reboot", mode)
    passed(record)
    found = check(record, "recovery")
    lost = found.details["lost"]
    seconds = max(found.details["away_seconds"].values())
    assert found.reason == f"recovered {seconds:.1f} s after the NAT nat rebooted, {lost} datagrams lost"
    assert 0 < seconds < 10
    assert lost > 100, "the server did not believe what came from another port"
    assert len(found.details["streams"]) == 2
    ended, afterwards = found.details["fault"]["details"]["ended_mappings"], found.details["mappings_afterwards"]
    before, after = ike_port(ended), ike_port(afterwards["nat"])
    assert before == 500
    assert after not in (500, None)
    assert any("phase 1" in line for line in found.details["logged"]["client1"]), found.details["logged"]


@isolated
@pytest.mark.parametrize(
    ("fault", "happened"),
    [
        ("renumber", "the NAT nat got the address 203.0.113.14"),
        ("kill server", "the daemon of server was killed and started again"),
        ("kill", "the daemon of client1 was killed and started again"),
        ("plane server", "the data plane of server was killed"),
        ("restart client1", "the daemon of client1 was restarted"),
        ("link client1 home 0.5", "the link of client1 and home came back"),
    ],
)
def test_traffic_comes_back_after(tmp_path: pathlib.Path, fault: str, happened: str) -> None:
    record = recover(tmp_path, fault)
    passed(record)
    found = check(record, "recovery")
    assert re.fullmatch(rf"recovered \d+\.\d s after {happened}, \d+ datagrams lost", found.reason)
    assert found.details["lost"], "it was away"


@isolated
def test_a_mapping_that_expires_under_traffic_costs_little(tmp_path: pathlib.Path) -> None:
    record = recover(tmp_path, "expire")
    passed(record)
    assert check(record, "recovery").reason.startswith("recovered 0.")


@isolated
def test_traffic_that_does_not_come_back_in_time_is_a_failure(tmp_path: pathlib.Path) -> None:
    record = recover(tmp_path, "reboot", within=0.2)
    assert record.verdict is Verdict.FAILED
    assert re.search(r"0\.2 s( were declared| after the NAT nat rebooted)", record.reason), record.reason


def test_away_ends_behind_the_last_datagram_that_was_lost() -> None:
    arrivals = [(0, 1.0), (1, 1.1), (4, 2.5), (6, 2.7), (7, 2.8)]
    assert away_seconds(8, arrivals, ended=2.0) == pytest.approx(0.7)
    assert away_seconds(8, arrivals, ended=3.0) == 0, "never less than nothing"
    assert away_seconds(9, arrivals, ended=2.0) is None, "the last one is missing"
    assert away_seconds(2, arrivals[:2], ended=2.0) == 0


# names


def named(text: str, letter: str = "A") -> Fault:
    return parse(text, find(letter)())


def test_what_is_not_said_is_the_first_tunnels() -> None:
    assert named("reboot") == NatReboot("nat")
    assert named("reboot nat 2.5") == NatReboot("nat", off=2.5)
    assert named("renumber nat 203.0.113.9") == WanRenumber("nat", "203.0.113.9")
    assert named("expire") == MappingExpiry("nat")
    assert named("expire,nat,client2") == MappingExpiry("nat", "192.168.1.12")
    assert named("link") == LinkFlap("client1", "home", 1.0)
    assert named("link 3") == LinkFlap("client1", "home", 3.0)
    assert named("link internet nat") == LinkFlap("internet", "nat", 1.0)
    assert named("kill") == DaemonKill("client1")
    assert named("plane server") == PlaneKill("server")
    for name in FAULTS:
        named(name)


def test_a_nat_whose_addresses_are_its_hosts_is_not_renumbered() -> None:
    with pytest.raises(FaultNameError, match="no NAT of this scenario has an address for many"):
        named("renumber", "D")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("burn", "no fault 'burn'; there are reboot, renumber, "),
        ("", "no fault ''; there are reboot"),
        ("reboot server", "no NAT 'server'; there are nat"),
        ("kill nat", "no host with a tunnel 'nat'; there are client1, client2, server"),
        ("expire nat nobody", "no host 'nobody'; there are client1, client2, server"),
        ("link client1 server", "no link 'client1 server'; there are "),
        ("link client1", "no link 'client1'; there are "),
        ("reboot nat soon", "'soon' is no number of seconds"),
        ("kill server now", "'now': kill takes [HOST]"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_there_is(text: str, message: str) -> None:
    with pytest.raises(FaultNameError, match=re.escape(message)):
        named(text)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("burn", "no fault 'burn'"), ("reboot home", "no NAT 'home'"), ("down", "'down' is for the shell")],
)
def test_the_command_line_refuses_a_wrong_fault_before_anything_is_built(fault: str, message: str) -> None:
    done = CliRunner().invoke(app, ["run", "A", "--fault", fault])
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
