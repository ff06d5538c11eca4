"""Faults of packets and implementations in a lab whose tunnels are up: each happens, and is seen to."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
from run_world import check, options, passed, run

from natbed.faults.base import FaultError, Scene
from natbed.faults.nats import NatReboot
from natbed.faults.packets import MarkerDamage, Replay, with_checksum
from natbed.faults.timeline import Timeline, at
from natbed.lab import Lab
from natbed.results.record import RunRecord
from natbed.topology_files import find

isolated = pytest.mark.usefixtures("isolated")


def strike(folder: pathlib.Path, fault: str) -> tuple[RunRecord, pathlib.Path]:
    return run(dataclasses.replace(options(folder), fault=fault))


@isolated
@pytest.mark.parametrize(
    ("fault", "happened", "lost"),
    [
        ("marker 30", "30 packets lost their marker", 30),
        ("checksum 30", "30 packets got a wrong UDP checksum", 30),
        ("replay server 30", "30 packets to server were replayed", 0),
        ("replay client1 30", "30 packets to client1 were replayed", 0),
        ("forge server 30", "30 packets to server were forged", 0),
    ],
)
def test_packets_cost_what_was_done_to_them_and_no_more(
    tmp_path: pathlib.Path, fault: str, happened: str, lost: int
) -> None:
    record, _ = strike(tmp_path, fault)
    passed(record)
    found = check(record, "recovery")
    assert found.reason == f"recovered 0.0 s after {happened}, {lost} datagrams lost"


@isolated
def test_without_traffic_there_is_nothing_to_damage() -> None:
    with Lab(find("A")(clients=1)) as lab:
        scene = Scene(lab)
        with pytest.raises(FaultError, match="only 0 of 20 packets of ESP in UDP passed internet in 5 s"):
            MarkerDamage("internet").strike(scene)
        with pytest.raises(FaultError, match=r"only 0 of 20 packets of ESP in UDP for 203.0.113.18 passed internet"):
            Replay("server", "internet").strike(scene)
        assert "-A" not in lab["internet"].run(["iptables-save", "-t", "raw"]).stdout
        with pytest.raises(FaultError, match="nothing runs on 'server'; there are none"):
            scene.daemon("server")


@isolated
def test_a_timeline_happens_in_its_order_at_its_times() -> None:
    with Lab(find("A")(clients=1)) as lab:
        timeline = Timeline((at(0.3, NatReboot("nat")), at(0.0, NatReboot("nat", off=0.1))))
        record = timeline.strike(Scene(lab))
        assert [step["planned"] for step in record.details["steps"]] == [0.0, 0.3]
        for step in record.details["steps"]:
            assert step["planned"] <= step["seconds"] < step["planned"] + 0.5
        assert record.happened == "the NAT nat rebooted, then the NAT nat rebooted"
        with pytest.raises(FaultError, match=r"the NAT nat rebooted 0\.\d s later than at 0.1 s"):
            Timeline((at(0.0, NatReboot("nat", off=0.9)), at(0.1, NatReboot("nat")))).strike(Scene(lab))
    with pytest.raises(ValueError, match=r"at -1\.0 s: before the beginning"):
        at(-1.0, NatReboot("nat"))


@isolated
def test_a_scenarios_timeline_happens_under_traffic(tmp_path: pathlib.Path) -> None:
    class Rebooting(find("A")):  # type: ignore[misc]
        timeline = (at(0.2, NatReboot("nat")), at(0.8, NatReboot("nat", off=0.2)))

    record, _ = run(options(tmp_path), Rebooting)
    passed(record)
    found = check(record, "recovery")
    assert "s after the NAT nat rebooted, then the NAT nat rebooted, " in found.reason
    assert [step["fault"] for step in found.details["fault"]["details"]["steps"]] == ["NatReboot"] * 2


def test_checksums_are_right() -> None:
    """A packet of RFC 768's form; the sum of what it covers and itself is all ones."""
    header = bytes.fromhex("4500002100000000401100000a0000010a000002")
    packet = with_checksum(header + bytes.fromhex("01f401f4000d0000") + b"odd!!")
    covered = packet[12:20] + bytes([0, 17, 0, 13]) + packet[20:] + b"\0"
    words = [int.from_bytes(covered[n : n + 2], "big") for n in range(0, len(covered), 2)]
    assert sum(words) % 0xFFFF == 0
    assert packet[26:28] != bytes(2)
