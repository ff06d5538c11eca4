"""A benchmark's figures as plots: bars whose whiskers are minimum and maximum, and ratios as points about 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from .candidates import PLAIN, Candidate
from .record import CPU, PING, QUANTITIES, TCP, UDP, WIRES, Figure, Quantity, Ratio, ThroughputRecord
from .report import WIRE_TITLES, by_pair, by_quantity, number, pair_name

COLOURS = {"espthrunat": "#1f6fb4", "espthrunat, no batches": "#8fbbe0", "strongswan": "#e07b39"}
OTHER_COLOUR = "#6b7280"
SERIES_COLOURS = ("#1f6fb4", "#56b4c9", "#b8860b", "#8f5bb5", "#3d8c5f", "#c0504d")  # of quantities, where they meet
ROW, BAR, POINT, MARGIN = 48, 30, 20, 130  # pixels: of a row at least, each bar or point in it, above and below all
_BY_KEY = {quantity.key: quantity for quantity in QUANTITIES}


@dataclass(frozen=True, slots=True)
class Chart:
    """Quantities of one unit that stand beside each other."""

    title: str
    keys: tuple[str, ...]
    better: str


CHARTS = (
    Chart("TCP throughput", TCP, "more is better"),
    Chart("UDP without loss (up to 0.1 %)", (UDP,), "more is better"),
    Chart("Round trip of a ping", (PING,), "less is better"),
    Chart("CPU of the implementation for a gigabyte of TCP", CPU, "less is better"),
)


def plots(record: ThroughputRecord) -> list[go.Figure]:
    """All that there is something to show in."""
    found = []
    for chart in CHARTS:
        for wire in WIRES:
            figures = [one for one in record.figures if one.wire == wire and one.quantity in chart.keys and one.spread]
            if any(figure.candidate != PLAIN for figure in figures):
                found.append(_bars(chart, WIRE_TITLES[wire], figures, record.candidates))
    for wire in WIRES:
        ratios = [one for one in record.ratios if one.wire == wire]
        if ratios:
            found.append(_points(f"Ratios, {WIRE_TITLES[wire]}", ratios))
    return found


def _bars(chart: Chart, wire: str, figures: Sequence[Figure], candidates: Sequence[Candidate]) -> go.Figure:
    """One bar a candidate and quantity. The plain path, which would dwarf all others, is told in the title."""
    rows = by_quantity(figures)
    plain = rows.pop(PLAIN, {})
    known = {candidate.name: candidate for candidate in candidates}
    names = list(rows)
    plot = go.Figure()
    keys = [key for key in chart.keys if any(key in row for row in rows.values())]
    for place, key in reversed(list(enumerate(keys))):  # the first drawn is the lowest
        quantity = _BY_KEY[key]
        spreads = [(name, row[key].spread) for name, row in rows.items() if key in row]
        shown = [(name, spread) for name, spread in spreads if spread is not None]
        labels = [_label(name) for name, _ in shown]
        medians = [spread.median for _, spread in shown]
        plot.add_bar(
            y=labels,
            x=medians,
            name=_short(quantity),
            orientation="h",
            offsetgroup=key,
            marker={
                "color": [_colour(known[name]) for name, _ in shown],
                "opacity": 1 if place == 0 else 0.55,
                "line": {"width": 0},
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [spread.high - spread.median for _, spread in shown],
                "arrayminus": [spread.median - spread.low for _, spread in shown],
                "color": "#222",
                "thickness": 1.4,
                "width": 5,
            },
            showlegend=False,
        )
        plot.add_scatter(
            y=labels,
            x=[spread.high for _, spread in shown],
            text=[f"  {number(m, quantity.digits)}{_beside(chart, quantity)}" for m in medians],
            mode="text",
            textposition="middle right",
            orientation="h",
            offsetgroup=key,
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
        )
    unit = _BY_KEY[chart.keys[0]].unit
    subtitle = f"{wire}; {unit}, {chart.better}{_plain(chart, plain)}"
    height = len(names) * max(ROW, BAR * len(keys))
    return _laid_out(plot, chart.title, subtitle, [_label(name) for name in names], height)


def _points(title: str, ratios: Sequence[Ratio]) -> go.Figure:
    plot = go.Figure()
    rows = by_pair(ratios)
    shown = [quantity for quantity in QUANTITIES if any(quantity.key in row for row in rows.values())]
    for quantity in reversed(shown):
        colour = SERIES_COLOURS[QUANTITIES.index(quantity)]
        found = [(_pair(*pair), row[quantity.key]) for pair, row in rows.items() if quantity.key in row]
        common = {
            "y": [label for label, _ in found],
            "orientation": "h",
            "offsetgroup": quantity.key,
            "legendgroup": quantity.key,
            "cliponaxis": False,
        }
        plot.add_scatter(
            x=[ratio.of_medians for _, ratio in found],
            name=quantity.title if quantity.more_is_better else f"{quantity.title} (less is better)",
            mode="markers",
            marker={"color": colour, "size": 9},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [max(ratio.by_round.high - ratio.of_medians, 0) for _, ratio in found],
                "arrayminus": [max(ratio.of_medians - ratio.by_round.low, 0) for _, ratio in found],
                "thickness": 1.4,
                "width": 4,
            },
            **common,
        )
        plot.add_scatter(
            x=[max(ratio.by_round.high, ratio.of_medians) for _, ratio in found],
            text=[f"  {number(ratio.of_medians, 2)}" for _, ratio in found],
            mode="text",
            textposition="middle right",
            textfont={"size": 11, "color": colour},
            hoverinfo="skip",
            showlegend=False,
            **common,
        )
    plot.add_vline(x=1, line={"color": "#222", "width": 1, "dash": "dot"})
    plot.update_xaxes(type="log", tickformat="~g", dtick="D2")
    height = sum(max(ROW, POINT * len(row)) for row in rows.values())
    subtitle = "of medians, with the range of the rounds; 1 is equal"
    plot = _laid_out(plot, title, subtitle, [_pair(*pair) for pair in rows], height)
    plot.update_layout(margin={"b": 70}, height=MARGIN + height + 40)
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "traceorder": "reversed"}
    return plot.update_layout(legend=legend)


def _laid_out(plot: go.Figure, title: str, subtitle: str, rows: Sequence[str], height: int) -> go.Figure:
    plot.update_layout(
        title={"text": f"<b>{title}</b><br><sub>{subtitle}</sub>", "x": 0, "xref": "paper", "font": {"size": 17}},
        template="plotly_white",
        font={"size": 13, "color": "#222"},
        height=MARGIN + height,
        margin={"l": 10, "r": 70, "t": 70, "b": 40},
        barmode="group",
        scattermode="group",
        bargap=0.25,
        uniformtext={"minsize": 11, "mode": "show"},
    )
    plot.update_yaxes(categoryorder="array", categoryarray=list(reversed(rows)), automargin=True, title=None)
    plot.update_xaxes(rangemode="tozero")
    return plot


def _label(candidate: str) -> str:
    implementation, _, rest = candidate.partition(" ")
    return f"{implementation}&nbsp;<br>{rest}&nbsp;"


def _pair(over: str, under: str) -> str:
    return pair_name(over, under).replace(" : ", "&nbsp;<br>: ") + "&nbsp;"


def _short(quantity: Quantity) -> str:
    """What tells it from those beside it: forward, client."""
    return quantity.title.rpartition(" ")[2]


def _beside(chart: Chart, quantity: Quantity) -> str:
    return f" {_short(quantity)}" if len(chart.keys) > 1 else ""


def _plain(chart: Chart, row: dict[str, Figure]) -> str:
    """What the plain path has, if anything."""
    told = [number(row[key].spread.median, _BY_KEY[key].digits) for key in chart.keys if key in row and row[key].spread]  # type: ignore[union-attr]
    return f"; path without IPsec: {' / '.join(told)}" if told else ""


def _colour(candidate: Candidate) -> str:
    return COLOURS.get(candidate.implementation + ("" if candidate.batches else ", no batches"), OTHER_COLOUR)
