"""A benchmark of timeouts as one page."""

from __future__ import annotations

import natbed.bench.page

from . import report
from .plots import plots
from .record import TimeoutsRecord
from .sections import sections


def page(record: TimeoutsRecord) -> str:
    """HTML that needs no other file and no network."""
    return natbed.bench.page.render(
        name="natbed bench timeouts",
        title="Timeouts of NATs, and what survives them",
        record=record,
        measured_on=report.measured_on(record),
        remarks=report.remarks(record),
        tables=sections(record),
        problems=[f"{trouble.part}: {trouble.reason}" for trouble in record.troubles],
        plots=[plot.to_json() for plot in plots(record)],
    )
