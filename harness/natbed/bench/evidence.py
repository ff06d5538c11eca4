"""The files that a benchmark leaves: its record as JSON, and a page to look at."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import msgspec

from natbed.results.store import StoreError

from .page import page
from .record import ThroughputRecord

RECORD, PAGE = "throughput.json", "throughput.html"


def save(record: ThroughputRecord, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write both, and return where they are; without any sample there is no page. Raises StoreError."""
    contents = {RECORD: msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"}
    if record.samples:
        contents[PAGE] = page(record).encode()
    return write(contents, folder)


def write(contents: Mapping[str, bytes], folder: pathlib.Path) -> list[pathlib.Path]:
    """Write files by name, and return where they are. Raises StoreError."""
    try:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise StoreError(f"{error.filename}: cannot be written: {error.strerror}") from error
    return [folder / name for name in contents]


def load(folder: pathlib.Path) -> ThroughputRecord:
    """Read a record back. StoreError when there is none or it is damaged."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=ThroughputRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{folder}: no readable record: {error}") from error
