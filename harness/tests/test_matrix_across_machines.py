"""`natbed matrix --tx ssh=...`: three hosts of a lab, two of which run a real sshd, are the machines."""

from __future__ import annotations

import itertools
import os
import pathlib
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from ordinary_user import NATBED, OrdinaryUser, users_are_to_be_had

from natbed.checks import Verdict
from natbed.lab import Lab
from natbed.machine import version
from natbed.node_kinds import Host
from natbed.process import find_program
from natbed.results import report, store
from natbed.results.report import CellRecord
from natbed.scenario import Scenario, Tunnel

TOPOLOGY = '''
"""One client behind a NAT. With STUCK, a file to make then, cells on host2 do not end."""

import pathlib
import socket
import time

from natbed.scenario import Scenario, Tunnel

STUCK = {stuck!r}


class P(Scenario):
    letter = "P"

    def build(self):
        if STUCK and socket.gethostname() == "host2":
            pathlib.Path(STUCK).touch()
            time.sleep(600)
        internet = self.internet()
        home = self.nat_router("nat", wan=internet)
        self.host("client1", on=home.lan)
        self.host("server", on=internet)

    def tunnels(self):
        return [Tunnel("client1", "server")]
'''
REST = "aes128gcm16-main-psk-1-masquerade"
CELLS = [f"P-tunnel-{REST}-initiator", f"P-transport-{REST}-responder", f"P-transport-{REST}-initiator"]
SSHD = """
Port 22
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
"""
SSH = """
IdentityFile {folder}/user
IdentitiesOnly yes
UserKnownHostsFile {folder}/known
User root
{hosts}
"""
# A machine has processes and files of its own: it sees neither the scenarios nor the results of the one that controls.
OWN_FILES = 'for folder in "$1" "$2"; do mount -t tmpfs none "$folder"; done; shift 2; exec "$@"'
SECONDS = 60.0


class ThreeMachines(Scenario):
    """On one network."""

    def build(self) -> None:
        """One controls, two run cells."""
        internet = self.internet()
        for name in ("control", "host1", "host2"):
            self.host(name, on=internet)

    def tunnels(self) -> list[Tunnel]:
        """None."""
        return []


@dataclass
class World:
    """The lab, up, with both sshd; a folder of scenarios and one for results on the machine that controls."""

    lab: Lab
    folder: pathlib.Path
    topologies: pathlib.Path
    results: pathlib.Path

    def scenarios(self, stuck: str = "") -> None:
        (self.topologies / "mine.py").write_text(TOPOLOGY.format(stuck=stuck))

    def tx(self, host: str, python: str = sys.executable) -> str:
        return f"--tx=ssh={host}//ssh_config={self.folder / 'ssh_config'}//python={python}"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`natbed matrix` on the machine that controls."""
        argv = [sys.executable, "-m", "natbed.cli", "matrix", f"--topologies={self.topologies}"]
        argv += [f"--results={self.results}", "--seconds=0", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return self.lab["control"].popen(argv, **pipes, env={**os.environ, "TERM": "dumb"})

    def matrix(self, *arguments: str) -> tuple[int, str]:
        """Exit code and all that it says."""
        with self.start(*arguments) as process:
            said, _ = process.communicate(timeout=SECONDS)
        return process.returncode, said

    @property
    def cells(self) -> list[CellRecord]:
        (file,) = self.results.glob(f"*-matrix*/{report.CELLS}")
        return report.load(file)


@pytest.fixture
def world(tmp_path: pathlib.Path, isolated: None) -> Iterator[World]:
    for program in ("ssh", "ssh-keygen", "sshd"):
        try:
            find_program(program)
        except FileNotFoundError:
            pytest.skip(f"{program} is missing: make witnesses")
    if not users_are_to_be_had():
        pytest.skip("sshd needs root: it changes users")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    (tmp_path / "sshd_config").write_text(SSHD.format(folder=tmp_path))
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)  # in this process' own /run
    with Lab(ThreeMachines()) as lab:
        world = World(lab, tmp_path, tmp_path / "mine", tmp_path / "results")
        world.topologies.mkdir()
        world.results.mkdir()
        world.scenarios()
        servers = [lab.host(name) for name in ("host1", "host2")]
        hosts = [f"Host {host.name}\nHostName {host.address}\nHostKeyAlias machine" for host in servers]
        (tmp_path / "ssh_config").write_text(SSH.format(folder=tmp_path, hosts="\n".join(hosts)))
        (tmp_path / "known").write_text(f"machine {(tmp_path / 'host.pub').read_text()}")
        for host in servers:
            start_sshd(host, world)
        yield world


def start_sshd(host: Host, world: World) -> None:
    """Start it and wait until it listens."""
    log = world.folder / f"{host.name}.log"
    own = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        OWN_FILES,
        "sh",
        str(world.topologies),
        str(world.results),
    ]
    with log.open("wb") as file:
        server = [find_program("sshd"), "-D", "-e", "-f", str(world.folder / "sshd_config")]
        process = host.popen([*own, *server], stdout=file, stderr=file)
    until = time.monotonic() + SECONDS
    while "Server listening" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.01)


def copies_of_pytest() -> list[pathlib.Path]:
    """In root's home, with the folder that xdist makes for them."""
    home = pathlib.Path(pwd.getpwuid(0).pw_dir)
    return [home / name for name in ("pytest", "_pytest", "pyexecnetcache") if (home / name).exists()]


