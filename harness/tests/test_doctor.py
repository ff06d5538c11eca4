"""The doctor finds by trying what this machine has, says what to do about the rest, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from natbed import doctor


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def mounts() -> list[str]:
    return Path("/proc/self/mounts").read_text().splitlines()


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_examination_leaves_nothing() -> None:
    before = interfaces(), mounts(), children()
    findings = doctor.run_doctor()
    assert (interfaces(), mounts(), children()) == before
    by_name = {finding.name: finding for finding in findings}
    assert len(by_name) == len(findings) == len(doctor.PROBES)
    assert all(finding.detail for finding in findings)
    assert all(finding.ok or finding.remedy for finding in findings)
    for name, program in (("tshark", "tshark"), ("iperf3", "iperf3"), ("ping", "ping"), ("L2TP", "xl2tpd")):
        assert by_name[name].ok == (shutil.which(program) is not None), by_name[name]
    assert by_name["namespaces"].ok
    assert by_name["packet capture"].ok


def test_what_is_missing_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a machine without any program."""
    monkeypatch.setenv("PATH", str(tmp_path))
    by_name = {finding.name: finding for finding in doctor.run_doctor()}
    for name, program in (
        ("iptables MASQUERADE", "ip"),
        ("tshark", "tshark"),
        ("setpriv --pdeathsig", "setpriv"),
        ("L2TP", "xl2tpd"),
    ):
        assert not by_name[name].ok
        assert program in by_name[name].detail
        assert by_name[name].remedy


def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()

    def hang() -> str:
        release.wait()
        return "late"

    probe = doctor._Probe("stuck", hang, True, "call a doctor", isolated=False)
    monkeypatch.setattr(doctor, "PROBES", (probe,))
    monkeypatch.setattr(doctor, "_PROBE_SECONDS", 0.1)
    try:
        (finding,) = doctor.run_doctor()
    finally:
        release.set()
    assert (finding.ok, finding.remedy) == (False, "call a doctor")
    assert "no answer" in finding.detail
