"""A benchmark as one page: plots with the program that draws them inside, and tables for where no script may run."""

from __future__ import annotations

import base64
import gzip
import pathlib
from collections.abc import Iterator

import jinja2
from plotly.offline import get_plotlyjs

from . import report
from .plots import plots
from .record import ThroughputRecord

_TEMPLATE = pathlib.Path(__file__).with_name("page.html.j2")


def page(record: ThroughputRecord) -> str:
    """A benchmark of throughput as HTML that needs no other file and no network."""
    return render(
        name="natbed bench throughput",
        title="Throughput through a NAT",
        record=record,
        measured_on=report.measured_on(record),
        remarks=[*report.repeated(record), *report.busy(record), *record.left_out],
        tables=list(_tables(record)),
        problems=[
            f"{problem.candidate}, round {', '.join(map(str, rounds))}: {problem.reason}"
            for problem, rounds in report.grouped(record.problems)
        ],
        plots=[plot.to_json() for plot in plots(record)],
    )


def render(**contents: object) -> str:
    """Any benchmark's page. `contents` are those of page.html.j2, with a record that has `started`, `verdict` and
    `reason`. Plotly's program is compressed, to a third."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    plotly = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(contents, plotly=plotly)


def _tables(record: ThroughputRecord) -> Iterator[dict[str, object]]:
    """Heads and rows of (value, what is below it)."""
    for wire, figures in report.by_wire(record.figures):
        quantities = report.quantities_of(figures)
        heads = [(one.title, one.unit) for one in quantities]
        rows = [
            (name, [report.cell(row.get(one.key), one.digits) for one in quantities])
            for name, row in report.by_quantity(figures).items()
        ]
        title = report.WIRE_TITLES[wire]
        yield {"title": title, "caption": report.CAPTION, "heads": heads, "rows": rows}
    for wire, ratios in report.by_wire(record.ratios):
        quantities = report.quantities_of(ratios)
        heads = [(one.title, "") for one in quantities]
        rows = [
            (report.pair_name(*pair), [report.ratio_cell(row.get(one.key)) for one in quantities])
            for pair, row in report.by_pair(ratios).items()
        ]
        title = f"compared, {report.WIRE_TITLES[wire]}"
        yield {"title": title, "caption": report.RATIO_CAPTION, "heads": heads, "rows": rows}
