"""What the draft requires, row by row (conformance.toml), and what the tests' last results say about each row."""

from __future__ import annotations

import enum
import functools
import pathlib
from collections.abc import Mapping

import msgspec

from .conformance_record import Outcome, Proof, Record

TABLE = pathlib.Path(__file__).with_name("conformance.toml")


class Requirement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row: what `clause` of the draft asks for ("choice": this project's own). Unless `built`, it comes later."""

    id: str
    text: str
    clause: str
    built: bool = True


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows that belong together."""

    title: str
    requirement: tuple[Requirement, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    section: tuple[Section, ...]


@functools.cache
def sections() -> tuple[Section, ...]:
    """The whole table, in the draft's order."""
    return msgspec.toml.decode(TABLE.read_bytes(), type=_File).section


@functools.cache
def identifiers() -> frozenset[str]:
    """Every id that a test may name."""
    return frozenset(requirement.id for section in sections() for requirement in section.requirement)


class Standing(enum.StrEnum):
    """What the last results say about a row. A skipped test proves nothing."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "only skipped"
    UNTESTED = "no test"
    NOT_BUILT = "not yet built"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One requirement, the tests that name it, and what they say together."""

    id: str
    section: str
    requirement: str
    clause: str
    standing: Standing
    tests: dict[str, Proof]  # by node id

    @property
    def wanting(self) -> bool:
        """Whether the row is built and not proved."""
        return self.standing not in (Standing.PASSED, Standing.NOT_BUILT)

    @property
    def ahead(self) -> int:
        """How many tests pass although the row says that it is not built: then the row is wrong, or they are."""
        passing = sum(proof.outcome is Outcome.PASSED for proof in self.tests.values())
        return passing if self.standing is Standing.NOT_BUILT else 0


class Conformance(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement over all rows. `unknown` has the tests that name an id which the table lacks, by that id."""

    passed: bool
    rows: list[Row]
    unknown: dict[str, list[str]]
    oldest: str  # when the oldest and the newest result came to be, ISO 8601
    newest: str


def judge(record: Record, table: tuple[Section, ...] | None = None) -> Conformance:
    """Every row with the results of its tests. Passed: each built row has a test that passes and none that fails."""
    rows = [
        _row(section.title, requirement, record.tests)
        for section in (sections() if table is None else table)
        for requirement in section.requirement
    ]
    known = {row.id for row in rows}
    unknown: dict[str, list[str]] = {}
    for node, proof in sorted(record.tests.items()):
        for identifier in proof.ids:
            if identifier not in known:
                unknown.setdefault(identifier, []).append(node)
    times = sorted(proof.when for proof in record.tests.values())
    return Conformance(
        passed=not unknown and not any(row.wanting for row in rows),
        rows=rows,
        unknown=unknown,
        oldest=times[0] if times else "",
        newest=times[-1] if times else "",
    )


def _row(section: str, requirement: Requirement, proofs: Mapping[str, Proof]) -> Row:
    tests = {node: proof for node, proof in sorted(proofs.items()) if requirement.id in proof.ids}
    return Row(
        id=requirement.id,
        section=section,
        requirement=requirement.text,
        clause=requirement.clause,
        standing=_standing({proof.outcome for proof in tests.values()}) if requirement.built else Standing.NOT_BUILT,
        tests=tests,
    )


def _standing(outcomes: set[Outcome]) -> Standing:
    if not outcomes:
        return Standing.UNTESTED
    if outcomes & {Outcome.FAILED, Outcome.XFAILED}:
        return Standing.FAILED
    return Standing.PASSED if Outcome.PASSED in outcomes else Standing.SKIPPED
