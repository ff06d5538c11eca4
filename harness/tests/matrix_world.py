"""Two scenarios, and `natbed matrix` on them with stand-ins for runs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from typer.testing import CliRunner

import natbed.runner
from natbed.checks import CheckResult, Verdict
from natbed.cli import app
from natbed.results import report
from natbed.results.record import RunRecord
from natbed.results.report import CellRecord
from natbed.runner import RunOptions
from natbed.scenario import Scenario

TOPOLOGY = '''
"""Two scenarios: P in both modes, Q in one, with one and two clients."""

from natbed.nat import presets
from natbed.scenario import Scenario, Tunnel


class P(Scenario):
    letter = "P"

    def build(self):
        internet = self.internet()
        home = self.nat_router("nat", wan=internet)
        self.host("client1", on=home.lan)
        self.host("server", on=internet)

    def tunnels(self):
        return [Tunnel("client1", "server")]


class Q(P):
    letter = "Q"
    modes = ("transport",)
    not_supported = {"tunnel": "for this test"}
'''
REST = "aes128gcm16-main-psk-1-masquerade-both"
P_TUNNEL, P_TRANSPORT, Q_TRANSPORT = f"P-tunnel-{REST}", f"P-transport-{REST}", f"Q-transport-{REST}"
SMOKE = [P_TUNNEL, P_TRANSPORT, Q_TRANSPORT]
Judge = Callable[[str, str, int], Verdict]  # scenario, mode, how often it has run


class StandIn:
    """In `Run`'s place: ends as the test says, at once."""

    judge: ClassVar[Judge]
    ran: ClassVar[list[tuple[str, RunOptions]]]

    def __init__(self, scenario: type[Scenario], options: RunOptions, _progress: object) -> None:
        self.letter, self.options = scenario.letter, options
        self.folder = options.results / f"run-{len(self.ran)}-{self.letter}"
        self.ran.append((self.letter, options))

    def execute(self) -> RunRecord:
        mode = self.options.protection.mode
        times = sum((letter, one.protection.mode) == (self.letter, mode) for letter, one in self.ran)
        verdict = type(self).judge(self.letter, mode, times)
        check = CheckResult(name="stand-in", verdict=verdict, reason=f"it is {verdict}")
        return RunRecord(
            scenario=self.letter, title="", started="", nat="", stack="", mode=mode, verdict=verdict,
            reason=f"stand-in: {check.reason}", seconds=1.5, build_milliseconds=0, teardown_milliseconds=0,
            clients=[], hosts=[], checks=[check], evidence=[], kernel="", version="",
        )  # fmt: skip


@dataclass
class World:
    """A folder of scenarios, a place for results, and the command."""

    topologies: pathlib.Path
    results: pathlib.Path
    monkeypatch: pytest.MonkeyPatch
    runner: CliRunner = field(default_factory=CliRunner)

    @classmethod
    def made(cls, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> World:
        """With the scenarios of `TOPOLOGY`."""
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "mine.py").write_text(TOPOLOGY)
        monkeypatch.setenv("COLUMNS", "120")
        return cls(folder, tmp_path / "results", monkeypatch)

    def matrix(self, *arguments: object, judge: Judge) -> tuple[int, str]:
        """Exit code and output of `natbed matrix`, with stand-ins that end as `judge` says."""
        StandIn.judge, StandIn.ran = staticmethod(judge), []  # so that it gets no self
        self.monkeypatch.setattr(natbed.runner, "Run", StandIn)
        where = ["--topologies", str(self.topologies), "--results", str(self.results)]
        done = self.runner.invoke(app, ["matrix", *where, *map(str, arguments)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    @property
    def cells(self) -> list[CellRecord]:
        """What the newest matrix wrote down."""
        newest = max(self.results.glob(f"*-matrix*/{report.CELLS}"), key=lambda file: file.stat().st_mtime_ns)
        return report.load(newest)
