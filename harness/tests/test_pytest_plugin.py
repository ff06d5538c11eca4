"""The pytest door: scenarios are collected where that is wanted and nowhere else, and verdicts read as such."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from natbed.checks import Verdict
from natbed.results import store
from natbed.topology_files import topologies_directory

pytestmark = pytest.mark.usefixtures("isolated")

SCENARIOS = '''
"""A user's own scenarios: one that works, one whose implementation cannot, one whose network is not what it says."""

from natbed.scenario import Scenario, Tunnel


class Works(Scenario):
    letter = "OWN"
    title = "one of mine"
    protected = None

    def build(self):
        internet = self.internet()
        home = self.nat_router("nat", wan=internet)
        self.host("client1", on=home.lan, protected=self.protected)
        self.host("server", on=internet)

    def tunnels(self):
        return [Tunnel("client1", "server")]


class Refuses(Works):
    letter = "BAD"
    protected = "10.5.5.5/24"  # no network: it has host bits


class Lost(Works):
    letter = "LOST"

    def build(self):
        super().build()
        self.nodeInfo("client1")["routes"] = []
'''


def run_pytest(*arguments: object, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


@pytest.fixture
def foreign(tmp_path: pathlib.Path) -> pathlib.Path:
    """A repository of somebody who has natbed installed, with scenarios, and a file that must not be run."""
    root = tmp_path / "foreign"
    (root / "nets").mkdir(parents=True)
    (root / "pytest.ini").write_text("[pytest]\n")
    (root / "nets" / "mine.py").write_text(SCENARIOS)
    (root / "setup.py").write_text("raise SystemExit('setup.py was run')\n")
    return root


def test_the_projects_own_scenario_passes(tmp_path: pathlib.Path) -> None:
    results = tmp_path / "results"
    topology = topologies_directory() / "a.py"
    done = run_pytest(topology, "--natbed-seconds", 0, "--natbed-results", results, cwd=topology.parents[1])
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert store.load(results / "latest").verdict is Verdict.PASSED


def test_a_users_scenarios_run_and_their_verdicts_are_told_apart(foreign: pathlib.Path, tmp_path: pathlib.Path) -> None:
    results = tmp_path / "results"
    done = run_pytest("nets/mine.py", "--natbed", "--natbed-seconds", 0, "--natbed-results", results, "-v", cwd=foreign)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "nets/mine.py::OWN PASSED" in done.stdout
    assert "nets/mine.py::BAD FAILED" in done.stdout
    assert "nets/mine.py::LOST ERROR" in done.stdout, "a broken lab is an error, apart from failures"
    assert "1 failed, 1 passed, 1 error" in done.stdout
    lines = done.stdout.splitlines()
    (failed,) = [line for line in lines if line.startswith("failed: ")]
    assert failed.startswith("failed: espthrunat: client1: espthrunat did not start: ")
    assert "local_network = '10.5.5.5/24'" in failed
    (broken,) = [line for line in lines if line.startswith("lab broken: ")]
    assert broken == "lab broken: NAT: no datagram could be sent or received: [Errno 101] Network is unreachable"
    assert "Traceback" not in done.stdout
    assert "runner.py" not in done.stdout, "a verdict needs no traceback"
    assert f"evidence: {results}" in done.stdout
    verdicts = {store.load(folder).scenario: store.load(folder) for folder in results.iterdir()}
    assert {name: record.verdict for name, record in verdicts.items()} == {
        "OWN": Verdict.PASSED,
        "BAD": Verdict.FAILED,
        "LOST": Verdict.LAB_BROKEN,
    }
    assert verdicts["OWN"].nat == "masquerade"


def test_without_natbed_a_foreign_repository_is_left_alone(foreign: pathlib.Path) -> None:
    (foreign / "nets").rename(foreign / "topologies")
    done = run_pytest("topologies/mine.py", "--collect-only", "-q", cwd=foreign)
    assert "OWN" not in done.stdout
    assert done.returncode == 5, done.stdout
    program = "import os; print(os.readlink('/proc/self/ns/net'))"
    (foreign / "test_where.py").write_text(f"def test_where():\n    {program}\n")
    done = run_pytest("test_where.py", "-s", cwd=foreign)
    assert str(pathlib.Path("/proc/self/ns/net").readlink()) in done.stdout, "the process is where it was"


def test_only_files_that_are_named_or_in_topologies_are_collected(foreign: pathlib.Path) -> None:
    done = run_pytest(".", "--natbed", "--collect-only", "-q", cwd=foreign)
    assert done.returncode == 5, done.stdout
    assert "setup.py was run" not in done.stdout + done.stderr
    (foreign / "nets").rename(foreign / "topologies")
    done = run_pytest(".", "--natbed", "--collect-only", "-q", cwd=foreign)
    assert done.stdout.split()[:3] == [f"topologies/mine.py::{letter}" for letter in ("OWN", "BAD", "LOST")]


def test_a_folder_that_is_named_is_collected_but_for_files_that_are_not_about_natbed(foreign: pathlib.Path) -> None:
    (foreign / "nets" / "other.py").write_text("raise SystemExit('other.py was run')\n")
    done = run_pytest("nets/", "--natbed", "--collect-only", "-q", cwd=foreign)
    assert done.stdout.split()[:3] == [f"nets/mine.py::{letter}" for letter in ("OWN", "BAD", "LOST")]
    assert "other.py was run" not in done.stdout + done.stderr


def test_a_users_matrix_has_the_modes_that_the_scenario_has(foreign: pathlib.Path) -> None:
    text = SCENARIOS.replace('letter = "BAD"', 'letter = "BAD"\n    modes = ("transport",)')
    (foreign / "nets" / "mine.py").write_text(text)
    done = run_pytest("nets/", "--natbed-matrix", "smoke", "--collect-only", "-q", "-k", "not LOST", cwd=foreign)
    cells = ["OWN-tunnel", "OWN-transport", "BAD-transport"]
    expected = [f"nets/mine.py::{cell}-aes128gcm16-main-psk-1-masquerade-both" for cell in cells]
    assert done.stdout.split()[:3] == expected, done.stdout
    done = run_pytest("nets/", "--natbed-matrix", "smoke", "--natbed-select", "OWN or", cwd=foreign)
    assert done.returncode == 4
    assert "ERROR: -k 'OWN or': no expression at its end" in done.stderr + done.stdout
    done = run_pytest("nets/", "--natbed", "--natbed-repeat", "3", cwd=foreign)
    assert done.returncode == 4
    assert "are for --natbed-matrix" in done.stderr


def test_a_scenario_without_tunnel_mode_runs_in_the_one_that_it_has(
    foreign: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (foreign / "nets" / "mine.py").write_text(SCENARIOS.replace('"OWN"', '"OWN"\n    modes = ("transport",)'))
    results = tmp_path / "results"
    done = run_pytest("nets/", "--natbed", "--natbed-seconds", 0, "--natbed-results", results, "-k", "OWN", cwd=foreign)
    assert done.returncode == 0, done.stdout
    assert store.load(results / "latest").mode == "transport"


def test_a_scenario_file_that_cannot_be_read_is_one_clear_error(foreign: pathlib.Path) -> None:
    (foreign / "nets" / "typo.py").write_text("import natbed.scenari\n")
    done = run_pytest("nets/typo.py", "--natbed", "-p", "no:python", cwd=foreign)
    assert done.returncode == 2, done.stdout
    assert "typo.py: ModuleNotFoundError: No module named 'natbed.scenari'" in done.stdout
    assert "spec_from_file_location" not in done.stdout


def test_results_that_cannot_be_written_fail_in_one_line(foreign: pathlib.Path) -> None:
    (foreign / "file").write_text("in the folder's place")
    done = run_pytest("nets/mine.py", "--natbed", "--natbed-results", "file", "-k", "OWN", cwd=foreign)
    assert done.returncode == 1, done.stdout
    assert "file: cannot be used for evidence: File exists" in done.stdout
    assert "runner.py" not in done.stdout
