"""What runs leave: a folder each, a record that reads as it was written, and a pointer to the newest."""

from __future__ import annotations

import datetime
import os
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from natbed.checks import CheckResult, Verdict
from natbed.checks.discovery import TunnelView
from natbed.plans import Conversation
from natbed.results import store
from natbed.results.record import ClientRecord, HostRecord, RunRecord, Throughput
from natbed.results.summary import client_records
from natbed.stacks.base import TunnelStatus

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def record(reason: str = "all checks passed") -> RunRecord:
    return RunRecord(
        scenario="A",
        title="clients behind one NAT",
        started=NOW.isoformat(),
        nat="masquerade",
        stack="espthrunat",
        verdict=Verdict.PASSED,
        reason=reason,
        seconds=1.5,
        build_milliseconds=80.0,
        teardown_milliseconds=3.0,
        clients=[ClientRecord(name="client1", mapped_port=500)],
        hosts=[HostRecord(name="client1", ready_milliseconds=90.0, memory_megabytes=50.0)],
        checks=[CheckResult(name="NAT", verdict=Verdict.PASSED, reason="ok", details={"seen": {"client1": "x:1"}})],
        evidence=["nat-public.pcap"],
        kernel="6.18",
        version="0.1.0",
    )


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: pathlib.Path) -> None:
    barrier = threading.Barrier(8)

    def begin(_: int) -> pathlib.Path:
        barrier.wait(5)
        return store.new_evidence(tmp_path / "made" / "too", "A", NOW)

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(begin, range(8)))
    assert len(set(folders)) == 8
    assert {folder.name for folder in folders} >= {"20260102T030405-A", "20260102T030405-A-2", "20260102T030405-A-8"}
    assert all(folder.is_dir() for folder in folders)


def test_a_record_reads_as_it_was_written_and_latest_points_to_it(tmp_path: pathlib.Path) -> None:
    first, second = (store.new_evidence(tmp_path, "A", NOW) for _ in range(2))
    store.save(first, record("first"))
    assert store.load(tmp_path / "latest") == record("first")
    store.save(second, record("second"))
    assert store.load(tmp_path / "latest") == record("second")
    assert store.load(first) == record("first"), "the older run stays"
    assert (tmp_path / "latest").readlink() == pathlib.Path(second.name), "relative, so that results can be moved"
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name, "latest"]


def test_latest_is_never_missing_while_it_is_replaced(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (store.new_evidence(tmp_path, "A", NOW) for _ in range(2))
    store.save(first, record("first"))
    seen: list[str] = []
    replace = os.replace

    def look_and_replace(source: pathlib.Path, target: pathlib.Path) -> None:
        seen.append(store.load(tmp_path / "latest").reason)  # until the last step, which the kernel does at once
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_and_replace)
    store.save(second, record("second"))
    assert seen == ["first"]
    assert store.load(tmp_path / "latest").reason == "second"


def test_a_file_in_the_folders_place_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "results").write_text("no folder")
    with pytest.raises(store.StoreError, match="results: cannot be used for evidence: File exists"):
        store.new_evidence(tmp_path / "results", "A", NOW)


def test_a_record_that_cannot_be_written_or_pointed_to_is_named(tmp_path: pathlib.Path) -> None:
    folder = store.new_evidence(tmp_path, "A", NOW)
    (tmp_path / "latest").mkdir()
    with pytest.raises(store.StoreError, match="latest: cannot be written"):
        store.save(folder, record())
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, "latest"]
    with pytest.raises(store.StoreError, match=r"gone/record\.json: cannot be written: No such file"):
        store.save(tmp_path / "gone", record())


@pytest.mark.parametrize("content", [None, b"{", b'{"scenario": "A"}'])
def test_a_missing_or_damaged_record_is_named(tmp_path: pathlib.Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / store.RECORD).write_bytes(content)
    with pytest.raises(store.StoreError, match="no readable record"):
        store.load(tmp_path)


# the summary of each client


