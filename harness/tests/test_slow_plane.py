"""A data plane that is slow on purpose fails throughput against the kept figures, and no other check."""

from __future__ import annotations

import dataclasses
import pathlib
from contextlib import AbstractContextManager

import pytest
from run_world import check, options, passed, run

from natbed.baseline_run import measure_once
from natbed.checks import Verdict
from natbed.checks.idle import FORGOTTEN_NAME, KEPT_NAME
from natbed.checks.throughput import ATTEMPTS
from natbed.machine_kind import machine_kind
from natbed.results import baseline
from natbed.results.baseline import Baseline, Figures
from natbed.runner import RunOptions
from natbed.topology_files import find
from natbed.turns import Turn

pytestmark = pytest.mark.usefixtures("isolated")

SUITE = "aes128gcm16"
# Read by each Python that starts with it on its path: what seals and opens packets takes its time for each of them.
# Phase 1 does not use AES-GCM.
SLOW = """
import time
from cryptography.hazmat.primitives.ciphers import aead

class SlowAESGCM:
    def __init__(self, key):
        self._fast = Fast(key)

    def __getattr__(self, name):
        work = getattr(self._fast, name)
        def slowly(*arguments):
            time.sleep(0.0005)
            return work(*arguments)
        return slowly

Fast, aead.AESGCM = aead.AESGCM, SlowAESGCM
"""


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> pathlib.Path:
    """Figures of this machine as it is now."""
    case, sample = measure_once(find("A"), "tunnel", SUITE, seconds=1)
    figures = Figures.of(case, [sample], seconds=1, measured="2001-01-01", kernel="", python="")
    file = tmp_path / baseline.FILE
    baseline.save(file, Baseline().renewed(machine_kind(), [figures]))
    return file


def compared(tmp_path: pathlib.Path, kept: pathlib.Path, rekey: str = "none") -> RunOptions:
    return dataclasses.replace(options(tmp_path, seconds=1, esp_suite=SUITE), baseline=kept, rekey=rekey)


def test_a_slow_plane_fails_throughput_and_nothing_else(
    tmp_path: pathlib.Path, kept: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept.read_bytes()
    usual, _ = run(compared(tmp_path, kept))
    passed(usual)
    assert "of the baseline's" in check(usual, "throughput client1").reason

    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))
    undisturbed, begun = Turn.undisturbed, []

    def counted(turn: Turn) -> AbstractContextManager[None]:
        begun.append(turn)
        return undisturbed(turn)

    monkeypatch.setattr(Turn, "undisturbed", counted)
    slow, _ = run(compared(tmp_path, kept, rekey="both"))
    assert len(begun) == 1, "what is slow beside other runs is measured again without them"
    result = check(slow, "throughput client1")
    assert result.verdict is Verdict.FAILED, result.reason
    assert [one.name for one in slow.checks if not one.passed] == ["throughput client1"]
    others = {one.name for one in slow.checks} - {one.name for one in usual.checks}
    assert others == {"rekey", KEPT_NAME, FORGOTTEN_NAME}, "what rekeys has been judged too"
    assert {one.name for one in slow.checks} > {one.name for one in usual.checks}
    assert slow.reason == f"throughput client1: {result.reason}"
    assert f"below 33% of it in {ATTEMPTS} attempts" in result.reason
    assert all(result.details["ratio"][way] < floor for way, floor in result.details["floor"].items())
    assert kept.read_bytes() == before, "only `natbed baseline` renews the figures"
