"""Whole runs in every mode, exchange and way to prove oneself, rekeyed under traffic; and restarts."""

from __future__ import annotations

import pathlib

import pytest
from run_world import NAT, SERVER, check, commands, options, passed, protocols, run

from natbed.checks import CheckResult, Verdict, l2tp
from natbed.judging import Judge
from natbed.nat import presets
from natbed.node_like import NodeLike
from natbed.runner import Run, RunOptions
from natbed.settings import Protection
from natbed.stacks.base import Daemons, HostSettings, StackError
from natbed.stacks.espthrunat import EspThruNat, EspThruNatDaemon
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")

VARIETIES = [
    pytest.param(Protection(), 2, id="tunnel main-psk"),
    pytest.param(Protection(authentication="rsa"), 1, id="tunnel main-rsa"),
    pytest.param(Protection(exchange="aggressive"), 1, id="tunnel aggressive-psk"),
    pytest.param(Protection(mode="transport"), 1, id="transport main-psk"),
    pytest.param(Protection(authentication="rsa", mode="transport"), 1, id="transport main-rsa"),
    pytest.param(Protection(mode="transport", exchange="aggressive"), 2, id="transport aggressive-psk"),
]


@pytest.mark.draft("A", "REKEY-1", "REKEY-2", "REKEY-3", "CSUM-2", "SA-2")
@pytest.mark.parametrize(("protection", "clients"), VARIETIES)
def test_rekeys_by_both_ends_cost_nothing(tmp_path: pathlib.Path, protection: Protection, clients: int) -> None:
    record, folder = run(RunOptions(clients, presets.MASQUERADE, protection, 0, tmp_path, "both", idle=False))
    passed(record)
    carried = ["L2TP"] if protection.mode == "transport" and not l2tp.missing() else []
    assert [check.name for check in record.checks] == [
        "NAT",
        "NAT discovery",
        "connectivity",
        *carried,
        "rekey",
        "wire",
    ]
    assert (record.mode, record.phase1) == (protection.mode, protection.phase1)
    rekey, wire = check(record, "rekey").details, check(record, "wire").details
    assert [len(done) for done in rekey["rekeys"].values()] == [4] * clients
    assert len(rekey["spis"]) == 8 * clients
    assert len(wire["spis"]) == 10 * clients, "the first pair, and one for each rekey"
    assert len(wire["ike_cookies"]) == 3 * clients, "a phase 1 by each end, and the first"
    assert wire["ike_encrypted"] == wire["ike_decrypted"] > 0
    assert all(stream["sent"] > 200 and stream["lost"] == 0 for stream in rekey["streams"])
    in_fragments = wire["frames"].get("fragment", 0) > 0
    assert in_fragments or protection.authentication == "psk", "a chain of certificates fits no Ethernet"
    peers = check(record, "connectivity").details.get("seen", {})
    assert [host for host, _ in peers.get(SERVER, {}).get("tcp", [])] == [NAT] * (clients if peers else 0)
    assert bool(peers) is (protection.mode == "transport")
    evidence = {path.name for path in (folder / "client1").iterdir()}
    assert ("private_key.pem" in evidence) is (protection.authentication == "rsa")


def test_transport_mode_where_nothing_is_translated(tmp_path: pathlib.Path) -> None:
    protection = Protection(mode="transport")
    record, folder = run(RunOptions(2, presets.ROUTED, protection, 0, tmp_path))
    passed(record)
    assert [client.encapsulation for client in record.clients] == ["none", "none"]
    assert protocols(folder, esp_in_udp=False) == {50}
    begun = [flow["path"].split()[0] for flow in check(record, "connectivity").details["flows"]]
    assert begun.count("server") == 12, "there is no NAT that it could not pass"


def test_throughput_of_hosts_own_addresses(tmp_path: pathlib.Path) -> None:
    record, _ = run(RunOptions(1, presets.MASQUERADE, Protection(mode="transport"), 1, tmp_path))
    passed(record)
    (client,) = record.clients
    assert client.throughput is not None
    rates = client.throughput
    assert min(rates.plain_forward, rates.plain_reverse) > max(rates.tunnel_forward, rates.tunnel_reverse) > 1


class Lossy(Judge):
    """In its lab the NAT drops one ESP packet of the stream to the server while SAs are replaced."""

    def rekey(self, daemons: Daemons, side: str) -> CheckResult:
        esp = "-m u32 --u32 0>>22&0x3C@8=0&&0>>22&0x3C@12=0"
        one = "-m statistic --mode nth --every 1000000 --packet 120"
        commands(self._lab["nat"], f"iptables -I FORWARD -o nat-eth0 -p udp --dport 500 {esp} {one} -j DROP")
        return super().rekey(daemons, side)


def test_one_packet_that_the_nat_drops_fails_the_rekey(tmp_path: pathlib.Path) -> None:
    asked = RunOptions(1, presets.MASQUERADE, Protection(), 0, tmp_path, "initiator", idle=False)
    single = EspThruNat(batches=False)  # a NAT would count a train as one packet, and drop all of it
    lossy = Run(find("A"), asked, lambda step: None, single)
    lossy.judge = Lossy(lossy.lab, asked.protection, asked.seconds)
    record = lossy.execute()
    assert record.verdict is Verdict.FAILED
    assert record.reason.startswith("rekey: client1-server to the server: 1 of ")
    assert record.reason.endswith(" datagrams were lost, the first number 120")
    assert [name for name in ("connectivity", "wire") if check(record, name).passed] == ["connectivity", "wire"]


class Unmoved(EspThruNat):
    """An implementation that says it has rekeyed."""

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> EspThruNatDaemon:
        daemon = super().start(node, settings, evidence)
        daemon.rekey = lambda tunnel, phase1, timeout: 0.001  # type: ignore[method-assign]
        return daemon


def test_a_rekey_that_is_only_said_fails(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natbed.checks.rekey._ARRIVAL_SECONDS", 1.0)
    asked = RunOptions(1, presets.MASQUERADE, Protection(), 0, tmp_path, "responder", idle=False)
    record = Run(find("A"), asked, lambda step: None, Unmoved()).execute()
    assert record.reason.startswith("rekey: client1-server: Quick Mode by the responder: the two ends do not share")


def command_line(pid: int) -> bytes:
    """Of a process that runs; of one that has ended, reaped or not, nothing."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_killed_implementation_can_be_started_again(tmp_path: pathlib.Path) -> None:
    broken = Run(find("A"), options(tmp_path), lambda step: None)
    with broken.lab, broken.daemons() as daemons:
        broken.connect(daemons)
        client = daemons["client1"]
        before = client.pids
        assert all(map(command_line, before))
        client.kill()
        assert not any(map(command_line, before)), "the data plane ended with it"
        with pytest.raises(StackError, match="its last words"):
            client.status()
        client.restart()
        assert set(client.pids).isdisjoint(before)
        broken.connect(daemons)
        assert broken.judge.connectivity().passed
    log = (broken.folder / "client1" / "espthrunat.log").read_text()
    assert log.count("stopped") == 1, "of the second one only; the log has both"
