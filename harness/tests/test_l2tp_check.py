"""L2TP by xl2tpd: through a plain NAT, which gives the server what transport mode must give it; and in whole runs."""

from __future__ import annotations

import functools
import pathlib
import re
import socket
from collections.abc import Iterator

import pytest
from lab_wire import Wire
from run_world import NAT, SERVER, check, commands, options, passed, run

from natbed import judging
from natbed.checks import CheckResult, Verdict, l2tp
from natbed.checks.l2tp import check_l2tp
from natbed.checks.transport import HostPair
from natbed.isolation import runtime_directory
from natbed.judging import Judge
from natbed.lab import Lab
from natbed.results import store
from natbed.results.record import RunRecord
from natbed.runner import Run
from natbed.scenario import Scenario, ScenarioError
from natbed.screen import Screen
from natbed.stacks.base import Daemons
from natbed.stacks.espthrunat import EspThruNatDaemon
from natbed.topology_files import find

needs_xl2tpd = pytest.mark.skipif(bool(l2tp.missing()), reason="needs xl2tpd")
pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def lab(isolated: None) -> Iterator[Lab]:
    with Lab(find("A")()) as lab:
        yield lab


# A NAT may drop the first packet of one of two clients that begin at once from one port; it is sent again after 1 s.
def judge(lab: Lab, folder: pathlib.Path, *, seen: str = NAT, deadline: float = 3.0) -> CheckResult:
    clients = [lab.host(name) for name in ("client1", "client2")]
    pairs = [HostPair(client, lab["server"], client.address, SERVER, seen) for client in clients]
    result = check_l2tp(pairs, folder, runtime_directory(), deadline=deadline)
    assert not any(node.processes() for node in (*clients, lab["server"])), "no xl2tpd stays"
    assert not list(runtime_directory().glob("l2tp-*"))
    return result


def established(log: pathlib.Path) -> list[tuple[str, str, str, str]]:
    """What one xl2tpd says: (peer's address, its port, own tunnel ID, the peer's)."""
    found: list[tuple[str, str, str, str]] = re.findall(
        r"established to (\S+), (\d+)\.  Local: (\d+), Remote: (\d+)", log.read_text()
    )
    return found


# the check alone


@needs_xl2tpd
def test_two_clients_through_a_plain_nat(lab: Lab, tmp_path: pathlib.Path) -> None:
    result = judge(lab, tmp_path)
    assert result.verdict is Verdict.PASSED, result.reason
    assert result.reason.startswith(
        "2 control connections, established at both ends and ended in order; client1 seen at "
    )
    ends = result.details["connections"]
    assert [one["path"] for one in ends] == ["client1 to server", "client2 to server"]
    assert {one["at_server"]["address"] for one in ends} == {NAT}
    assert len({one["at_server"]["port"] for one in ends}) == len({one["at_server"]["local"] for one in ends}) == 2
    assert all(one["at_client"]["local"] == one["at_server"]["remote"] for one in ends)


# Where the type of a control message is (RFC 2661, 4.4.1): the value of the first AVP.
MESSAGE = "-p udp -m u32 --u32 0>>22&0x3C@24&0xFFFF="


@needs_xl2tpd
@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        pytest.param(
            "-p udp -s 192.168.1.12 --dport 1701",
            "client2 to server: no control connection at client2 within 3 s; xl2tpd there said last: control_finish: "
            "sending SCCRQ",
            id="nothing arrives",
        ),
        pytest.param(
            "-p udp -d 192.168.1.12 --sport 1701",
            "client2 to server: no control connection at client2 within 3 s",
            id="nothing comes back",
        ),
        pytest.param(
            f"{MESSAGE}3", "client1 to server: no control connection at server within 3 s", id="SCCCN is lost"
        ),
        pytest.param(
            f"{MESSAGE}4", "client1 to server: the server did not hear of its end within 3 s", id="StopCCN is lost"
        ),
    ],
)
def test_a_connection_that_is_not_made_or_not_ended_fails(
    lab: Lab, tmp_path: pathlib.Path, rule: str, problem: str
) -> None:
    commands(lab["nat"], f"iptables -I FORWARD {rule} -j DROP")
    result = judge(lab, tmp_path)
    assert (result.verdict, result.reason[: len(problem)]) == (Verdict.FAILED, problem)


@needs_xl2tpd
def test_a_client_that_shows_as_another_address_fails(lab: Lab, tmp_path: pathlib.Path) -> None:
    result = judge(lab, tmp_path, seen="192.0.2.1")
    assert result.verdict is Verdict.FAILED
    assert re.fullmatch(rf"client1 to server: the server saw it at {NAT}:\d+; expected was 192\.0\.2\.1", result.reason)


@needs_xl2tpd
def test_a_server_that_cannot_be_started_is_a_broken_lab(lab: Lab, tmp_path: pathlib.Path) -> None:
    with lab["server"].call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind((SERVER, 1701))
        result = judge(lab, tmp_path)
    assert result.verdict is Verdict.LAB_BROKEN
    assert result.reason.startswith("xl2tpd on server has ended; its last words: init_network: Unable to bind socket")


