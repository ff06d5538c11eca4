"""The daemon's answers as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

PHASE1_COLUMNS = ["connection", "identity", "peer", "role", "state", "exchange", "NAT", "suite", "expires in"]
ESP_COLUMNS = [
    "connection",
    "mode",
    "traffic",
    "peer",
    "SPI in",
    "SPI out",
    "suite",
    "encapsulation",
    "age",
    "expires in",
]
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


def _traffic(record: dict[str, Any]) -> str:
    """A selector as people read it: 10.0.0.1/32 <-> 10.0.0.2/32 as 10.200.0.1/32, udp 1701 <-> any."""
    networks = f"{record['local_network']} <-> {record['remote_network']}"
    if record["mapped_network"]:
        networks += f" as {record['mapped_network']}"
    protocol, ports = record["traffic_protocol"], (record["traffic_local_port"], record["traffic_remote_port"])
    if protocol == "any":
        return networks
    return f"{networks}, {protocol}" + (f" {ports[0] or 'any'} <-> {ports[1] or 'any'}" if any(ports) else "")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} s"


def show(tables: list[Table]) -> None:
    """Print tables: as wide as the terminal, or as wide as they are where standard output is none."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    console.print(*tables)


def status_tables(answer: dict[str, Any]) -> list[Table]:
    """Connections, phase 1 SAs, ESP SA pairs."""
    connections = [[c["name"], c["state"], c["remote"], c["last_failure"] or c["note"]] for c in answer["connections"]]
    phase1 = [
        [
            s["connection"],
            s["identity"],
            _peer(s),
            s["role"],
            "replaced" if s["replaced"] else "established" if s["established"] else "under way",
            f"{s['exchange']}, {s['authentication']}",
            s["nat"],
            s["suite"],
            _seconds(s["expires_in"]),
        ]
        for s in answer["ike_sas"]
    ]
    sas = [
        [
            s["connection"],
            s["mode"],
            _traffic(s),
            _peer(s),
            s["inbound_spi"],
            s["outbound_spi"],
            s["suite"],
            s["encapsulation"],
            _seconds(s["age"]),
            "replaced" if s["retired"] else _seconds(s["expires_in"]),
        ]
        for s in (*answer["sas"], *answer["retired"])
    ]
    return [
        _table("Connections", ["name", "state", "remote", "remark"], connections),
        _table("Phase 1 SAs", PHASE1_COLUMNS, phase1),
        _table("ESP SAs", ESP_COLUMNS, sas),
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
