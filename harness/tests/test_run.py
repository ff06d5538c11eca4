"""Whole runs of scenario A: what passes, and that what is broken on purpose is noticed for the right reason."""

from __future__ import annotations

import os
import pathlib
import re
import signal
from collections.abc import Sequence

import msgspec
import pytest
from run_world import NAT, SERVER, Broken, check, commands, options, passed, protocols, routed, run

from natbed import tunnels
from natbed.checks import CheckResult, Verdict
from natbed.nat import presets
from natbed.node_like import NodeLike
from natbed.results import store
from natbed.runner import Run, RunOptions, conclude
from natbed.scenario import Tunnel
from natbed.settings import Protection
from natbed.stacks.base import HostSettings, TunnelStatus
from natbed.stacks.espthrunat import EspThruNat, EspThruNatDaemon
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")

# what passes


def test_two_clients_behind_a_nat(tmp_path: pathlib.Path) -> None:
    record, folder = run(options(tmp_path, clients=2))
    passed(record)
    assert [check.name for check in record.checks] == ["NAT", "NAT discovery", "connectivity", "wire"]
    assert [client.name for client in record.clients] == ["client1", "client2"]
    for client in record.clients:
        assert (client.nat_seen_by_initiator, client.nat_seen_by_responder, client.encapsulation) == (True, True, "udp")
        assert (client.ping_loss_percent, client.tcp_both_ways, client.udp_both_ways) == (0, True, True)
        assert client.connect_milliseconds is not None
        assert 0 < client.connect_milliseconds < 10_000
        assert client.throughput is None, "nothing was measured"
    ports = {client.name: client.mapped_port for client in record.clients}
    assert ports["client1"] != ports["client2"]
    inside = {"client1": "192.168.1.11", "client2": "192.168.1.12"}
    assert check(record, "NAT discovery").details["conntrack"] == {inside[name]: ports[name] for name in ports}
    wire = check(record, "wire").details
    assert wire["frames"]["esp"] == wire["esp_good"] > wire["with_pattern"] > 0
    assert len(wire["spis"]) == 4, "an SA pair for each client"
    assert [host.name for host in record.hosts] == ["client1", "client2", "server"]
    assert all(host.memory_megabytes > 1 and 0 < host.ready_milliseconds < 10_000 for host in record.hosts)
    # the record and its evidence can be read again
    again = store.load(tmp_path / "latest")
    assert msgspec.json.encode(again) == msgspec.json.encode(record)
    assert (again.clients, again.hosts, again.verdict) == (record.clients, record.hosts, Verdict.PASSED)
    assert (tmp_path / "latest").readlink() == pathlib.Path(folder.name)
    promised = {
        f"{host}/{file}"
        for host in ("client1", "client2", "server")
        for file in ("espthrunat.log", "keys/esp_sa", "stats.jsonl")
    }
    promised |= {
        "nat-public.pcap",
        "nat-conntrack.txt",
        "nat-conntrack-counters.txt",
        "server/keys/ikev1_decryption_table",
    }
    assert promised <= set(record.evidence)
    for name in record.evidence:
        assert (folder / name).stat().st_size > 0 or name.startswith("nat-wireshark"), f"{name} is empty"
    lives = [msgspec.json.decode(line) for line in (folder / "server" / "stats.jsonl").read_text().splitlines()]
    assert all(life["counters"]["udp_in"] > 0 for life in lives), "a line for each time that it was started"
    events = (folder / "nat-conntrack.txt").read_text()
    for port in ports.values():
        assert f"dst={NAT} sport=500 dport={port}" in events
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, "latest"])


def test_throughput_of_tunnel_and_plain_path(tmp_path: pathlib.Path) -> None:
    record, _ = run(options(tmp_path, seconds=1, esp_suite="aes256gcm16"))
    passed(record)
    (client,) = record.clients
    assert client.throughput is not None
    slowest_plain = min(client.throughput.plain_forward, client.throughput.plain_reverse)
    fastest_tunnel = max(client.throughput.tunnel_forward, client.throughput.tunnel_reverse)
    assert slowest_plain > fastest_tunnel > 1, "the tunnel is user-space Python, the plain path is not"
    assert check(record, "throughput client1").passed


def test_where_nothing_is_translated_esp_travels_bare(tmp_path: pathlib.Path) -> None:
    record, folder = run(routed(tmp_path, clients=2, esp_suite="aes128-sha256"))
    passed(record)
    assert record.nat == "routed"
    for client in record.clients:
        assert (client.nat_seen_by_initiator, client.nat_seen_by_responder) == (False, False)
        assert (client.encapsulation, client.mapped_port) == ("none", 500)
    assert protocols(folder, esp_in_udp=False) == {50}


