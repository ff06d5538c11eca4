"""Where runs leave their evidence: results/<time>-<scenario>/, and `latest` that points to the newest."""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib

import msgspec

from .record import RunRecord

RECORD = "record.json"


class StoreError(Exception):
    """The results folder cannot be used; the message says why in one line."""


def default_folder() -> pathlib.Path:
    """results/ of the checkout that natbed runs from; elsewhere, of the current folder."""
    checkout = pathlib.Path(__file__).parents[3]
    root = checkout if (checkout / "topologies").is_dir() and (checkout / "results").is_dir() else pathlib.Path.cwd()
    return root / "results"


def new_evidence(results: pathlib.Path, scenario: str, now: datetime.datetime) -> pathlib.Path:
    """Make the folder of a new run. Runs that begin in the same instant get different ones."""
    return new_folder(results, f"{now:%Y%m%dT%H%M%S}-{scenario}")


def new_folder(results: pathlib.Path, stem: str) -> pathlib.Path:
    """Make a folder that is called so, or so with a number. StoreError when it cannot be made."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            folder = results / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise StoreError(f"{results}: cannot be used for evidence: {error.strerror}") from error
    raise StoreError(f"{results}: too many runs begin at {stem}")


def save(folder: pathlib.Path, record: RunRecord) -> pathlib.Path:
    """Write the record, and let `latest` point to its folder. StoreError when either cannot be written."""
    file = folder / RECORD
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    except OSError as error:
        raise StoreError(f"{error.filename}: cannot be written: {error.strerror}") from error
    let_latest_be(folder)
    return file


def let_latest_be(folder: pathlib.Path) -> None:
    """Let `latest` beside the folder point to it. StoreError when it cannot."""
    pointer = folder.parent / f".latest-{folder.name}"
    try:
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(folder.name)
        os.replace(pointer, folder.parent / "latest")  # noqa: PTH105 - replaces the link itself, whatever it points to
    except OSError as error:
        with contextlib.suppress(OSError):
            pointer.unlink(missing_ok=True)
        raise StoreError(f"{error.filename2 or error.filename}: cannot be written: {error.strerror}") from error


def load(folder: pathlib.Path) -> RunRecord:
    """Read a run's record. StoreError when there is none or it is damaged."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=RunRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{folder}: no readable record: {error}") from error
