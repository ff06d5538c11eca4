"""What is broken on purpose is noticed by the check whose business it is, with the reason, in a cell of the matrix.

what is broken                           which check says so     where
a NAT, from the beginning                NAT                     test_run_scenarios.py
a NAT, once it has proved itself         NAT, once more          here
a selector at the gateway                connectivity            test_run_scenarios.py
what a gateway maps                      connectivity            test_run_scenarios.py
the MTU of a tunnel                      connectivity            here; test_sizes_check.py
an IV or a sequence number, used twice   wire                    here; test_esp_freshness.py
a route around the tunnel                wire                    here
a rekey that loses a packet              rekey                   test_run_modes.py
a rekey that is only said                rekey                   test_run_modes.py
what an end says of NATs                 NAT discovery           here; test_discovery_check.py
a process that dies, or logs a traceback espthrunat              here
a process or file left behind            leaks                   test_leaks_check.py
keepalives that are off                  idle                    test_idle_check.py
a plane that is slow                     throughput              test_slow_plane.py
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
import signal
from collections.abc import Callable

import msgspec
import pytest
from run_world import check, commands

from natbed.checks import CheckResult, Verdict
from natbed.checks.connectivity import check_connectivity
from natbed.checks.transport import check_transport
from natbed.lab import Lab
from natbed.matrix import Cell
from natbed.node_like import NodeLike
from natbed.results.record import RunRecord
from natbed.runner import Run
from natbed.stacks.base import HostSettings, TunnelStatus
from natbed.stacks.espthrunat import EspThruNat, EspThruNatDaemon
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks as they are, with less patience: for those that must fail."""
    tunnel = functools.partial(check_connectivity, deadline=2.0, pings=3, datagrams=3)
    transport = functools.partial(check_transport, deadline=2.0, pings=3, datagrams=3)
    monkeypatch.setattr("natbed.judging.check_connectivity", tunnel)
    monkeypatch.setattr("natbed.judging.check_transport", transport)


def cell(scenario: str = "A", mode: str = "tunnel", esp: str = "aes128gcm16") -> Cell:
    return Cell(scenario, mode, esp, "main-psk", 1, "masquerade", "none")


def broken(
    cell: Cell, folder: pathlib.Path, sabotage: Callable[[Lab], None] | None = None, stack: EspThruNat | None = None
) -> RunRecord:
    """A run of the cell; `sabotage` happens once its tunnels are up and both ends have said what NAT they found."""
    one = Run(find(cell.scenario), cell.options(0, folder), lambda step: None, stack)
    connectivity = one.judge.connectivity

    def sabotaged() -> CheckResult:
        if sabotage is not None:
            sabotage(one.lab)
        return connectivity()

    one.judge.connectivity = sabotaged  # type: ignore[method-assign]
    return one.execute()


def failures(record: RunRecord) -> list[str]:
    return [one.name for one in record.checks if one.verdict is Verdict.FAILED]


# the lab


def without(nat: str) -> Callable[[Lab], None]:
    """What that NAT's rules and memory are lost."""
    return lambda lab: commands(lab[nat], "iptables -t nat -F", "conntrack -F")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("scenario", "nat", "reason"),
    [
        ("A", "nat", "client1 shows as 192.168.1.11, declared was 203.0.113.2"),
        ("B", "nat2", "nothing from client1 reached the server within 2 s"),
    ],
)
def test_a_nat_that_is_removed_in_mid_run_is_held_against_nobody(
    tmp_path: pathlib.Path, scenario: str, nat: str, reason: str
) -> None:
    record = broken(cell(scenario), tmp_path, without(nat))
    assert check(record, "NAT").passed, "it had proved itself"
    assert failures(record) == ["connectivity", "wire"]
    assert record.verdict is Verdict.LAB_BROKEN
    assert record.reason == (
        f"NAT, once more: {reason}; it was right at the beginning, so this says nothing: connectivity, wire"
    )


class Kept(EspThruNat):
    """Its daemons can be reached."""

    def __init__(self) -> None:
        self.daemons: dict[str, EspThruNatDaemon] = {}

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> EspThruNatDaemon:
        self.daemons[node.name] = super().start(node, settings, evidence)
        return self.daemons[node.name]


@pytest.mark.usefixtures("impatient")
def test_an_implementation_that_dies_is_not_excused_by_what_it_leaves_on_its_host(tmp_path: pathlib.Path) -> None:
    """In transport mode its rules, which outlive it and let nothing out in clear, stop the NAT's proof as well."""
    stack = Kept()

    def kill(lab: Lab) -> None:
        for number in (signal.SIGSTOP, signal.SIGKILL):  # all stand still, so that none cleans up behind another
            for pid in stack.daemons["client1"].pids:
                os.kill(pid, number)

    record = broken(cell(mode="transport"), tmp_path, kill, stack)
    assert record.verdict is Verdict.FAILED, record.reason
    assert failures(record)[0] == "connectivity"
    assert "client1: espthrunat ended with code -9" in check(record, "espthrunat").reason


# the implementation


