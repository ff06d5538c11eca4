"""A record of timeouts as plots: cliffs against what was configured, trials on either side of them, and costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from natbed.bench.plots import MARGIN, SERIES_COLOURS

from .record import KINDS, POLICIES, SENDERS, SILENT, Between, Recovery, TimeoutsRecord, Trial

HELD, LOST = "#3d8c5f", "#b3261e"
ROW, TALL = 52, 330  # pixels: of a row of trials, of a plot without rows


def plots(record: TimeoutsRecord) -> list[go.Figure]:
    """All that there is something to show in."""
    return list(_plots(record))


def _plots(record: TimeoutsRecord) -> Iterator[go.Figure]:
    if record.lifetimes or record.survival:
        yield _cliffs(record)
    for kind in KINDS:
        if trials := [one for one in record.trials if one.kind == kind and not one.void]:
            yield _trials(kind, trials)
    if record.costs:
        yield _costs(record)
    if record.overheads:
        yield _overheads(record)
    if record.recovery and record.recovery.outages:
        yield _recovery(record.recovery)


def _cliffs(record: TimeoutsRecord) -> go.Figure:
    """All cliffs over their timeouts: they are on the diagonal where the one follows from the other."""
    series: dict[str, list[tuple[float, Between]]] = {}
    for lifetime in record.lifetimes:
        series.setdefault(f"{lifetime.state} mapping", []).append((lifetime.configured, lifetime.cliff))
    for survival in record.survival:
        series.setdefault(f"tunnel {survival.kind}", []).append((survival.timeout, survival.cliff))
    longest = max(record.timeouts)
    plot = go.Figure()
    ends = [0, longest * 1.1]
    plot.add_scatter(x=ends, y=ends, mode="lines", line={"color": "#9ca3af", "dash": "dot"}, name="as configured")
    for place, (name, found) in enumerate(series.items()):
        shift = (place - (len(series) - 1) / 2) * longest / 150  # beside each other, not on top
        shown = [(timeout, cliff) for timeout, cliff in found if cliff.middle is not None]
        plot.add_scatter(
            x=[timeout + shift for timeout, _ in shown],
            y=[cliff.middle for _, cliff in shown],
            error_y={"type": "data", "array": [cliff.within for _, cliff in shown], "thickness": 1.4, "width": 5},
            mode="markers",
            marker={"size": 9, "color": SERIES_COLOURS[place]},
            name=name,
        )
    plot.update_xaxes(title="the NAT's timeout, s", rangemode="tozero")
    plot.update_yaxes(title="measured, s", rangemode="tozero")
    subtitle = "bars: from the longest that held to the shortest that was lost"
    return _laid_out(plot, "How long it lasts", subtitle, TALL)


def _trials(kind: str, trials: Sequence[Trial]) -> go.Figure:
    """A row for each timeout, each trial at its silence: the cliff is where the colour changes."""
    timeouts = sorted({one.timeout for one in trials})
    labels = {timeout: f"timeout {timeout:g} s&nbsp;" for timeout in timeouts}
    plot = go.Figure()
    for name, colour, symbol, held in (("carried", HELD, "circle", True), ("lost", LOST, "x", False)):
        those = [one for one in trials if one.data == held]
        plot.add_scatter(
            x=[one.silence for one in those],
            y=[labels[one.timeout] for one in those],
            mode="markers",
            marker={"size": 10, "color": colour, "symbol": symbol},
            name=f"{name}, and a rekey {'succeeds' if held else 'fails'}",
            text=[f"{one.client}, round {one.round}: idle {one.idle:.1f} s" for one in those],
        )
    plot.add_scatter(
        x=timeouts,
        y=[labels[timeout] for timeout in timeouts],
        mode="markers",
        marker={"size": 26, "symbol": "line-ns", "line": {"width": 2, "color": "#222"}},
        name="the NAT's timeout",
        hoverinfo="x",
    )
    what = "idle time" if kind == SILENT else "interval of keepalives, the tunnel otherwise idle for twice as long"
    plot.update_yaxes(categoryorder="array", categoryarray=[labels[one] for one in reversed(timeouts)], automargin=True)
    plot.update_xaxes(rangemode="tozero", title="s")
    subtitle = f"by {what}: do the server's data and its rekey reach the client?"
    return _laid_out(plot, f"What a tunnel survives {kind}", subtitle, ROW * len(timeouts) + 60)


def _costs(record: TimeoutsRecord) -> go.Figure:
    plot = go.Figure()
    for place, (name, values) in enumerate(
        (
            ("idle tunnel", [one.idle_packets for one in record.costs]),
            ("ESP in every interval", [one.busy_packets for one in record.costs]),
        )
    ):
        plot.add_bar(
            x=[one.method for one in record.costs],
            y=values,
            text=[f"{value:.0f}" for value in values],
            textposition="outside",
            cliponaxis=False,
            marker={"color": SERIES_COLOURS[place]},
            name=name,
        )
    subtitle = f"packets an hour of one client, each {record.costs[0].interval:g} s and 29 octets long; computed"
    return _laid_out(plot, "What keepalives cost", subtitle, TALL)


def _overheads(record: TimeoutsRecord) -> go.Figure:
    plot = go.Figure()
    inner = [one.inner for one in record.overheads]
    for place, (name, values) in enumerate(
        (
            ("UDP header and marker", [100 * (one.in_udp - one.plain) / one.in_udp for one in record.overheads]),
            ("of these the marker", [100 * one.zeros / one.in_udp for one in record.overheads]),
        )
    ):
        plot.add_scatter(
            x=inner,
            y=values,
            mode="lines+markers+text",
            text=[f"{value:.1f}" for value in values],
            textposition="top center",
            cliponaxis=False,
            marker={"color": SERIES_COLOURS[place], "size": 8},
            name=name,
        )
    plot.update_xaxes(
        title="octets of the inner packet", type="log", tickvals=inner, ticktext=[str(one) for one in inner]
    )
    plot.update_yaxes(rangemode="tozero")
    subtitle = "% of each packet on the wire, IP header included; measured"
    return _laid_out(plot, "What ESP in UDP adds to a packet", subtitle, TALL)


def _recovery(found: Recovery) -> go.Figure:
    """A row for each fault and sender, each outage at the time it took; what took too long is on the bound."""
    faults = dict.fromkeys(one.fault for one in found.outages)
    labels = [f"{fault}, {sender} sends&nbsp;" for fault in faults for sender in SENDERS]
    plot = go.Figure()
    for place, policy in enumerate(POLICIES):
        for back in (True, False):
            those = [one for one in found.outages if one.policy == policy and (one.away is not None) == back]
            if not those:
                continue
            plot.add_scatter(
                x=[found.within if one.away is None else one.away for one in those],
                y=[f"{one.fault}, {one.sender} sends&nbsp;" for one in those],
                mode="markers",
                marker={"size": 10, "color": SERIES_COLOURS[place], "symbol": "circle" if back else "x"},
                name=policy if back else f"{policy}: not within {found.within:g} s",
                text=[f"{one.client}: {one.happened}, {one.lost} of {one.sent} lost" for one in those],
            )
    plot.update_yaxes(categoryorder="array", categoryarray=labels[::-1], automargin=True)
    plot.update_xaxes(rangemode="tozero", title="s from the end of the fault")
    subtitle = f"dead peers are asked for each {found.dpd:g} s, keepalives sent each {found.keepalive:g} s"
    return _laid_out(plot, "Until traffic flows again", subtitle, ROW // 2 * len(labels) + 60)


def _laid_out(plot: go.Figure, title: str, subtitle: str, height: int) -> go.Figure:
    return plot.update_layout(
        title={"text": f"<b>{title}</b><br><sub>{subtitle}</sub>", "x": 0, "xref": "paper", "font": {"size": 17}},
        template="plotly_white",
        font={"size": 13, "color": "#222"},
        height=MARGIN + height,
        margin={"l": 10, "r": 40, "t": 70, "b": 90},
        barmode="group",
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
    )
