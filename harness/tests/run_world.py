"""Whole runs of scenario A for tests: with what options, and what to look at afterwards."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from natbed.capture import read_pcap
from natbed.checks import CheckResult, Verdict
from natbed.nat import presets
from natbed.node import Node
from natbed.results.record import RunRecord
from natbed.runner import Run, RunOptions
from natbed.scenario import Scenario
from natbed.settings import Protection
from natbed.stacks.espthrunat import EspThruNat
from natbed.topology_files import find

NAT, SERVER = "203.0.113.2", "203.0.113.18"
Hook = Callable[[Run], None]


class Broken(Run):
    """A run in which `between` happens once the daemons are there, before the tunnels come up."""

    def __init__(self, options: RunOptions, between: Hook, stack: EspThruNat | None = None) -> None:
        super().__init__(find("A"), options, lambda step: None, stack)
        self.between = between

    def connect(self, daemons: object) -> None:
        self.between(self)
        super().connect(daemons)  # type: ignore[arg-type]


def options(tmp_path: pathlib.Path, clients: int = 1, seconds: int = 0, **protection: str) -> RunOptions:
    return RunOptions(clients, presets.MASQUERADE, Protection(**protection), seconds, tmp_path)


def routed(tmp_path: pathlib.Path, clients: int = 1, **protection: str) -> RunOptions:
    return RunOptions(clients, presets.ROUTED, Protection(**protection), 0, tmp_path)


def run(options: RunOptions, scenario: type[Scenario] | None = None) -> tuple[RunRecord, pathlib.Path]:
    run = Run(scenario or find("A"), options, lambda step: None)
    return run.execute(), run.folder


def check(record: RunRecord, name: str) -> CheckResult:
    found = [check for check in record.checks if check.name == name]
    assert len(found) == 1, [(check.name, check.reason) for check in record.checks]
    return found[0]


def passed(record: RunRecord) -> None:
    assert record.verdict is Verdict.PASSED, record.reason


def protocols(folder: pathlib.Path, *, esp_in_udp: bool) -> set[int]:
    """The IP protocols that carry ESP in the capture, found without the audit's help."""
    packets = [frame.data[14:] for frame in read_pcap(folder / "nat-public.pcap") if frame.data[12:14] == b"\x08\x00"]
    esp = {packet[9] for packet in packets if packet[9] == 50 or (packet[9] == 17 and packet[28:36] == bytes(8))}
    assert len(packets) > 100, "the capture holds the run's traffic"
    assert (17 in esp) is esp_in_udp
    return esp


def commands(node: Node, *lines: str) -> None:
    for line in lines:
        node.run(line.split())
