"""Every way to make phase 1, from the configuration file to a packet that comes through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

import pytest
from certificate_world import default_root, pem_key
from daemon_world import PSK, Host, launched, one_line, running
from plane_world import INNER, OUTER, Namespace, two_namespaces, what_is_missing

missing = what_is_missing()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture
def sides() -> Iterator[tuple[Namespace, Namespace]]:
    with two_namespaces() as both:
        yield both


def host(number: int, folder: FilePath, exchange: str, authentication: str) -> Host:
    """With what it needs for authentication in files of its folder."""
    lines = (f'exchange = "{exchange}"', f'authentication = "{authentication}"')
    if authentication == "psk":
        return Host(number, folder, connection=lines)
    name = ("here.example", "there.example")[number]
    made = default_root().issue(f"CN={name}", [name])
    (folder / "ca.pem").write_bytes(default_root().pem)
    (folder / f"{name}.pem").write_bytes(made.pem)
    (folder / f"{name}.key").write_bytes(pem_key(made.key))
    files = (f'certificate = "{name}.pem"', f'private_key = "{name}.key"', 'ca = "ca.pem"')
    return Host(number, folder, psk="", local=files, connection=lines)


@pytest.mark.parametrize("authentication", ["psk", "rsa"])
@pytest.mark.parametrize("exchange", ["main", "aggressive"])
def test_a_packet_comes_through(
    sides: tuple[Namespace, Namespace], tmp_path: FilePath, exchange: str, authentication: str
) -> None:
    ends = [host(number, tmp_path, exchange, authentication) for number in (0, 1)]
    with launched(sides[0], ends[0]) as left, running(sides[1], ends[1]) as right:
        left.log.wait_for("listening on")
        left.ask("up", connection="peer")
        right.wait(lambda status: bool(status["sas"]))
        for end, peer in ((left, "there.example"), (right, "here.example")):
            (phase1,) = end.ask("status")["ike_sas"]
            assert (phase1["exchange"], phase1["authentication"], phase1["identity"]) == (
                exchange,
                authentication,
                peer,
            )
        sides[0].run("ping", "-c", "1", "-W", "5", "-I", INNER[0], INNER[1])
        warned = "its hash can be guessed offline" in left.log.text
        assert warned == ((exchange, authentication) == ("aggressive", "psk"))
        for text in (left.log.text, right.log.text, left.cli("status", "--json").stdout):
            assert "PRIVATE KEY" not in text
            assert PSK not in text


def test_ends_that_disagree_about_the_exchange_say_so(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    ends = host(0, tmp_path, "aggressive", "psk"), host(1, tmp_path, "main", "psk")
    with launched(sides[0], ends[0]) as left, running(sides[1], ends[1]) as right:
        left.log.wait_for("listening on")
        assert "peer" in one_line(left.cli("up", "peer"))
        assert not right.ask("status")["sas"]
        assert "Traceback" not in left.log.text + right.log.text


def test_the_configured_rate_of_new_phase1_holds(sides: tuple[Namespace, Namespace], tmp_path: FilePath) -> None:
    slow = Host(0, tmp_path, local=("new_phase1_per_second = 1",))
    with running(sides[0], slow) as daemon, sides[1].udp(OUTER[1], 4000) as stranger:
        for number in range(1, 21):
            main_mode_1 = number.to_bytes(8, "big") + bytes(8) + bytes([1, 0x10, 2, 0]) + bytes(4)
            stranger.sendto(main_mode_1 + (28).to_bytes(4, "big"), (OUTER[0], 500))
        assert "more than 1 phase 1 a second" in daemon.log.wait_for("datagram too many")
