"""strongSwan as a peer to measure beside: it connects two clients through a NAT, rekeys, dies and comes back."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from natbed.capture import Capture, read_pcap
from natbed.checks import PATTERN, CheckResult
from natbed.checks.connectivity import Pair, check_connectivity
from natbed.isolation import runtime_directory
from natbed.lab import Lab
from natbed.settings import Protection, host_settings
from natbed.stacks import strongswan
from natbed.stacks.base import Daemon, HostSettings, StackError, Timing
from natbed.stacks.strongswan import StrongSwan
from natbed.topology_files import find
from natbed.tunnels import connect, running

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def stack() -> StrongSwan:
    """strongSwan; where it is missing the test is skipped with what is."""
    try:
        return StrongSwan()
    except StackError as error:
        pytest.skip(str(error))


@contextmanager
def connected(
    stack: StrongSwan, protection: Protection, folder: pathlib.Path, clients: int = 1
) -> Iterator[tuple[Lab, dict[str, Daemon]]]:
    with Lab(find("A")(clients=clients)) as lab:
        with running(stack, lab, host_settings(lab.scenario, protection), folder) as daemons:
            connect(lab.scenario.tunnels(), daemons)
            yield lab, daemons
        assert not any(process.poll() is None for node in lab.nodes for process in node.processes())


def flows(lab: Lab) -> CheckResult:
    """All of them at once, begun from both ends. Its queues may drop a datagram of a burst, as any network may."""
    talk = lab.scenario.conversations("tunnel")
    pairs = [Pair(lab[one.client], lab[one.server], one.client_address, one.server_address) for one in talk]
    return check_connectivity(pairs, allowed_loss_percent=20)


def test_two_clients_behind_a_nat_reach_the_server_in_udp_alone(stack: StrongSwan, tmp_path: pathlib.Path) -> None:
    # Aggressive Mode: in Main Mode a responder looks for a key before it knows whose
    protection = Protection(exchange="aggressive", esp_suite="aes128-sha1")
    with connected(stack, protection, tmp_path, clients=2) as (lab, daemons):
        with Capture(lab["nat"], "nat-eth0", tmp_path / "public.pcap") as capture:
            seen = flows(lab)
        assert seen.passed, seen.reason
        status = {one.name: one for one in daemons["server"].status()}
        assert status.keys() == {"client1-server", "client2-server"}
        for name, one in status.items():
            (client,) = daemons[name.partition("-")[0]].status()
            assert (one.remote[0], one.nat, one.encapsulation, one.mode) == ("203.0.113.2", True, "udp", "tunnel")
            assert (client.inbound_spi, client.outbound_spi) == (one.outbound_spi, one.inbound_spi)
            assert (client.remote, client.suite) == (("203.0.113.18", 4500), "AES_CBC-128 HMAC_SHA1_96")
        assert len({one.remote for one in status.values()}) == 2, "told apart by their ports"
        assert all(1e6 < daemon.memory() < 1e9 for daemon in daemons.values())
    frames = [frame.data for frame in read_pcap(capture.path) if frame.data[12:14] == b"\x08\x00"]
    assert len(frames) > 20
    assert {frame[23] for frame in frames} == {17}, "nothing but UDP"
    assert not any(PATTERN[:16] in frame for frame in frames)


@pytest.mark.parametrize("esp", ["aes128gcm16", "aes256-sha512", "3des-md5", "null-sha256"])
def test_each_kind_of_suite_is_the_one_that_is_used(stack: StrongSwan, tmp_path: pathlib.Path, esp: str) -> None:
    used = {
        "aes128gcm16": "AES_GCM_16-128",
        "aes256-sha512": "AES_CBC-256 HMAC_SHA2_512_256",
        "3des-md5": "3DES_CBC HMAC_MD5_96",
        "null-sha256": "NULL HMAC_SHA2_256_128",
    }
    protection = Protection(esp_suite=esp)
    with connected(stack, protection, tmp_path) as (lab, daemons):
        seen = flows(lab)
        assert seen.passed, seen.reason
        assert [one.suite for one in daemons["client1"].status()] == [used[esp]]


def test_it_rekeys_on_command_and_survives_a_crash(stack: StrongSwan, tmp_path: pathlib.Path) -> None:
    protection = Protection()
    with connected(stack, protection, tmp_path) as (lab, daemons):
        client, server = daemons["client1"], daemons["server"]
        spis = {one.inbound_spi for one in client.status()}
        for daemon, phase1 in ((client, False), (server, False), (client, True)):
            assert 0 < daemon.rekey("client1-server", phase1, 10.0) < 10.0
            now = {one.inbound_spi for one in client.status()}
            assert now - spis, "new SAs"
            spis |= now
            log = (tmp_path / "client1" / "charon.log").read_text()
            assert len(re.findall(r"IKE_SA client1-server\[\d+\] established", log)) == 1 + phase1
        client.kill()
        with pytest.raises(StackError, match="client1: "):
            client.status()
        client.restart()
        assert not client.status()
        client.up("client1-server", 10.0)
        seen = flows(lab)
        assert seen.passed, seen.reason


def test_why_a_tunnel_does_not_come_up_is_said(stack: StrongSwan, tmp_path: pathlib.Path) -> None:
    with Lab(find("A")(clients=1)) as lab:
        alone = {"client1": host_settings(lab.scenario, Protection())["client1"]}
        reason = r"client1: initiate: .*'client1-server' not established after 500ms"
        with running(stack, lab, alone, tmp_path) as daemons, pytest.raises(StackError, match=reason):
            daemons["client1"].up("client1-server", 0.5)


@pytest.mark.parametrize(
    ("protection", "timing", "reason"),
    [
        (Protection(mode="transport"), Timing(), "kernel-libipsec has no transport mode"),
        (Protection(encapsulation="never"), Timing(), "kernel-libipsec sends ESP in UDP only"),
        (Protection(authentication="rsa"), Timing(), "only pre-shared keys"),
        (Protection(), Timing(dpd=1.0), "neither timing nor a pool can be set"),
    ],
    ids=["transport", "bare", "rsa", "timing"],
)
def test_what_it_cannot_do_is_refused(
    stack: StrongSwan, tmp_path: pathlib.Path, protection: Protection, timing: Timing, reason: str
) -> None:
    with Lab(find("A")(clients=1)) as lab:
        settings: dict[str, HostSettings] = host_settings(lab.scenario, protection, timing)
        with pytest.raises(StackError, match=reason), running(stack, lab, settings, tmp_path):
            pass
    assert not [path for path in runtime_directory().iterdir() if "strongswan" in path.name and path.is_socket()]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(strongswan, "_FOLDERS", (tmp_path,))
    with pytest.raises(StackError, match="strongSwan's charon is not installed; make peers"):
        StrongSwan()
    (tmp_path / "plugins").mkdir()
    (tmp_path / "charon").write_text("")
    for name in strongswan.PLUGINS[:-1]:
        (tmp_path / "plugins" / f"libstrongswan-{name}.so").write_text("")
    with pytest.raises(StackError, match=f"in {tmp_path} lacks plugins: vici$"):
        StrongSwan()
