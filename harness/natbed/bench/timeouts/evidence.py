"""The files that a benchmark of timeouts leaves: its record as JSON, and a page to look at."""

from __future__ import annotations

import pathlib

import msgspec

from natbed.bench.evidence import write
from natbed.results.store import StoreError

from .page import page
from .record import TimeoutsRecord

RECORD, PAGE = "timeouts.json", "timeouts.html"


def save(record: TimeoutsRecord, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write both, and return where they are. Raises StoreError."""
    encoded = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    return write({RECORD: encoded, PAGE: page(record).encode()}, folder)


def load(folder: pathlib.Path) -> TimeoutsRecord:
    """Read a record back. StoreError when there is none or it is damaged."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=TimeoutsRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{folder}: no readable record: {error}") from error
