"""`natbed matrix` as a program of its own, whose cells are real runs: on workers, and with a shell when one fails."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from matrix_world import P_TUNNEL, Q_TRANSPORT, TOPOLOGY, World

from natbed import matrix_shell
from natbed.checks import Verdict
from natbed.matrix_shell import OpenedRun
from natbed.results import report, store
from natbed.runner import RunOptions
from natbed.settings import MODES
from natbed.stacks.base import Daemon, StackError
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World.made(tmp_path, monkeypatch)


def natbed_matrix(*arguments: object, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "natbed.cli", "matrix", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120", "TERM": "dumb"}
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def test_scenario_a_passes_in_both_modes_at_once_on_two_workers(tmp_path: pathlib.Path) -> None:
    cwd, results = tmp_path / "cwd", tmp_path / "results"
    cwd.mkdir()
    cells = [f"A-{mode}-aes128gcm16-main-psk-1-masquerade-initiator" for mode in MODES]
    done = natbed_matrix(*cells, "--seconds", 0, "-n", 2, "--results", results, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    records = {folder.name.partition("-")[2]: folder for folder in results.iterdir() if folder.name != "latest"}
    done_cells = report.load(results / records["matrix"] / report.CELLS)
    assert {cell.cell for cell in done_cells} == set(cells)
    for cell in done_cells:
        record = store.load(pathlib.Path(cell.evidence))
        assert (record.scenario, record.verdict, record.mode) == ("A", Verdict.PASSED, cell.cell.split("-")[1])
        assert {check.name for check in record.checks} >= {
            "connectivity",
            "idle",
            "rekey",
            "idle without keepalives",
            "wire",
        }
    assert not list(cwd.iterdir())


def test_a_worker_that_dies_is_a_broken_lab_and_the_others_go_on(world: World, tmp_path: pathlib.Path) -> None:
    dies = TOPOLOGY.replace('letter = "Q"', 'letter = "Q"\n\n    def build(self):\n        import os; os._exit(9)\n')
    refuses = dies.replace("on=home.lan)", 'on=home.lan, protected="10.5.5.5/24")', 1)
    (world.topologies / "mine.py").write_text(refuses)
    arguments = ("--smoke", "-k", "Q or P and tunnel", "-n", 2, "--topologies", world.topologies)
    done = natbed_matrix(*arguments, "--results", world.results, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert {cell.cell: cell.verdict for cell in world.cells} == {
        P_TUNNEL: Verdict.FAILED,
        Q_TRANSPORT: Verdict.LAB_BROKEN,
    }
    assert f"crashed while running 'mine/mine.py::{Q_TRANSPORT}'" in done.stdout


def test_the_shell_opens_on_the_lab_of_a_cell_that_goes_wrong(world: World, tmp_path: pathlib.Path) -> None:
    text = TOPOLOGY.replace(
        '        self.host("server", on=internet)\n',
        """        self.host("server", on=internet)
        self.nodeInfo("client1")["routes"] = []
""",
    )
    (world.topologies / "mine.py").write_text(text)
    argv = [sys.executable, "-m", "natbed.cli", "matrix", "--topologies", str(world.topologies), P_TUNNEL]
    argv += ["--shell-on-failure", "--results", str(world.results)]
    typed = "client1 ip route show 192.168.1.0/24\nexit\n"
    done = subprocess.run(argv, input=typed, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "NAT: no datagram could be sent or received" in done.stdout.partition("natbed> ")[0], "it says what is wrong"
    assert "dev client1-eth0" in done.stdout, "the lab is up"
    assert "verdict   lab broken" in done.stdout


def test_the_shell_opens_once_and_while_the_daemons_still_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, list[str]]] = []

    class Fails(OpenedRun):
        def connect(self, daemons: dict[str, Daemon]) -> None:
            super().connect(daemons)
            monkeypatch.setattr(matrix_shell, "open_shell", lambda lab: opened.append(tunnels(daemons)))
            raise StackError("as the test wants it")

    def tunnels(daemons: dict[str, Daemon]) -> dict[str, list[str]]:
        return {name: [status.name for status in daemon.status()] for name, daemon in daemons.items()}

    record = Fails(find("A"), RunOptions(clients=1, seconds=0, results=tmp_path), lambda step: None).execute()
    assert (record.verdict, record.reason) == (Verdict.FAILED, "espthrunat: as the test wants it")
    assert opened == [{"client1": ["client1-server"], "server": ["client1-server"]}]
