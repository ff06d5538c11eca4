"""What a run leaves behind is found and named."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest
from run_world import options, passed, run

from natbed.capture import Capture
from natbed.checks import Verdict
from natbed.checks import leaks as leaks_check
from natbed.checks.leaks import Snapshot, check_leaks
from natbed.runner import Run
from natbed.topology_files import find


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks_check, "_PATIENCE", 0.1)


def test_nothing_is_left_where_nothing_was_done(tmp_path: pathlib.Path) -> None:
    result = check_leaks(Snapshot.take(tmp_path), tmp_path, [])
    assert (result.name, result.verdict) == ("leaks", Verdict.PASSED)


@pytest.mark.usefixtures("impatient")
def test_a_file_a_process_and_a_traceback_are_named(tmp_path: pathlib.Path) -> None:
    runtime, log = tmp_path / "runtime", tmp_path / "espthrunat.log"
    runtime.mkdir()
    before = Snapshot.take(runtime)
    (runtime / "client1.sock").touch()
    log.write_text("INFO\nTraceback (most recent call last):\n")
    with subprocess.Popen(["sleep", "60"]) as process:
        result = check_leaks(before, runtime, [log])
        process.kill()
    assert result.verdict is Verdict.FAILED
    assert result.details["left"] == [
        f"process {process.pid} sleep 60",
        f"file {runtime}/client1.sock",
        f"traceback in {log}",
    ]
    assert result.reason == f"left behind: process {process.pid} sleep 60 (and 2 more)"


@pytest.mark.usefixtures("impatient")
def test_a_namespace_that_is_held_open_is_named(isolated: None, tmp_path: pathlib.Path) -> None:
    before = Snapshot.take(tmp_path)
    read, write = os.pipe()
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=write, stdin=subprocess.DEVNULL
    ) as process:
        os.read(read, 1)
        held = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)
        process.kill()
    os.close(read)
    os.close(write)
    try:
        result = check_leaks(before, tmp_path, [])
    finally:
        os.close(held)
    assert result.reason.startswith("left behind: namespace net:[")
    assert check_leaks(before, tmp_path, []).passed


def test_a_whole_run_leaves_nothing_and_a_process_that_is_left_is_noticed(
    isolated: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = run(options(tmp_path))
    passed(record)
    assert "leaks" not in [check.name for check in record.checks], "it speaks up when something is left"
    leaking = Run(find("A"), options(tmp_path), lambda step: None)
    left: list[subprocess.Popen[bytes]] = []
    audit = leaking._audit

    def leak(captures: dict[str, Capture]) -> None:
        left.append(subprocess.Popen(["sleep", "60"]))
        audit(captures)

    monkeypatch.setattr(leaking, "_audit", leak)
    record = leaking.execute()
    left[0].kill()
    left[0].wait()
    assert record.verdict is Verdict.FAILED
    assert record.reason == f"leaks: left behind: process {left[0].pid} sleep 60"