def test_cells_run_on_both_machines_and_their_evidence_comes_home(world: World) -> None:
    junit, copies = world.folder / "junit.xml", copies_of_pytest()
    hosts = [world.tx(host) for host in ("host1", "root@203.0.113.200", "host2")]
    code, said = world.matrix(*hosts, f"--junit={junit}", *CELLS[:2])
    assert code == 0, said
    assert said.startswith("natbed: root@203.0.113.200: cannot be reached: "), "the others run its cells"
    assert "verdict   passed (2 passed, 0 failed, 0 lab broken)" in said
    assert {cell.machine for cell in world.cells} == {"host1", "host2"}
    for cell in world.cells:
        folder = pathlib.Path(cell.evidence)
        assert folder.parent == world.results
        record = store.load(folder)
        assert (record.hostname, record.verdict, record.mode) == (cell.machine, Verdict.PASSED, cell.cell.split("-")[1])
        assert {check.name for check in record.checks} >= {"connectivity", "rekey", "wire"}
        assert {name for name in record.evidence if not (folder / name).is_file()} == set()
        assert (folder / "nat-public.pcap").stat().st_size > 10_000
        assert f"{cell.cell}  on {cell.machine}\n" in said
        assert str(folder) in junit.read_text()
    assert (world.results / "latest").resolve() in [pathlib.Path(cell.evidence) for cell in world.cells]
    assert "/run/natbed-matrix" not in said + junit.read_text()
    assert copies_of_pytest() == copies, "xdist would copy it, to where it logs in"


def test_machines_that_cannot_be_used_are_named_and_what_was_not_run_is_said(world: World) -> None:
    old = world.folder / "old" / "natbed-0.0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: natbed\nVersion: 0.0.1\n")
    bare = shutil.which("python3", path="/usr/bin:/usr/local/bin") or "/usr/bin/python3"
    gone = [
        world.tx("root@203.0.113.200"),
        world.tx("host1", f"PYTHONPATH={old.parent} {sys.executable}"),
        world.tx("host1", f"{bare} -I"),
        world.tx("host1", "/nonexistent/python"),
        world.tx("host2", f"PATH=/nonexistent {sys.executable}"),
        world.tx("host2", f"echo Welcome; {sys.executable}"),
    ]
    begin = time.monotonic()
    code, said = world.matrix(*gone, *CELLS[:2])
    assert code == 3, said
    lines = said.splitlines()
    assert lines[0].startswith("natbed: root@203.0.113.200: cannot be reached: ssh: connect to host 203.0.113.200 ")
    assert lines[1] == f"natbed: host1: has natbed 0.0.1, this machine {version()}: install the same"
    assert lines[2].startswith("natbed: host1: natbed cannot be started there: ")
    assert lines[2].endswith("(ModuleNotFoundError: No module named 'natbed')")
    assert "natbed: host1: natbed cannot be started there: " in lines[3]
    assert "/nonexistent/python" in lines[3]
    assert lines[4].startswith("natbed: host2: not found: ip, iptables, ")
    assert lines[5] == "natbed: host2: its shell says 'Welcome', where execnet needs one that is silent"
    assert "2 were not run" in said
    assert "verdict   lab broken" in said
    assert "Traceback" not in said
    assert time.monotonic() - begin < 20


def test_a_machine_that_is_lost_is_named_and_the_others_run_the_rest(world: World) -> None:
    mark = world.folder / "stuck"
    world.scenarios(stuck=str(mark))
    process = world.start(world.tx("host1"), world.tx("host2"), *CELLS)
    until = time.monotonic() + SECONDS
    while not mark.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "no cell began on host2"
        time.sleep(0.01)
    world.lab["host2"].release()
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 3, said
    assert said.count("natbed: host2: lost: cannot be reached: ") == 1
    assert "Traceback" not in said
    progress = itertools.takewhile(bool, said.splitlines())
    assert all(line.startswith((" ", "[", "natbed: ")) for line in progress), f"ssh's own words are elsewhere: {said}"
    assert not re.search(r"client_loop|Connection (to|closed)|broken pipe", said, re.IGNORECASE), said
    assert list(world.results.glob("*/machines.log"))
    ended = {cell.cell: (cell.verdict, cell.machine) for cell in world.cells}
    assert sorted(ended) == sorted(CELLS)
    assert sorted(ended.values()) == [(Verdict.LAB_BROKEN, "host2"), *[(Verdict.PASSED, "host1")] * 2]


def test_a_user_who_is_not_root_gets_workers_in_user_namespaces(tmp_path: pathlib.Path, isolated: None) -> None:
    user = OrdinaryUser(tmp_path)
    (user.copy / "mine").mkdir()
    (user.copy / "mine" / "mine.py").write_text(TOPOLOGY.format(stuck=""))
    done = user.run([*NATBED, "matrix", CELLS[0], "--topologies", "mine", "--seconds", "0", "--tx", "popen"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CELLS[0]}  on this machine\n" in done.stdout
    assert "verdict   passed (1 passed, 0 failed, 0 lab broken)" in done.stdout
