"""`natbed reflector`, `natbed fingerprint` and `natbed run --nat FILE`, as a user meets them."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys

import msgspec
import pytest
from lab_world import NAT, World, home
from nat_survey import outside_addresses, reflecting
from typer.testing import CliRunner

from natbed.cli import app
from natbed.nat import presets
from natbed.nat.profile import Filtering, Forward, Kind, Mapping, NatProfile
from natbed.nat.profile_file import ProfileError, find, load, render

NATBED = (sys.executable, "-m", "natbed.cli")


def fingerprint(world: World, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*NATBED, "fingerprint", "--server", outside_addresses(world)[0], "--patience", "0.3", *options]
    return world.lab["client1"].run(command, timeout=60, check=False)


@pytest.mark.usefixtures("isolated")
def test_a_user_measures_a_nat_and_gets_a_profile_of_it(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.toml"
    with home(tmp_path) as world:
        first, second = outside_addresses(world)
        command = [*NATBED, "reflector", "--address", first, "--address", second]
        server = world.lab["internet"].popen(command, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        assert server.stderr.readline() == f"reflector on {first} and {second}, UDP ports 4998 and 4999\n"
        done = fingerprint(world, "--no-timeouts", "--output", str(file))
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 130
        assert "Traceback" not in server.stderr.read()
    assert (done.returncode, done.stderr) == (0, "")
    for part in (NAT, "endpoint-independent", "address-and-port-dependent", "preserved", "not measured"):
        assert part in done.stdout
    assert load(file) == NatProfile(
        name="mine", kind=Kind.MASQUERADE, mapping=presets.MASQUERADE.mapping, filtering=presets.MASQUERADE.filtering
    )


@pytest.mark.usefixtures("isolated")
def test_a_user_measures_the_timeouts_too(tmp_path: pathlib.Path) -> None:
    short = msgspec.structs.replace(presets.MASQUERADE, name="short", udp_timeout=1, udp_timeout_stream=2)
    file = tmp_path / "short.toml"
    with home(tmp_path, 1, short) as world, reflecting(world):
        done = fingerprint(world, "--timeouts", "--longest", "2", "--output", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    assert "timeout, unreplied about 1 s (0.5 to 1.5)" in shown
    assert "timeout, replied about 2 s (1.5 to 2.5) NAT keepalives at least every 1 s" in shown
    assert load(file) == short
    assert "were not measured" not in file.read_text()


@pytest.mark.usefixtures("isolated")
def test_no_reflector_is_one_line(tmp_path: pathlib.Path) -> None:
    with home(tmp_path) as world:
        done = fingerprint(world, "--output", str(tmp_path / "none.toml"))
        where = outside_addresses(world)[0]
    assert done.returncode == 1
    assert done.stderr == f"natbed: {where} port 4998 does not answer: is natbed reflector running there?\n"
    assert not (tmp_path / "none.toml").exists()


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("fingerprint --server nowhere", "natbed: --server nowhere: not an IPv4 address"),
        (
            "fingerprint --server 192.0.2.1 --name a/b",
            "natbed: --name 'a/b': letters, digits, '.', '_' and '-', 64 at most",
        ),
        ("reflector --address 127.0.0.1", "natbed: --address: two of them, which differ"),
        ("reflector --address 127.0.0.1 --address 127.0.0.1", "natbed: --address: two of them, which differ"),
        (
            "reflector --address 127.0.0.1 --address 127.0.0.2 --port 9",
            "natbed: --port: two of them, from 1 to 65535, which differ",
        ),
        (
            "reflector --address 127.0.0.1 --address 192.0.2.77",
            "natbed: 192.0.2.77 port 4998: Cannot assign requested address",
        ),
    ],
)
def test_a_wrong_command_is_one_line(command: str, line: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert (done.exit_code, done.stderr.strip()) == (2, line)


@pytest.mark.parametrize("command", ["fingerprint", "reflector"])
def test_each_command_explains_itself(command: str) -> None:
    assert "Exit code" in CliRunner().invoke(app, [command, "--help"]).stdout


def test_run_takes_a_file_for_the_nat_and_says_what_is_wrong_with_it(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "box.toml"
    file.write_text('name = "box"\nkind = "masquerade"\nmapping = "full-cone"\nfiltering = "none"\n')
    done = CliRunner().invoke(app, ["run", "A", "--nat", str(file)], env={"COLUMNS": "400"})
    assert done.exit_code == 2
    shown = " ".join(done.stderr.split())
    assert "box.toml: mapping = \"full-cone\": Invalid enum value 'full-cone'" in shown
    assert "Traceback" not in shown


def test_run_refuses_in_one_line_what_no_rules_make(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "box.toml"
    file.write_text(GOOD + "udp_timeout = 30\nudp_timeout_stream = 300\n")
    done = CliRunner().invoke(app, ["run", "A", "--nat", str(file)], env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert "NAT profile box: it remembers mappings apart from flows, which have one timeout" in done.stderr


GOOD = 'name = "box"\nkind = "masquerade"\nmapping = "endpoint-independent"\nfiltering = "endpoint-independent"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not TOML"),
        ('kind = "masquerade"\n', "missing required field `name`"),
        (GOOD + "timeout = 3\n", "unknown field `timeout`"),
        (GOOD + 'udp_timeout = "long"\n', 'udp_timeout = "long": Expected `int`'),
        (GOOD + "udp_timeout = 0\n", "a UDP timeout is one second at least"),
        (GOOD + "port_range = [5, 70000]\n", "5 to 70000 is no range of ports"),
        (GOOD + 'forwards = [{ port = "x" }]\n', 'forwards[0].port = "x": Expected `int`'),
        (GOOD.replace("box", "../box"), 'name = "../box": letters'),
    ],
)
def test_an_error_names_file_key_and_value(tmp_path: pathlib.Path, text: str, message: str) -> None:
    file = tmp_path / "box.toml"
    file.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_what_is_written_is_read_back(tmp_path: pathlib.Path) -> None:
    profile = NatProfile(
        name="whole",
        kind=Kind.MASQUERADE,
        mapping=Mapping.ADDRESS_DEPENDENT,
        filtering=Filtering.ADDRESS_DEPENDENT,
        port_range=(40_000, 40_999),
        forwards=(Forward(500), Forward(4500, 2)),
    )
    file = tmp_path / "whole.toml"
    file.write_text(render(profile, ("a comment",)))
    assert find(str(file)) == profile
    assert find("routed") is presets.ROUTED
    with pytest.raises(ProfileError, match="'no-such'; there are masquerade"):
        find("no-such")
