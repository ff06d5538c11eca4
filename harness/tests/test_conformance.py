"""The conformance table as a command: what is proved, what is not, and that nothing unproved passes for proved."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import msgspec
import pytest

from natbed.conformance import Conformance, Row, Standing, identifiers, judge, sections
from natbed.conformance_record import Outcome, Proof, Record

BUILT = {requirement.id for section in sections() for requirement in section.requirement if requirement.built}
WHEN = "2026-01-01T00:00:00+00:00"


def proof(*ids: str, outcome: Outcome = Outcome.PASSED, when: str = WHEN) -> Proof:
    return Proof(ids=ids, outcome=outcome, when=when)


def complete(**others: Proof) -> Record:
    """One passing test for each built row that the others do not name."""
    taken = {identifier for one in others.values() for identifier in one.ids}
    return Record(tests={f"test_a.py::test_{name}": proof(name) for name in BUILT - taken} | others)


def standing(record: Record, identifier: str) -> tuple[Standing, bool]:
    """Of one row, and whether the whole passes."""
    judged = judge(record)
    return row(judged, identifier).standing, judged.passed


def row(judged: Conformance, identifier: str) -> Row:
    (found,) = [row for row in judged.rows if row.id == identifier]
    return found


# the table


def test_every_row_is_said_once_with_its_clause() -> None:
    rows = [requirement for section in sections() for requirement in section.requirement]
    assert len(rows) == len(identifiers())
    assert all(row.text and row.clause for row in rows)
    assert {"WIRE-1", "NATD-2", "AM-5", "QM-1", "SA-5", "CSUM-3", "KA-6", "REKEY-4", "A", "SEC-4"} <= BUILT


# the judgement


def test_each_built_row_needs_a_test_that_passes_and_none_that_fails() -> None:
    assert standing(complete(), "NATD-2") == (Standing.PASSED, True)
    skipped = proof("NATD-2", outcome=Outcome.SKIPPED)
    assert standing(complete(one=proof("NATD-2"), two=skipped), "NATD-2") == (Standing.PASSED, True)
    assert standing(complete(one=skipped), "NATD-2") == (Standing.SKIPPED, False), "a skip is no proof"


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.XFAILED])
def test_one_test_that_fails_outweighs_all_that_pass(outcome: Outcome) -> None:
    record = complete(one=proof("NATD-2"), two=proof("NATD-2", outcome=outcome))
    assert standing(record, "NATD-2") == (Standing.FAILED, False)


def test_a_row_without_a_test_is_not_proved() -> None:
    record = complete()
    del record.tests["test_a.py::test_NATD-2"]
    assert standing(record, "NATD-2") == (Standing.UNTESTED, False)


def test_a_row_that_is_not_built_needs_no_test_but_one_that_passes_is_told() -> None:
    assert standing(complete(), "CFG-1") == (Standing.NOT_BUILT, True)
    early = judge(complete(one=proof("CFG-1"), two=proof("CFG-2", outcome=Outcome.FAILED)))
    assert early.passed
    assert (row(early, "CFG-1").ahead, row(early, "CFG-2").ahead) == (1, 0)


def test_an_id_that_the_table_does_not_have_fails_the_whole() -> None:
    judged = judge(complete(one=proof("NATD-2", "NATD-99")))
    assert not judged.passed
    assert judged.unknown == {"NATD-99": ["one"]}


# the command


def conformance(results: pathlib.Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "natbed.cli", "conformance", "--results", results, *arguments]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    return subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, timeout=30, check=False, env=environment
    )


def kept(results: pathlib.Path, record: Record) -> pathlib.Path:
    (results / "conformance.json").write_bytes(msgspec.json.encode(record))
    return results


def test_a_proved_table_passes_and_is_one_line_a_row_in_a_pipe(tmp_path: pathlib.Path) -> None:
    name = "test_a.py::test_hash[1|2]"
    record = complete(**{name: proof("NATD-2", when="2026-02-03T00:00:00+00:00")}, early=proof("CFG-1"))
    done = conformance(kept(tmp_path, record))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    (hashed,) = [line for line in lines if " NATD-2 " in line]
    assert hashed.split()[:5] == ["4.1", "NATD-2", "body", "=", "MD5(I"]
    assert hashed.split()[-2:] == ["1", "passed"]
    assert "CFG-1: not yet built, the table says, but tests that name it pass: 1" in lines
    assert lines[-1] == "verdict   passed"
    assert f"results of {WHEN} to 2026-02-03T00:00:00+00:00" in lines
    for section in sections():
        for one in section.requirement:
            said = f"{one.clause} {one.id} {one.text}".split()
            assert sum(line.split()[: len(said)] == said for line in lines) == 1, one.id
    assert name not in done.stdout


def test_tests_are_listed_where_that_is_asked_for(tmp_path: pathlib.Path) -> None:
    name = "test_a.py::test_hash[bold]"  # square brackets are no markup
    done = conformance(kept(tmp_path, complete(**{name: proof("NATD-2", "NATD-3")})), "--tests")
    assert [line.split() for line in done.stdout.splitlines() if name in line] == [[name, "passed"]] * 2


def test_what_is_wanting_is_named_with_its_tests(tmp_path: pathlib.Path) -> None:
    record = complete(failing=proof("SA-1", outcome=Outcome.FAILED), odd=proof("SA-9"))
    del record.tests["test_a.py::test_NATD-2"]
    done = conformance(kept(tmp_path, record), "--markdown", tmp_path / "report.md")
    assert done.returncode == 1, "a verdict"
    for line in (
        "NATD-2: no test",
        "SA-1: failed",
        "    failed   failing",
        "SA-9: the table has no such row, but tests name it: odd",
        "verdict   failed",
    ):
        assert line in done.stdout.splitlines()
    report = (tmp_path / "report.md").read_text()
    assert "Verdict: failed" in report
    assert "| failed `failing` | failed |" in report
    assert "NATD-2: no test" in report


def test_json_holds_the_whole_judgement(tmp_path: pathlib.Path) -> None:
    record = complete(one=proof("SA-1", outcome=Outcome.SKIPPED))
    done = conformance(kept(tmp_path, record), "--json")
    assert done.returncode == 1
    assert msgspec.json.decode(done.stdout, type=Conformance) == judge(record)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results yet; run `make conformance`"),
        ('{"tests": {}}', "no results yet; run `make conformance`"),
        ('{"tests": {"a', "no readable record"),
    ],
)
def test_without_results_one_line_says_what_to_do(tmp_path: pathlib.Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "conformance.json").write_text(content)
    done = conformance(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_markdown_that_cannot_be_written_is_said_in_one_line(tmp_path: pathlib.Path) -> None:
    done = conformance(kept(tmp_path, complete()), "--markdown", tmp_path / "nowhere" / "report.md")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("report.md: cannot be written: No such file or directory\n")