class Patched(EspThruNat):
    """At the client Python imports this text first, in each process of the implementation."""

    def __init__(self, folder: pathlib.Path, text: str) -> None:
        self._folder = folder / "patch"
        self._folder.mkdir()
        (self._folder / "sitecustomize.py").write_text(text)

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> EspThruNatDaemon:
        with pytest.MonkeyPatch.context() as patch:
            if node.name == "client1":
                patch.setenv("PYTHONPATH", str(self._folder))
            return super().start(node, settings, evidence)


IV = bytes.fromhex("5265757365644956")
REUSED_IV = f"""
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from espthrunat.esp import transforms

IV = {IV * 2!r}
seal_gcm, make_cbc = transforms.Gcm.seal, transforms.CbcHmac.__init__

def gcm(self, header, seed, plaintext):
    return seal_gcm(self, header, IV[: len(seed)], plaintext)

def remember(self, suite, key, integrity):
    make_cbc(self, suite, key, integrity)
    self.known = transforms._BLOCK_CIPHERS[suite.transform_id](key), IV[: suite.iv_octets], integrity

def cbc(self, header, seed, plaintext):
    cipher, iv, integrity = self.known
    covered = header + iv + Cipher(cipher, modes.CBC(iv)).encryptor().update(plaintext)
    return covered + integrity.icv(covered)

transforms.Gcm.seal, transforms.CbcHmac.__init__, transforms.CbcHmac.seal = gcm, remember, cbc
"""


@pytest.mark.parametrize(("esp", "iv"), [("aes128gcm16", IV), ("aes128-sha256", IV * 2)])
def test_an_iv_that_is_used_again_fails_on_the_wire_and_nowhere_else(
    tmp_path: pathlib.Path, esp: str, iv: bytes
) -> None:
    record = broken(cell(esp=esp), tmp_path, stack=Patched(tmp_path, REUSED_IV))
    assert failures(record) == ["wire"], "every packet arrives, and every packet can be decrypted"
    (tunnel,) = check(record, "NAT discovery").details["tunnels"]
    spi = int(tunnel["initiator"]["outbound_spi"], 0)
    assert re.match(rf"wire: frame \d+: ESP of SPI {spi:#010x} uses IV {iv.hex()} again, which frame", record.reason)


def test_a_traceback_in_a_log_fails_a_run_in_which_all_else_is_well(tmp_path: pathlib.Path) -> None:
    text = "import sys\nprint('Traceback (most recent call last):', file=sys.stderr)\n"
    record = broken(cell(), tmp_path, stack=Patched(tmp_path, text))
    assert record.verdict is Verdict.FAILED
    assert record.reason.startswith("espthrunat: client1: espthrunat logged a traceback, see ")
    assert check(record, "connectivity").passed


class Blind(EspThruNat):
    """An implementation that says at the client that there is no NAT."""

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> EspThruNatDaemon:
        daemon = super().start(node, settings, evidence)
        if node.name == "client1":
            true = daemon.status

            def status() -> list[TunnelStatus]:
                return [msgspec.structs.replace(one, nat=False) for one in true()]

            daemon.status = status  # type: ignore[method-assign]
        return daemon


def test_an_end_that_is_wrong_about_the_nat_fails_discovery_and_nothing_else(tmp_path: pathlib.Path) -> None:
    record = broken(cell(), tmp_path, stack=Blind())
    assert failures(record) == ["NAT discovery"]
    assert record.reason == "NAT discovery: client1: the initiator says False to a NAT, there is a NAT"


# the hosts


def around(host: str, *selectors: str) -> Callable[[Lab], None]:
    """On that host, what the selectors of ip-rule say takes the main table's routes, before any tunnel is asked."""
    return lambda lab: commands(lab[host], *(f"ip rule add pref 100 {one} lookup main" for one in selectors))


@pytest.mark.usefixtures("impatient")
def test_a_route_around_the_tunnel_shows_on_the_wire(tmp_path: pathlib.Path) -> None:
    record = broken(cell(), tmp_path, around("client1", "to 10.99.0.1 ipproto udp"))
    assert failures(record) == ["connectivity", "wire"]
    assert "frame " in check(record, "wire").reason
    assert "the plaintext pattern in clear (UDP 203.0.113.2:" in check(record, "wire").reason


def test_what_goes_in_clear_and_arrives_is_noticed_by_the_wire_alone(tmp_path: pathlib.Path) -> None:
    def sabotage(lab: Lab) -> None:
        for host in ("client1", "server"):
            around(host, "ipproto icmp")(lab)

    record = broken(cell(mode="transport"), tmp_path, sabotage)
    assert check(record, "connectivity").passed, "pings without protection are pings"
    assert failures(record) == ["wire"]
    assert "the plaintext pattern in clear (ICMP 203.0.113.2 > 203.0.113.18)" in record.reason


def test_a_tunnel_that_hides_what_it_adds_fails_connectivity(tmp_path: pathlib.Path) -> None:
    """Neither the device nor ICMP says how long a packet may be."""

    def sabotage(lab: Lab) -> None:
        silence = "iptables -A INPUT -p icmp --icmp-type fragmentation-needed -j DROP"
        commands(lab["client1"], "ip link set esp0 mtu 1500", silence)

    record = broken(cell(), tmp_path, sabotage)
    assert failures(record) == ["connectivity"]
    assert record.reason.startswith("connectivity: udp sizes client1 (192.168.1.11) -> server (10.99.0.1): ")
    assert "with DF neither arrived nor was refused" in record.reason