def status(port: int, nat: bool = True) -> TunnelStatus:
    return TunnelStatus(
        name="t",
        remote=("203.0.113.2", port),
        nat=nat,
        encapsulation="udp",
        inbound_spi="1",
        outbound_spi="2",
        suite="s",
    )


def flow(kind: str, path: str, passed: bool = True, loss: float = 0.0) -> dict[str, Any]:
    return {"kind": kind, "path": path, "passed": passed, "loss_percent": loss}


def conversation(client: str, server: str = "server") -> Conversation:
    return Conversation(f"{client}-{server}", client, server, "a", "b", "a", "b", True)


def result(name: str, details: dict[str, Any]) -> CheckResult:
    return CheckResult(name=name, verdict=Verdict.PASSED, reason="", details=details)


def test_each_client_gets_its_own_figures() -> None:
    views = {
        f"client{number}-server": TunnelView(
            client=f"client{number}",
            inside=f"192.168.1.1{number}",
            initiator=status(500),
            responder=status(port),
            nat=True,
            seen=("203.0.113.2", port),
            dialed=("203.0.113.18", 500),
        )
        for number, port in ((1, 500), (2, 337))
    }
    there, back = "client1 (192.168.1.11) -> server (10.99.0.1)", "server (10.99.0.1) -> client1 (192.168.1.11)"
    second, eleventh = there.replace("client1", "client2"), there.replace("client1", "client11")
    flows = [
        flow("ping", there, loss=10.0),
        flow("ping", back, loss=30.0),
        flow("tcp", there),
        flow("tcp", back, passed=False),
        flow("udp", there),
        flow("ping", second),
        flow("tcp", second),
        flow("ping", eleventh, loss=100.0),
    ]
    rates = {
        path: {way: {"megabits_per_second": base + extra} for way, extra in (("forward", 0.04), ("reverse", 1))}
        for path, base in (("tunnel", 100), ("plain", 1000))
    }
    checks = [result("connectivity", {"flows": flows}), result("throughput client1", {**rates, "ratio": {}})]
    talk = [conversation(f"client{number}") for number in (1, 2, 3)]
    one, two, three = client_records(talk, views, {"client1-server": 0.0786}, checks)
    assert one == ClientRecord(
        name="client1",
        nat_seen_by_initiator=True,
        nat_seen_by_responder=True,
        mapped_port=500,
        encapsulation="udp",
        connect_milliseconds=78.6,
        ping_loss_percent=30.0,
        tcp_both_ways=False,
        udp_both_ways=True,
        throughput=Throughput(tunnel_forward=100.0, tunnel_reverse=101.0, plain_forward=1000.0, plain_reverse=1001.0),
    )
    assert (two.mapped_port, two.ping_loss_percent, two.tcp_both_ways, two.udp_both_ways) == (337, 0.0, True, None)
    assert two.throughput is None
    assert three == ClientRecord(name="client3"), "nothing is known of it, and nothing is made up"


def test_a_tunnel_that_could_not_be_measured_has_no_rates() -> None:
    plain_only = {"plain": {"forward": {"megabits_per_second": 1.0}, "reverse": {"megabits_per_second": 1.0}}}
    (client,) = client_records([conversation("client1")], {}, {}, [result("throughput client1", plain_only)])
    assert client.throughput is None


def test_a_client_of_two_servers_has_a_row_for_each() -> None:
    path = "client1 (203.0.113.18) -> {} (10.99.0.2)"
    flows = [flow("ping", path.format("server1"), loss=10.0), flow("ping", path.format("server2"), loss=20.0)]
    talk = [conversation("client1", server) for server in ("server1", "server2")] + [conversation("client2", "server1")]
    rows = client_records(talk, {}, {"client1-server2": 0.5}, [result("connectivity", {"flows": flows})])
    assert [row.name for row in rows] == ["client1-server1", "client1-server2", "client2"]
    assert [row.ping_loss_percent for row in rows] == [10.0, 20.0, None]
    assert [row.connect_milliseconds for row in rows] == [None, 500.0, None]
