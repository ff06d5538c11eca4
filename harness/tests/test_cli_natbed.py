"""The command line: three doors to the same run, one clear line for what is wrong, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import pytest
from inhabitants import inhabitants
from ordinary_user import FORBIDDEN

from natbed.checks import Verdict
from natbed.results import store
from natbed.topology_files import topologies_directory

pytestmark = pytest.mark.usefixtures("isolated")

NATBED = [sys.executable, "-m", "natbed.cli"]
TOPOLOGY = topologies_directory() / "a.py"
DEADLINE = 30.0  # seconds


def natbed(*arguments: object, cwd: pathlib.Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return command([*NATBED, *map(str, arguments)], cwd, text)


def command(argv: list[str], cwd: pathlib.Path, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    return subprocess.run(
        argv, input=text, capture_output=True, text=True, timeout=DEADLINE, check=False, cwd=cwd, env=environment
    )


def start(argv: list[str], cwd: pathlib.Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    )


@pytest.fixture
def cwd(tmp_path: pathlib.Path) -> pathlib.Path:
    """An empty folder to start commands in, which must stay empty."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    return folder


@pytest.fixture
def results(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "results"


# doors


def test_two_runs_at_once_by_two_doors_both_pass(cwd: pathlib.Path, results: pathlib.Path) -> None:
    arguments = ["--seconds", "0", "--clients", "1", "--no-idle", "--results", str(results)]
    doors = [[*NATBED, "run", "A", *arguments], [sys.executable, str(TOPOLOGY), *arguments]]
    running = [start(argv, cwd) for argv in doors]
    try:
        said = [process.communicate(timeout=DEADLINE) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    folders = []
    for process, (output, progress) in zip(running, said, strict=True):
        assert process.returncode == 0, output + progress
        lines = output.splitlines()
        assert "A. clients behind one NAT; NAT: masquerade, implementation: espthrunat" in lines
        assert "   tunnel mode, phase 1: main-psk" in [line.rstrip() for line in lines]
        assert "verdict   passed" in lines
        assert lines[-1].startswith("evidence  ")
        folders.append(pathlib.Path(lines[-1].removeprefix("evidence  ")))
        assert progress.splitlines()[0] == "building the network"
    assert folders[0] != folders[1]
    for folder in folders:
        assert folder.parent == results
        assert store.load(folder).verdict is Verdict.PASSED
    assert {path.name for path in results.iterdir()} == {folders[0].name, folders[1].name, "latest"}
    assert not list(cwd.iterdir())


def test_a_failure_is_exit_code_1_and_one_reason(cwd: pathlib.Path, results: pathlib.Path) -> None:
    done = natbed("run", "a", "--seconds", 0, "--clients", 1, "--encapsulation", "never", "--results", results, cwd=cwd)
    assert done.returncode == 1, done.stderr
    verdict, reason, evidence = done.stdout.splitlines()[-3:]
    assert verdict == "verdict   failed"
    assert reason.startswith("reason    espthrunat: client1: ")
    assert "a NAT lies between" in reason
    record = store.load(pathlib.Path(evidence.removeprefix("evidence  ")))
    assert (record.verdict, f"reason    {record.reason}") == (Verdict.FAILED, reason)


def test_the_shell_works_through_tunnel_and_nat(cwd: pathlib.Path, results: pathlib.Path) -> None:
    typed = "client1 ping -c 1 server\nnat iptables -t nat -L -n -v\nexit\n"
    done = natbed("shell", "A", "--clients", 1, "--results", results, cwd=cwd, text=typed)
    assert done.returncode == 0, done.stderr
    assert "tunnels are up: client1-server" in done.stdout
    assert "64 bytes from 10.99.0.1" in done.stdout, "the server's protected address, which only the tunnel reaches"
    (rule,) = [line.split() for line in done.stdout.splitlines() if " MASQUERADE " in line]
    packets, octets = int(rule[0]), int(rule[1])
    assert packets > 0
    assert octets > 0
    (folder,) = results.iterdir()
    assert "SAs deleted" in (folder / "server" / "espthrunat.log").read_text(), "it was taken down in order"
    assert not list(cwd.iterdir())


def test_doctor_says_what_there_is(cwd: pathlib.Path) -> None:
    done = natbed("doctor", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    for head in ("what", "found", "what to do"):
        assert head in done.stdout.splitlines()[1]
    rows = {line[11:33].strip(): line[:11].strip() for line in done.stdout.splitlines() if line[2:3].strip()}
    for needed in ("root", "namespaces", "iptables MASQUERADE", "tshark", "iperf3"):
        assert rows[needed] == "ok", done.stdout


def test_help_says_what_can_be_varied(cwd: pathlib.Path) -> None:
    top, run = natbed("--help", cwd=cwd), natbed("run", "--help", cwd=cwd)
    assert (top.returncode, run.returncode) == (0, 0)
    assert all(name in top.stdout for name in ("run", "shell", "doctor"))
    for option in (
        "--clients",
        "--nat",
        "--ike",
        "--esp",
        "--pfs",
        "--encapsulation",
        "--mode",
        "--exchange",
        "--auth",
        "--rekey",
        "--no-idle",
        "--seconds",
        "--results",
    ):
        assert option in run.stdout
    assert "Exit code 0: passed, 1: failed, 2: " in run.stdout
    assert "3: the lab itself was" in " ".join(run.stdout.split())


# what is wrong


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "Z"), "natbed: no scenario 'Z'; there are A"),
        (
            ("run", "A", "--nat", "carrier"),
            "Invalid value for --nat: 'carrier'; there are masquerade, one-to-one, routed",
        ),
        (
            ("run", "A", "--encapsulation", "if"),
            "Invalid value for --encapsulation: 'if'; there are auto, always, never",
        ),
        (("run", "A", "--mode", "both"), "Invalid value for --mode: 'both'; there are tunnel, transport"),
        (("run", "A", "--exchange", "base"), "Invalid value for --exchange: 'base'; there are main, aggressive"),
        (("shell", "A", "--auth", "dss"), "Invalid value for --auth: 'dss'; there are psk, rsa"),
        (
            ("run", "A", "--rekey", "all"),
            "Invalid value for --rekey: 'all'; there are none, initiator, responder, both",
        ),
        (("run", "A", "--clients", "0"), "Invalid value for '--clients'"),
        (("run", "A", "--clients", "15"), "Invalid value for '--clients'"),
        (("run", "A", "--seconds", "-1"), "Invalid value for '--seconds'"),
        (("run", "A", "--seconds", "two"), "Invalid value for '--seconds'"),
        (("run", "A", "--results", "in-its-place"), "natbed: in-its-place: cannot be used for evidence: File exists"),
        (("shell", "A", "--results", "in-its-place"), "natbed: in-its-place: cannot be used for evidence: File exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_that_makes_no_sense_is_2_and_says_why(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "in-its-place").write_text("a file")
    done = natbed(*arguments, cwd=tmp_path)
    assert complaint in done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["in-its-place"]


def test_without_rights_the_lab_is_broken_and_says_what_to_do(cwd: pathlib.Path, results: pathlib.Path) -> None:
    """No capability, and no user namespace to get it in: the limit is set for this program's only."""
    done = command([*FORBIDDEN, *NATBED, "run", "A", "--results", str(results)], cwd)
    assert done.returncode == 3, done.stderr
    assert done.stderr == (
        "natbed: cannot make a user namespace: No space left on device: "
        "run as root, or change sysctl user.max_user_namespaces, which is 0\n"
    )
    assert not results.exists()


# what comes from outside


class Running:
    """A `natbed run`, and from `await_step` on all processes that it has made so far or that live in its namespaces."""

    def __init__(self, cwd: pathlib.Path, results: pathlib.Path) -> None:
        arguments = ["run", "A", "--clients", "1", "--seconds", "60", "--results", str(results)]
        self.process = start([sys.executable, "-X", "faulthandler", *NATBED[1:], *arguments], cwd)
        self.namespaces: set[int] = set()
        self.commands: dict[int, str] = {}  # by pidfd: process and inode numbers are given to others after their end

    def await_step(self, step: str) -> None:
        """Read its progress up to this step."""
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:  # ends with the process, which has limits of its own
            said.append(line)
            if line.startswith(step):
                break
        else:
            raise AssertionError(f"it never came to {step!r}: {said}")
        pids = descendants(self.process.pid)
        for pid in pids | {self.process.pid}:
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/ns/net"):
                with contextlib.suppress(OSError):  # it has just ended
                    self.namespaces.add(task.stat().st_ino)
        self.namespaces.discard(pathlib.Path("/proc/self/ns/net").stat().st_ino)
        for pid in (pids | set(inhabitants(self.namespaces))) - {self.process.pid}:
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(pid)
                self.commands[descriptor] = f"{pid}: {command_of(pid)}"

    def await_end_of_all(self, seconds: float) -> None:
        """See that no process is left at the latest in so many seconds, and with the last its namespaces are gone."""
        until = time.monotonic() + seconds
        left = dict(self.commands)
        while left:
            ended, _, _ = select.select(list(left), [], [], max(until - time.monotonic(), 0))
            assert ended, f"still there after {seconds:g} s: {list(left.values())}"
            for descriptor in ended:
                del left[descriptor]

    def ended(self) -> tuple[str, str]:
        """What it has said, and its complaints, once it has ended. Says where it stands where it does not end."""
        try:
            return self.process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            _, errors = self.process.communicate(timeout=DEADLINE)
            pytest.fail(f"it had not ended after {DEADLINE:g} s, when it stood here:\n{errors}")

    def close(self) -> None:
        """End it and what it has left behind, which else would hold its pipes open."""
        self.process.kill()
        for descriptor in self.commands:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
        self.process.communicate()


def command_of(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = {int(child) for child in children.read_text().split()}
        except OSError:  # the thread has just ended
            continue
        found |= direct
        for child in direct:
            found |= descendants(child)
    return found


@pytest.fixture
def running(cwd: pathlib.Path, results: pathlib.Path) -> Iterator[Running]:
    running = Running(cwd, results)
    yield running
    running.close()


def test_kill_9_leaves_no_process_and_no_namespace(running: Running) -> None:
    running.await_step("measuring throughput")
    commands = " ".join(running.commands.values())
    for program in ("espthrunat run", "espthrunat.plane", "conntrack -E"):
        assert program in commands, "it is there before the kill"
    assert len(running.namespaces) >= 6, "of the process, two hosts, the NAT, the Internet, the segment"
    running.process.kill()
    running.process.wait(DEADLINE)
    running.await_end_of_all(5)


@pytest.mark.parametrize("step", ["starting", "bringing", "measuring throughput"])
def test_ctrl_c_is_exit_code_130_one_line_and_nothing_left(
    running: Running, step: str, cwd: pathlib.Path, results: pathlib.Path
) -> None:
    running.await_step(step)
    running.process.send_signal(signal.SIGINT)
    output, errors = running.ended()
    assert running.process.returncode == 130, errors
    assert errors.splitlines()[-1] == "natbed: interrupted; everything is taken down"
    assert "Traceback" not in errors
    assert not output, "no verdict on what was not finished"
    running.await_end_of_all(0)
    assert not list(cwd.iterdir())
    (folder,) = results.iterdir()
    assert not (folder / store.RECORD).exists()


def test_evidence_that_cannot_be_pointed_to_is_told(cwd: pathlib.Path, results: pathlib.Path) -> None:
    (results / "latest").mkdir(parents=True)
    done = natbed("run", "A", "--seconds", 0, "--clients", 1, "--encapsulation", "never", "--results", results, cwd=cwd)
    assert done.returncode == 2, done.stdout
    assert done.stderr.splitlines()[-1] == f"natbed: {results}/latest: cannot be written: Is a directory"
    (folder,) = [path for path in results.iterdir() if path.name != "latest"]
    assert msgspec.json.decode((folder / store.RECORD).read_bytes())["verdict"] == "failed", "the record is there"
