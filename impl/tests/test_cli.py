"""The command line: each mistake is one line on standard error that names it, exit code 1, and never a traceback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
from daemon_world import Host, espthrunat, launched, one_line, running
from plane_world import OUTER, Namespace, two_namespaces, what_is_missing

missing = what_is_missing()
needs_namespaces = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture
def here() -> Iterator[Namespace]:
    with two_namespaces() as (here, _):
        yield here


def refused(inside: Namespace, host: Host) -> str:
    """The one line of a daemon that does not start."""
    with launched(inside, host) as daemon:
        assert daemon.ended() == 1
        log = daemon.log.wait_for_end()
    (line,) = [line for line in log.splitlines() if not line.startswith("ERROR espthrunat.plane: ")]
    return line


def test_a_valid_configuration_is_said_to_be_one(tmp_path: FilePath) -> None:
    file = Host(0, tmp_path).write()
    run = espthrunat("check-config", str(file))
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{file}: valid, 1 connection\n", "")


def test_check_config_names_what_is_better_not_used(tmp_path: FilePath) -> None:
    host = Host(0, tmp_path, connection=('exchange = "aggressive"', 'ike = ["3des-sha1-modp1024"]'))
    run = espthrunat("check-config", str(host.write()))
    assert run.returncode == 0, "legacy is no mistake"
    assert run.stderr.splitlines() == [
        "espthrunat: warning: peer: ike = '3des-sha1-modp1024' is legacy (3des, sha1, modp1024)",
        "espthrunat: warning: peer: Aggressive Mode with a pre-shared key: its hash can be guessed offline",
    ]


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_a_file_that_is_not_there(tmp_path: FilePath, command: str) -> None:
    file = tmp_path / "nothing.toml"
    assert one_line(espthrunat(command, str(file))) == f"espthrunat: {file}: cannot be read: No such file or directory"


@pytest.mark.parametrize("command", ["run", "check-config"])
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("port = 500", "port = 99999", "local.port = 99999: must be 1 to 65535"),
        (
            'remote_identity = "any"',
            "remote_identity = 7",
            "connection[0].remote_identity = 7: Expected `str`, got `int`",
        ),
        ("[local]", "[local", "not TOML: "),
        ('control = "', 'control = "\\u0000', "local.control = "),
        ("psk = ", 'psk_file = "\\u0000"\n#', "connection[0].psk_file = "),
    ],
    ids=["range", "type", "syntax", "control", "psk_file"],
)
def test_check_config_and_run_name_file_key_and_value(
    tmp_path: FilePath, command: str, old: str, new: str, says: str
) -> None:
    file = Host(0, tmp_path).write()
    file.write_text(file.read_text().replace(old, new))
    assert one_line(espthrunat(command, str(file))).startswith(f"espthrunat: {file}: {says}")


@pytest.mark.parametrize(
    "command", [["status"], ["stats", "--json"], ["up", "peer"], ["down", "peer"], ["rekey", "peer"]]
)
def test_no_daemon_at_the_control_path(tmp_path: FilePath, command: list[str]) -> None:
    line = one_line(espthrunat(*command, "--control", str(tmp_path / "none.sock")))
    assert "none.sock: no daemon answers here (No such file or directory); start one: espthrunat run CONFIG" in line


@pytest.mark.parametrize("command", ["up", "rekey"])
@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan", "soon"])
def test_a_timeout_that_is_none_is_a_usage_error(tmp_path: FilePath, seconds: str, command: str) -> None:
    run = espthrunat(command, "peer", "--control", str(tmp_path / "none.sock"), f"--timeout={seconds}")
    assert run.returncode == 2
    assert "--timeout" in run.stderr
    assert "Traceback" not in run.stderr


def test_help_names_every_command() -> None:
    run = espthrunat("--help")
    assert run.returncode == 0
    for command in ("run", "check-config", "status", "stats", "up", "down", "rekey"):
        assert f"  {command} " in run.stdout


@needs_namespaces
def test_an_unknown_connection(here: Namespace, tmp_path: FilePath) -> None:
    with running(here, Host(0, tmp_path)) as daemon:
        for command in ("up", "down", "rekey"):
            assert one_line(daemon.cli(command, "pear")) == "espthrunat: no connection 'pear'; known are peer"


@needs_namespaces
def test_an_answer_that_takes_too_long(here: Namespace, tmp_path: FilePath) -> None:
    with running(here, Host(0, tmp_path)) as daemon:
        os.kill(daemon.process.pid, signal.SIGSTOP)
        line = one_line(daemon.cli("up", "peer", "--timeout", "0.1"))
        assert line.endswith("here.sock: no answer to up within 0.1 s")
        os.kill(daemon.process.pid, signal.SIGCONT)


@needs_namespaces
def test_a_second_daemon_on_the_same_control_socket(here: Namespace, tmp_path: FilePath) -> None:
    first = Host(0, tmp_path)
    with running(here, first) as daemon:
        line = refused(here, replace(first, port=501, tun="esp1"))
        assert line == f"espthrunat: {first.control}: another daemon listens here"
        assert daemon.ask("status")["connections"], "the first one still has its socket"
        assert "esp1" not in here.run("ip", "link")


@needs_namespaces
def test_port_500_in_use(here: Namespace, tmp_path: FilePath) -> None:
    host = Host(0, tmp_path)
    with here.udp(OUTER[0], 500):
        assert refused(here, host) == (
            f"espthrunat: UDP {OUTER[0]}:500 cannot be opened: another program has this port: "
            "stop it (`ss -lunp` names it) or configure another port"
        )
    assert not host.control.exists()


@needs_namespaces
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_without_root_it_says_what_is_missing(here: Namespace, tmp_path: FilePath) -> None:
    file = Host(0, tmp_path).write()
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    run = espthrunat("run", str(file), before=(*here.enter, *drop))
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1] == (
        f"espthrunat: UDP {OUTER[0]}:500 cannot be opened: "
        "marking packets needs CAP_NET_ADMIN: run as root, or in a user namespace with its own network"
    )


@needs_namespaces
def test_a_socket_that_a_killed_daemon_left_is_replaced(here: Namespace, tmp_path: FilePath) -> None:
    host = Host(0, tmp_path)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(host.control))
    assert host.control.is_socket()
    with running(here, host) as daemon:
        assert daemon.stop() == 0
    assert not host.control.exists()


@needs_namespaces
def test_a_control_path_that_is_something_else_is_left_alone(here: Namespace, tmp_path: FilePath) -> None:
    host = Host(0, tmp_path)
    host.control.write_text("precious")
    assert refused(here, host).startswith(f"espthrunat: {host.control}: this is no socket")
    assert host.control.read_text() == "precious"
