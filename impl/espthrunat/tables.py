"""The daemon's answers as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 1000  # wider than any table: what reads a pipe must find every word in one piece


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if not rows:
        table.add_row("none", *[""] * (len(columns) - 1))
    return table


def _peer(record: dict[str, Any]) -> str:
    return f"{record['remote']}:{record['remote_port']}"


def show(tables: list[Table]) -> None:
    """Print tables: as wide as the terminal, or as wide as they are where standard output is none."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    console.print(*tables)


def status_tables(answer: dict[str, Any]) -> list[Table]:
    """Connections, phase 1 SAs, ESP SA pairs."""
    connections = [[c["name"], c["state"], c["remote"], c["last_failure"]] for c in answer["connections"]]
    phase1 = [
        [
            s["connection"],
            s["identity"],
            _peer(s),
            s["role"],
            "established" if s["established"] else "under way",
            s["nat"],
            s["suite"],
        ]
        for s in answer["ike_sas"]
    ]
    sas = [
        [
            s["connection"],
            f"{s['local_network']} <-> {s['remote_network']}",
            _peer(s),
            s["inbound_spi"],
            s["outbound_spi"],
            s["suite"],
            s["encapsulation"],
        ]
        for s in answer["sas"]
    ]
    return [
        _table("Connections", ["name", "state", "remote", "last failure"], connections),
        _table("Phase 1 SAs", ["connection", "identity", "peer", "role", "state", "NAT", "suite"], phase1),
        _table("ESP SAs", ["connection", "traffic", "peer", "SPI in", "SPI out", "suite", "encapsulation"], sas),
    ]


def stats_tables(answer: dict[str, Any]) -> list[Table]:
    """Counters of the SAs, and of the whole data plane."""
    sas = [
        [
            s["spi"],
            s["direction"],
            _peer(s),
            s["suite"],
            str(s["packets"]),
            str(s["octets"]),
            ", ".join(f"{kind} {count}" for kind, count in s["dropped"].items()),
        ]
        for s in answer["sas"]
    ]
    counters = [[name, str(count)] for name, count in sorted(answer["counters"].items())]
    return [
        _table("SAs", ["SPI", "direction", "peer", "suite", "packets", "octets", "dropped"], sas),
        _table("Data plane", ["counter", "value"], counters),
    ]
