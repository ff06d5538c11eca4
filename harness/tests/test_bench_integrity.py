"""The benchmark of integrity: what arrives is compared with what was sent, over links that are proved to do harm."""

from __future__ import annotations

import pathlib
import socket

import msgspec
import pytest
from two_nodes import CLIENT, SERVER, Nodes
from typer.testing import CliRunner

from natbed import cli
from natbed.bench.integrity.evidence import RECORD
from natbed.bench.integrity.record import MEGA, IntegrityRecord, Passage, Transfer, conclude, judge
from natbed.bench.integrity.transfer import transfer
from natbed.checks import Verdict
from natbed.checks.flows import End

OCTETS = 3 * MEGA + 7


class OneBit(socket.socket):
    """Sends one bit of each block otherwise than it is told to."""

    def sendall(self, data: bytes) -> None:  # type: ignore[override]
        super().sendall(data[:-1] + bytes([data[-1] ^ 1]))


class Damaging(End):
    def open(self, kind: socket.SocketKind, port: int = 0, *, shared: bool = False) -> socket.socket:
        return OneBit(fileno=super().open(kind, port, shared=shared).detach())


def ends(nodes: Nodes) -> tuple[End, End]:
    return End(nodes[0], CLIENT[0]), End(nodes[1], SERVER[0])


@pytest.mark.usefixtures("isolated")
def test_all_octets_are_counted_and_digested_at_both_ends(nodes: Nodes) -> None:
    told: list[int] = []
    one = transfer("to the server", *ends(nodes), OCTETS, told.append)
    assert one.passed, one.problem
    assert (one.octets, told[-1]) == (OCTETS, OCTETS)
    assert one.megabits_per_second > 0
    another = transfer("to the server", *ends(nodes), OCTETS, told.append)
    assert another.sent_digest != one.sent_digest, "the octets are random"


@pytest.mark.usefixtures("isolated")
def test_one_bit_is_noticed(nodes: Nodes) -> None:
    client, server = ends(nodes)
    one = transfer("to the server", Damaging(client.node, client.address), server, OCTETS, lambda octets: None)
    assert (one.octets, one.problem) == (OCTETS, "")
    assert judge([one], OCTETS) == (Verdict.FAILED, "to the server: what arrived is not what was sent")


def transferred(**fields: str) -> Transfer:
    same = {"way": "to the client", "sent_digest": "00", "arrived_digest": "00"}
    return Transfer(octets=OCTETS, seconds=1.0, **{**same, **fields})


def test_a_transfer_that_ends_early_fails_though_its_digests_may_be_equal() -> None:
    assert judge([transferred(), transferred()], OCTETS)[0] is Verdict.PASSED
    assert judge([transferred(), transferred(problem="after 5 octets ...")], OCTETS) == (
        Verdict.FAILED,
        "to the client: after 5 octets ...",
    )


def test_links_that_were_not_tried_prove_nothing() -> None:
    passed = Passage(link="unimpaired", verdict=Verdict.PASSED, reason="")
    assert conclude([passed], 0)[0] is Verdict.PASSED
    assert conclude([passed], 2) == (Verdict.LAB_BROKEN, "2 of 3 links were not tried")
    failed = Passage(link="loss 1 %", verdict=Verdict.FAILED, reason="to the client: why")
    assert conclude([passed, failed], 1) == (Verdict.FAILED, "loss 1 %: to the client: why")


@pytest.mark.usefixtures("isolated")
def test_everything_arrives_also_where_packets_are_damaged(tmp_path: pathlib.Path) -> None:
    words = ["--megabytes", "3", "--link", "unimpaired", "--link", "corrupt 5 %", "--results", str(tmp_path)]
    done = CliRunner().invoke(cli.app, ["bench", "integrity", *words])
    assert done.exit_code == 0, done.output
    (file,) = tmp_path.glob(f"*/{RECORD}")
    record = msgspec.json.decode(file.read_bytes(), type=IntegrityRecord)
    assert [passage.link for passage in record.passages] == ["unimpaired", "corrupt 5 %"]
    for passage in record.passages:
        assert [one.way for one in passage.transfers] == ["to the server", "to the client"]
        assert all(one.octets == 3 * MEGA and one.passed for one in passage.transfers)
    assert [link.measured["corrupt"] > 0 for link in record.passages[1].links] == [True, True], "proved before"
    assert all(link.passed["corrupted"] for link in record.passages[1].links), "and done meanwhile"
    assert "3 MB each way arrived as sent" in done.output


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize(
    ("words", "said"),
    [(["--link", "losss 1 %"], "no impairment 'losss'"), (["--suite", "rot13"], "'rot13'; there are aes128gcm16")],
)
def test_what_makes_no_sense_is_said(words: list[str], said: str) -> None:
    done = CliRunner().invoke(cli.app, ["bench", "integrity", *words])
    assert done.exit_code == 2
    assert said in done.output
