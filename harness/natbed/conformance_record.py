"""The last result of every test that names a requirement: one JSON file, which each session of pytest updates."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator

import msgspec

RECORD = "conformance.json"


class RecordError(Exception):
    """The record cannot be read or written; the message says why in one line."""


class Outcome(enum.StrEnum):
    """How a test ended. xfailed: it is marked as expected to fail, whatever came of it."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    XFAILED = "xfailed"


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """One test: the ids that it names, how it ended last, and when (ISO 8601, with zone)."""

    ids: tuple[str, ...]
    outcome: Outcome
    when: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The tests by node id."""

    tests: dict[str, Proof] = msgspec.field(default_factory=dict)


class Found(msgspec.Struct, kw_only=True):
    """What a session collected: the children of each collector within a file, the ids of each marked test."""

    children: dict[str, list[str]] = msgspec.field(default_factory=dict)
    ids: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    broken: set[str] = msgspec.field(default_factory=set)  # what could not be collected


def load(file: pathlib.Path) -> Record | None:
    """The record; None if there is none yet. RecordError if it cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise RecordError(f"{file}: no readable record: {error}") from error


def merge(old: Record, found: Found, new: dict[str, Proof], exists: Callable[[str], bool]) -> Record:
    """The old record without tests that are gone, with the session's results over it.

    `exists` says whether a file of tests, as node ids begin with it, is still there. A test that could not be collected
    any more has failed. One that was deselected keeps its last result.
    """
    present = {child for children in found.children.values() for child in children}

    def ids_now(node: str) -> tuple[str, ...]:
        before = old.tests[node].ids if node in old.tests and node not in present else ()
        return found.ids.get(node, before)

    tests = {}
    for node, proof in old.tests.items():
        if not exists(node.partition("::")[0]) or _gone(node, found.children):
            continue
        broken = any(_within(node, collector) for collector in found.broken)
        outcome = Outcome.FAILED if broken else proof.outcome
        tests[node] = msgspec.structs.replace(proof, ids=ids_now(node), outcome=outcome)
    for node, proof in new.items():
        # a worker that crashed could not say what the test proves
        tests[node] = msgspec.structs.replace(proof, ids=proof.ids or ids_now(node))
    tests = {node: proof for node, proof in sorted(tests.items()) if proof.ids}
    return Record(tests=tests)


def _gone(node: str, children: dict[str, list[str]]) -> bool:
    """Whether a collector that held the test no longer does."""
    return any(
        _within(node, collector) and not any(node == child or _within(node, child) for child in held)
        for collector, held in children.items()
    )


def _within(node: str, collector: str) -> bool:
    return node.startswith(f"{collector}::")


def update(file: pathlib.Path, change: Callable[[Record], Record]) -> None:
    """Read, change, replace; sessions that end at once take turns. RecordError if the record cannot be written.

    A record that cannot be read is begun anew, and then RecordError says so.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _turn(file.parent):
            damage = None
            try:
                old = load(file) or Record()
            except RecordError as error:
                damage, old = error, Record()
            new = change(old)
            if damage or new != old:
                _replace(file, new)
    except OSError as error:
        raise RecordError(f"{file}: cannot be written: {error.strerror}") from error
    if damage:
        raise RecordError(f"{damage}; it was begun anew") from damage


@contextlib.contextmanager
def _turn(folder: pathlib.Path) -> Iterator[None]:
    """A lock on the folder itself, which leaves no file behind."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(file: pathlib.Path, record: Record) -> None:
    new = file.with_name(f".{file.name}.new")
    try:
        new.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        new.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
