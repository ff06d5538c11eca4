"""Everything that root can do, a user can who is not root, by a user namespace."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest
from ordinary_user import FORBIDDEN, HOME, NATBED, PYTEST, PYTHON, OrdinaryUser, users_are_to_be_had

pytestmark = pytest.mark.usefixtures("isolated")
needs_users = pytest.mark.skipif(not users_are_to_be_had(), reason="these tests are run by an ordinary user themselves")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrdinaryUser]:
    folder = tmp_path_factory.mktemp("user")
    yield OrdinaryUser(folder)
    shutil.rmtree(folder)


@needs_users
def test_the_user_is_an_ordinary_one(user: OrdinaryUser, tmp_path: pathlib.Path) -> None:
    """Else nothing below is proved."""
    secret = tmp_path / "secret"
    secret.write_text("of root's")
    secret.chmod(0o600)
    program = f"import os; print(os.getresuid(), os.getgroups()); os.stat({str(secret)!r})"
    done = user.run([PYTHON, "-c", program])
    assert done.stdout == f"{(user.user, user.user, user.user)} []\n"
    assert done.stderr.splitlines()[-1].startswith("PermissionError")
    assert user.run(["grep", "^Cap\\(Prm\\|Eff\\|Amb\\)", "/proc/self/status"]).stdout.split()[1::2] == ["0" * 16] * 3


def test_a_scenario_passes_and_the_evidence_is_the_users(user: OrdinaryUser) -> None:
    done = user.run([*NATBED, "run", "A", "--seconds", "0"])
    assert done.returncode == 0, done.stdout + done.stderr
    folder = pathlib.Path(done.stdout.splitlines()[-1].removeprefix("evidence  "))
    assert folder.parent == HOME / "results"
    evidence = user.copy / "results" / folder.name
    assert json.loads((evidence / "record.json").read_bytes())["verdict"] == "passed"
    files = [evidence, *evidence.rglob("*")]
    assert {path.suffix for path in files} >= {".json", ".pcap", ".log"}
    assert {path.lstat().st_uid for path in files} == {user.user}


def test_traffic_comes_back_after_a_fault(user: OrdinaryUser) -> None:
    done = user.run([*NATBED, "run", "A", "--seconds", "0", "--clients", "1", "--rekey", "none", "--fault", "reboot"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " s after the NAT nat rebooted, " in done.stdout


def test_doctor_finds_everything(user: OrdinaryUser) -> None:
    done = user.run([*NATBED, "doctor"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"user {user.user}, root in a user namespace" in done.stdout or not user.user
    assert " missing " not in done.stdout


def test_doctor_names_the_setting_that_forbids_user_namespaces(user: OrdinaryUser) -> None:
    done = user.run([*FORBIDDEN, *NATBED, "doctor"])
    assert done.returncode == 1, done.stdout + done.stderr
    assert "change sysctl user.max_user_namespaces, which is 0" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("natbed: needed and missing: root, namespaces, ")


def test_without_user_namespaces_the_lab_is_broken_and_says_why(user: OrdinaryUser) -> None:
    done = user.run([*FORBIDDEN, *NATBED, "run", "A"])
    assert done.returncode == 3
    assert done.stderr == (
        "natbed: cannot make a user namespace: No space left on device: "
        "run as root, or change sysctl user.max_user_namespaces, which is 0\n"
    )


@needs_users
def test_doctor_says_which_mode_the_device_has(user: OrdinaryUser) -> None:
    done = user.run([*NATBED, "doctor"], tun_mode="600")
    assert done.returncode == 1
    (row,) = (line for line in done.stdout.splitlines() if line.split()[:2] == ["missing", "tun"])
    assert "/dev/net/tun has mode 0600: Permission denied" in row
    assert "modprobe tun; mode 0666" in row
    assert done.stderr == "natbed: needed and missing: tun\n"


@needs_users
def test_make_stops_before_the_tests_where_the_device_may_not_be_opened(user: OrdinaryUser) -> None:
    done = user.run(["make", "device"], tun_mode="600")
    assert done.returncode != 0
    assert "/dev/net/tun" in done.stdout
    assert "chmod 0666" in done.stdout
    assert user.run(["make", "device"]).returncode == 0


def test_make_needs_root_for_missing_packages_only(user: OrdinaryUser) -> None:
    """PYTHON is named because make's own look-up is not what is tested."""
    there = user.run(["make", "system", f"PYTHON={PYTHON}"])
    assert (there.returncode, there.stdout) == (0, ""), there.stderr
    if users_are_to_be_had():
        missing = user.run(["make", "system", f"PYTHON={PYTHON}", "COMMANDS=no-such-program"])
        assert missing.returncode != 0
        assert "missing: no-such-program" in missing.stdout
        assert "sudo make system" in missing.stdout


@pytest.mark.parametrize(
    ("workers", "files"),
    [
        ("0", ("harness/tests/test_conntrack.py", "harness/tests/test_selfcheck.py")),
        (
            "0",
            ("harness/tests/test_nfqueue.py", "harness/tests/test_faults_nat.py", "harness/tests/test_impairments.py"),
        ),
        ("2", ("harness/tests/test_node.py", "impl/tests/test_plane_process.py")),
    ],
    ids=["in one process", "faults and impairments", "in workers of xdist"],
)
def test_tests_of_both_packages_pass(user: OrdinaryUser, workers: str, files: tuple[str, ...]) -> None:
    """Nodes, wires, conntrack, iptables, a plane with its device. All others pass too, where a user tests."""
    done = user.run([*PYTEST, "-q", "-n", workers, *files], timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert " passed" in summary
    assert "skipped" not in summary


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_both_kinds_of_iptables_translate(user: OrdinaryUser, program: str) -> None:
    if shutil.which(program, path=os.defpath + ":/usr/sbin:/sbin") is None:
        pytest.skip(f"{program} is missing")
    script = f"""
from natbed.isolation import isolate
isolate()
import subprocess
for rule in ("-A POSTROUTING -o lo -p udp -j MASQUERADE", "-S POSTROUTING"):
    subprocess.run(["{program}", "-t", "nat", *rule.split()], check=True)
"""
    done = user.run([PYTHON, "-c", script])
    assert done.returncode == 0, done.stderr
    assert "-A POSTROUTING -o lo -p udp -j MASQUERADE" in done.stdout
