"""The file that a benchmark of integrity leaves: its record as JSON."""

from __future__ import annotations

import pathlib

import msgspec

from natbed.bench.evidence import write

from .record import IntegrityRecord

RECORD = "integrity.json"


def save(record: IntegrityRecord, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write it, and return where it is. Raises StoreError."""
    return write({RECORD: msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"}, folder)