@needs_xl2tpd
def test_a_server_that_dies_is_a_broken_lab(lab: Lab, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(lab["nat"], "iptables -I FORWARD -p udp --dport 1701 -j DROP")
    awaited = l2tp._await

    def dying(*arguments: object) -> bool:
        log = tmp_path / "server" / "l2tp" / "xl2tpd.log"
        if log.exists() and "Listening" in log.read_text():  # it is the last one that is started
            for process in lab["server"].processes():
                process.kill()
                process.wait()
        return awaited(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(l2tp, "_await", dying)
    result = judge(lab, tmp_path)
    assert (result.verdict, result.reason[:27]) == (Verdict.LAB_BROKEN, "xl2tpd on server has ended;")


def test_a_program_that_is_missing_is_a_broken_lab(
    lab: Lab, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(l2tp, "PROGRAM", "no-such-xl2tpd")
    result = judge(lab, tmp_path)
    assert (result.verdict, "no program 'no-such-xl2tpd'" in result.reason) == (Verdict.LAB_BROKEN, True)
    assert check_l2tp([], tmp_path, runtime_directory()).verdict is Verdict.LAB_BROKEN


# in a run


@needs_xl2tpd
@pytest.mark.draft("L2TP", "A")
@pytest.mark.parametrize("clients", [1, 2, 3])
def test_clients_behind_one_nat_in_transport_mode(tmp_path: pathlib.Path, clients: int) -> None:
    record, folder = run(options(tmp_path, clients=clients, mode="transport"))
    passed(record)
    assert check(record, "L2TP").passed
    # by what the programs themselves have said
    names = [f"client{number + 1}" for number in range(clients)]
    at_server = established(folder / "server" / "l2tp" / "xl2tpd.log")
    at_clients = [one for name in names for one in established(folder / name / "l2tp" / "xl2tpd.log")]
    assert [(host, port) for host, port, _, _ in at_clients] == [(SERVER, "1701")] * clients
    assert {host for host, _, _, _ in at_server} == {NAT}
    assert len({port for _, port, _, _ in at_server}) == clients, "peers with one source port, kept apart"
    assert {(local, remote) for _, _, local, remote in at_server} == {(there, here) for _, _, here, there in at_clients}
    assert len({local for _, _, local, _ in at_server}) == clients
    # on the wire: SCCRQ, SCCRP, SCCCN, StopCCN and what acknowledges them, in ESP alone
    wire = check(record, "wire")
    assert wire.details["l2tp"] >= 5 * clients
    assert f"all authentic, {wire.details['l2tp']} of them L2TP control messages; " in wire.reason
    for segment in ("nat", "server"):
        seen = Wire(folder / f"{segment}-public.pcap")
        seen.read()
        assert not [p for p in seen.packets if 1701 in (p.source[1], p.destination[1])]


class Cut(Judge):
    """Lets the NAT pass no more ESP once connectivity has been seen."""

    def l2tp(self, evidence: pathlib.Path) -> CheckResult:
        commands(self._lab["nat"], "iptables -I FORWARD -p udp -m u32 --u32 0>>22&0x3C@8=0&&0>>22&0x3C@12=0 -j DROP")
        return super().l2tp(evidence)


class Unprotected(Judge):
    """Takes the client's connection down, and with it its SAs at both ends, before L2TP begins."""

    def discovery(self, daemons: Daemons) -> CheckResult:
        self._client = daemons["client1"]
        return super().discovery(daemons)

    def l2tp(self, evidence: pathlib.Path) -> CheckResult:
        assert isinstance(self._client, EspThruNatDaemon)
        self._client._ask("down", 5.0, connection="client1-server")
        return super().l2tp(evidence)


@needs_xl2tpd
@pytest.mark.parametrize("kind", [Cut, Unprotected])
def test_without_esp_there_is_no_l2tp(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: type[Judge]
) -> None:
    monkeypatch.setattr(judging, "check_l2tp", functools.partial(check_l2tp, deadline=1.5))
    asked = options(tmp_path, mode="transport")
    broken = Run(find("A"), asked, lambda step: None)
    broken.judge = kind(broken.lab, asked.protection, asked.seconds)
    record = broken.execute()
    assert record.verdict is Verdict.FAILED
    assert record.reason.startswith("L2TP: client1 to server: no control connection at client1 within 1.5 s; ")
    assert check(record, "wire").passed, "it did not go in clear either"


@needs_xl2tpd
def test_a_users_scenario_may_ask_for_it(tmp_path: pathlib.Path) -> None:
    class Servers(find("D")):  # type: ignore[misc]
        carries = ("l2tp",)

    record, folder = run(options(tmp_path, mode="transport"), Servers)
    passed(record)
    paths = [one["path"] for one in check(record, "L2TP").details["connections"]]
    assert paths == ["client1 to server1", "client1 to server2"]
    dialed = [host for host, _, _, _ in established(folder / "client1" / "l2tp" / "xl2tpd.log")]
    assert sorted(dialed) == ["203.0.113.3", "203.0.113.4"], "the addresses that the NAT gives the servers"


def test_what_natbed_cannot_carry_is_no_scenario() -> None:
    class Wrong(find("A")):  # type: ignore[misc]
        carries = ("pptp",)

    with pytest.raises(ScenarioError, match="carries pptp; natbed knows l2tp"):
        Wrong()


def names(record: RunRecord) -> list[str]:
    return [one.name for one in record.checks]


def test_where_the_program_is_missing_the_run_says_so_and_passes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(l2tp, "PROGRAM", "no-such-xl2tpd")
    note = "L2TP was left out: there is no program no-such-xl2tpd"
    assert Screen().run(find("A"), options(tmp_path, mode="transport")) == 0
    assert f"  note       {note}\n" in capsys.readouterr().out
    record = store.load(tmp_path / "latest")
    passed(record)
    assert (names(record).count("L2TP"), record.notes) == (0, [note])


@pytest.mark.parametrize(("mode", "letter"), [("tunnel", "A"), ("transport", "C")])
def test_other_runs_neither_carry_it_nor_speak_of_it(tmp_path: pathlib.Path, mode: str, letter: str) -> None:
    kind: type[Scenario] = find(letter)
    record, _ = run(options(tmp_path, mode=mode), kind)
    passed(record)
    assert ("L2TP" in names(record), record.notes) == (False, [])