def test_esp_in_udp_can_be_forced_where_nothing_is_translated(tmp_path: pathlib.Path) -> None:
    protection = Protection("aes256-sha384-modp2048", "aes256-sha256", "modp2048", "always")
    record, folder = run(RunOptions(1, presets.ROUTED, protection, 0, tmp_path))
    passed(record)
    (client,) = record.clients
    assert (client.nat_seen_by_initiator, client.nat_seen_by_responder) == (False, False)
    assert client.encapsulation == "udp"
    assert protocols(folder, esp_in_udp=True) == {17}
    log = (folder / "client1" / "espthrunat.log").read_text()
    assert "aes256-sha384-modp2048" in log
    assert "aes256-sha256" in log


# what is broken on purpose


def test_a_nat_without_encapsulation_cannot_work_and_says_so(tmp_path: pathlib.Path) -> None:
    record, _ = run(options(tmp_path, encapsulation="never"))
    assert record.verdict is Verdict.FAILED
    assert "a NAT lies between" in record.reason
    assert "client1-server" in record.reason
    assert record.clients[0].connect_milliseconds is None


def test_a_nat_that_lost_its_rule_is_a_broken_lab(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Run(find("A"), options(tmp_path), lambda step: None)
    build = broken.lab.build

    def build_and_lose() -> None:
        build()
        broken.lab["nat"].run(["iptables", "-t", "nat", "-F"])

    monkeypatch.setattr(broken.lab, "build", build_and_lose)
    record = broken.execute()
    assert record.verdict is Verdict.LAB_BROKEN
    assert record.reason == f"NAT: client1 shows as 192.168.1.11, declared was {NAT}"
    assert not record.hosts, "no implementation was judged in it"
    assert store.load(broken.folder) == record


def test_rules_that_do_not_take_are_a_broken_lab(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natbed.nat import rules

    monkeypatch.setattr(rules, "rules_of", lambda text: [text[:9]])
    record, _ = run(options(tmp_path))
    assert record.verdict is Verdict.LAB_BROKEN
    assert "nat: rules missing" in record.reason


class Mortal(EspThruNat):
    """An implementation whose process on one host is killed at some point."""

    def __init__(self, victim: str, when: str) -> None:
        self.victim = victim
        self.when = when

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> EspThruNatDaemon:
        daemon = super().start(node, settings, evidence)
        if node.name == self.victim:
            ask = getattr(daemon, self.when)

            def die(*arguments: object) -> object:
                killed = os.pidfd_open(daemon.pids[0])
                os.kill(daemon.pids[0], signal.SIGKILL)
                with os.fdopen(killed) as descriptor:
                    await_end(descriptor.fileno())
                return ask(*arguments)

            setattr(daemon, self.when, die)
        return daemon


def await_end(pidfd: int) -> None:
    import select

    assert select.select([pidfd], [], [], 5)[0], "the process did not end within 5 s of SIGKILL"


@pytest.mark.parametrize("when", ["up", "status", "memory"])
def test_an_implementation_that_dies_fails_with_its_last_words(tmp_path: pathlib.Path, when: str) -> None:
    broken = Run(find("A"), options(tmp_path), lambda step: None, Mortal("client1", when))
    record = broken.execute()
    assert record.verdict is Verdict.FAILED
    log = (broken.folder / "client1" / "espthrunat.log").read_text().splitlines()
    assert record.reason.startswith("espthrunat: client1: ")
    assert log[-1] in record.reason
    assert "ended with code -9" in record.reason
    assert "wire" not in {check.name for check in record.checks}


class Liar(EspThruNat):
    """An implementation whose server names another port than it uses."""

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> EspThruNatDaemon:
        daemon = super().start(node, settings, evidence)
        status = daemon.status

        def wrong() -> list[TunnelStatus]:
            return [msgspec.structs.replace(one, remote=(one.remote[0], 4242)) for one in status()]

        if node.name == "server":
            daemon.status = wrong  # type: ignore[method-assign]
        return daemon


class Half(EspThruNat):
    """An implementation whose server never says that a tunnel is up, or says so when asked often enough."""

    def __init__(self, silent_for: int) -> None:
        self.silent_for = silent_for

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> EspThruNatDaemon:
        daemon = super().start(node, settings, evidence)
        status = daemon.status

        def late() -> list[TunnelStatus]:
            self.silent_for -= 1
            return [] if self.silent_for >= 0 else status()

        if node.name == "server":
            daemon.status = late  # type: ignore[method-assign]
        return daemon


@pytest.mark.parametrize(
    ("silent_for", "reason"), [(3, ""), (10**9, "not up 0.1 s after the initiator: client1-server")]
)
def test_traffic_waits_until_both_ends_are_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, silent_for: int, reason: str
) -> None:
    """A responder is up with QM3, which comes after the initiator is: what it gets before that it cannot answer."""
    monkeypatch.setattr(tunnels, "RESPONDER_SECONDS", 0.1 if reason else 5.0)
    monkeypatch.setattr(Run, "_audit", lambda self, captures: None)
    record = Run(find("A"), options(tmp_path), lambda step: None, Half(silent_for)).execute()
    assert record.verdict is (Verdict.FAILED if reason else Verdict.PASSED), record.reason
    assert reason in record.reason
    assert "drop_no_sa" not in "".join(log.read_text() for log in tmp_path.rglob("espthrunat.log"))


def test_a_port_that_is_not_conntracks_fails_nat_discovery(tmp_path: pathlib.Path) -> None:
    record = Run(find("A"), options(tmp_path), lambda step: None, Liar()).execute()
    assert record.verdict is Verdict.FAILED
    assert record.reason == "NAT discovery: client1: the responder answers port 4242, conntrack has 500"
    assert check(record, "wire").passed, "only its words were wrong"


def leak_icmp(run: Run) -> None:
    """Pings to the protected address go around the tunnel, and are answered; TCP and UDP stay in it."""
    commands(
        run.lab["client1"],
        "ip rule add pref 10 ipproto icmp to 10.99.0.1 lookup 100",
        "ip route add default via 192.168.1.1 table 100",
        "ip rule del pref 0",
        "ip rule add pref 20 lookup local",
    )
    commands(run.lab["internet"], f"ip route add 10.99.0.1 via {SERVER}")


def test_plaintext_around_the_tunnel_is_seen_on_the_wire_alone(tmp_path: pathlib.Path) -> None:
    record = Broken(options(tmp_path), leak_icmp).execute()
    assert check(record, "connectivity").passed, "traffic passes; that it passes in clear is another matter"
    assert record.verdict is Verdict.FAILED
    assert record.reason.startswith("wire: frame ")
    # whichever is first: the client's request, or its answer to the server's, which no conntrack entry translates
    assert re.search(rf"ICMP ({NAT}|192\.168\.1\.11) > 10\.99\.0\.1", record.reason)


def kill_plain_path(run: Run) -> None:
    commands(run.lab["server"], f"iptables -A INPUT -p tcp -d {SERVER} --dport 5201 -j REJECT")


def test_a_dead_plain_path_is_a_broken_lab(tmp_path: pathlib.Path) -> None:
    record = Broken(options(tmp_path, seconds=1), kill_plain_path).execute()
    assert record.verdict is Verdict.LAB_BROKEN
    assert record.reason.startswith("throughput client1: plain path: iperf3")
    assert check(record, "connectivity").passed


def pin_port_37(run: Run) -> None:
    commands(
        run.lab["nat"], "iptables -t nat -I POSTROUTING -o nat-eth0 -p udp --sport 500 -j MASQUERADE --to-ports 37"
    )


def test_a_mapped_port_of_another_protocol_is_audited_like_any_other(tmp_path: pathlib.Path) -> None:
    """Linux maps port 500 to a random one below 512, of which tshark gives some thirty to other protocols."""
    record = Broken(options(tmp_path), pin_port_37).execute()
    assert record.clients[0].mapped_port == 37
    passed(record)


def test_a_scenario_without_tunnels_judges_nothing(tmp_path: pathlib.Path) -> None:
    class NoTunnel(find("A")):  # type: ignore[misc]
        def tunnels(self) -> list[Tunnel]:
            return []

    record, _ = run(options(tmp_path), NoTunnel)
    assert record.verdict is Verdict.LAB_BROKEN
    assert "a tunnel between them" in record.reason


# the verdict


def results(*verdicts: Verdict) -> Sequence[CheckResult]:
    return [CheckResult(name=f"check{n}", verdict=v, reason=f"reason {n}") for n, v in enumerate(verdicts)]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([Verdict.PASSED, Verdict.PASSED], (Verdict.PASSED, "all checks passed")),
        ([Verdict.PASSED, Verdict.FAILED, Verdict.FAILED], (Verdict.FAILED, "check1: reason 1")),
        ([Verdict.LAB_BROKEN, Verdict.FAILED], (Verdict.FAILED, "check1: reason 1")),
        ([Verdict.PASSED, Verdict.LAB_BROKEN], (Verdict.LAB_BROKEN, "check1: reason 1")),
        ([], (Verdict.LAB_BROKEN, "nothing was checked")),
    ],
)
def test_the_verdict_is_the_worst_with_its_reason(verdicts: list[Verdict], expected: tuple[Verdict, str]) -> None:
    assert conclude(list(results(*verdicts))) == expected
