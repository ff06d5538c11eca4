"""A record of timeouts as tables of words, for the terminal and for the page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .costs import METHODS, break_even
from .record import KINDS, POLICIES, SENDERS, SILENT, Between, Outage, Recovery, Survival, TimeoutsRecord


@dataclass(frozen=True, slots=True)
class Section:
    """One table: heads with their units, and rows, each cell its lines."""

    title: str
    caption: str
    heads: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Sequence[str]]]]


def sections(record: TimeoutsRecord) -> list[Section]:
    """Those for which there is anything."""
    return [section for section in _all(record) if section.rows]


def _all(record: TimeoutsRecord) -> Iterator[Section]:
    yield _lifetimes(record)
    yield _survival(record)
    yield _costs(record)
    yield _keepalives(record)
    yield _overheads(record)
    if record.recovery:
        yield _recovery(record.recovery, record.speed)


def seconds(value: float, speed: float) -> str:
    """Model seconds with as many digits as their resolution is worth."""
    return f"{value:.2f}" if speed < 10 else f"{value:.0f}"


def _cliff(cliff: Between, speed: float) -> list[str]:
    if cliff.middle is None:
        return [f"over {seconds(cliff.low, speed)}"]
    return [seconds(cliff.middle, speed), f"+-{cliff.within:.2f}" if speed < 10 else f"+-{cliff.within:.2g}"]


def _lifetimes(record: TimeoutsRecord) -> Section:
    states = list(dict.fromkeys(one.state for one in record.lifetimes))
    by_timeout = {
        timeout: {one.state: one for one in record.lifetimes if one.configured == timeout}
        for timeout in sorted({one.configured for one in record.lifetimes})
    }
    return Section(
        "lifetime of a mapping",
        "Measured from outside: how long a datagram of the server's still comes to a\n"
        "client that is silent, with half of what lies between the last that came and\n"
        "the first that did not.",
        [(state, "s") for state in states],
        [
            (
                f"timeout {timeout:g} s",
                [_cliff(row[state].cliff, record.speed) if state in row else ["-"] for state in states],
            )
            for timeout, row in by_timeout.items()
        ],
    )


def _survival(record: TimeoutsRecord) -> Section:
    rows = []
    for timeout in sorted({one.timeout for one in record.survival}):
        by_kind = {one.kind: one for one in record.survival if one.timeout == timeout}
        rows.append((f"timeout {timeout:g} s", [_survived(by_kind.get(kind), record.speed) for kind in KINDS]))
    return Section(
        "silence that a tunnel survives",
        "Up to so long a silence the server's data still reach the client, and its\n"
        "rekey succeeds; beyond it neither. Without keepalives the silence is the idle\n"
        "time, with them it is their interval, whatever the idle time.",
        [("idle time" if kind == SILENT else "interval", f"s, {kind}") for kind in KINDS],
        rows,
    )


def _survived(found: Survival | None, speed: float) -> list[str]:
    return ["-"] if found is None else [*_cliff(found.cliff, speed), f"{found.trials} trials"]


def _costs(record: TimeoutsRecord) -> Section:
    interval = record.costs[0].interval if record.costs else 0.0
    rows = [
        (
            one.method,
            [
                [f"{one.idle_packets:.0f}"],
                [f"{one.idle_octets:.0f}"],
                [f"{one.busy_packets:.0f}"],
                [f"{one.busy_octets:.0f}"],
                [f"{method.esp}"],
                [f"{method.ike}"],
            ],
        )
        for method, one in zip(METHODS, record.costs, strict=False)
    ]
    even = f"{break_even(interval):.0f}" if interval else ""
    return Section(
        f"an hour of keepalives each {interval:g} s, computed",
        "Packets and octets (with IP headers): of an idle tunnel, and of one with ESP\n"
        "in every interval. ESP, IKE: octets of each packet beyond plain ESP and IKE.\n"
        f"The marker costs as much as a second port from {even} ESP packets an hour on.",
        [
            ("idle", "packets"),
            ("idle", "octets"),
            ("busy", "packets"),
            ("busy", "octets"),
            ("ESP", "octets"),
            ("IKE", "octets"),
        ],
        rows,
    )


def _keepalives(record: TimeoutsRecord) -> Section:
    rows = []
    for one in record.keepalives:
        name = f"{'busy' if one.busy else 'idle'}, {'behind the NAT' if one.nat else 'behind a router'}"
        mean = "-" if one.mean is None else seconds(one.mean, record.speed)
        longest = "-" if one.longest is None else seconds(one.longest, record.speed)
        cells = [[f"{one.packets}"], [f"{one.octets}"], [mean], [longest], [f"{one.hourly:.0f}"]]
        rows.append((name, cells))
    interval = f" each {record.keepalives[0].interval:g} s" if record.keepalives else ""
    watched = f"{record.keepalives[0].watched:.0f}" if record.keepalives else ""
    return Section(
        f"keepalives{interval}, measured",
        f"What clients of the bundled implementation sent in {watched} s, on the NAT's inside.",
        [("packets", ""), ("octets", ""), ("mean", "s apart"), ("longest", "s apart"), ("rate", "packets/h")],
        rows,
    )


def _overheads(record: TimeoutsRecord) -> Section:
    return Section(
        "octets of a packet, measured",
        "IP headers included. The marker is the 8 zero octets before the SPI; without\n"
        "it, as in RFC 3948, a packet in UDP would be so much shorter.",
        [("plain ESP", ""), ("in UDP", ""), ("more", ""), ("marker", ""), ("marker", "%")],
        [
            (
                f"inner {one.inner}",
                [
                    [f"{one.plain}"],
                    [f"{one.in_udp}"],
                    [f"{one.in_udp - one.plain}"],
                    [f"{one.zeros}"],
                    [f"{100 * one.zeros / one.in_udp:.1f}"],
                ],
            )
            for one in record.overheads
        ],
    )


def _recovery(found: Recovery, speed: float) -> Section:
    unit = "ms" if speed < 10 else "s"
    rows = []
    for fault in dict.fromkeys(one.fault for one in found.outages):
        for sender in SENDERS:
            outages = [one for one in found.outages if (one.fault, one.sender) == (fault, sender)]
            by_policy = [[one for one in outages if one.policy == policy] for policy in POLICIES]
            cells = [cell for those in by_policy for cell in (_away(those, found.within, speed), _lost(those))]
            if outages:
                rows.append((f"{fault}, {sender}", cells))
    return Section(
        "until traffic flows again after a fault",
        "By who sends; where it is the server, the client is silent. From the fault's\n"
        "end, median and extremes, by what the ends make of a peer's packets from\n"
        "elsewhere; lost: datagrams, from the fault's beginning on. Dead peers are asked\n"
        f"for each {found.dpd:g} s, keepalives sent each {found.keepalive:g} s; a datagram goes each\n"
        f"{_short(found.interval, speed)} {unit}, which is the resolution. "
        "How long it takes that a move is seen depends on\n"
        "how far off the next question is.",
        [head for policy in POLICIES for head in ((policy, unit), ("lost", "packets"))],
        rows,
    )


def _away(outages: Sequence[Outage], within: float, speed: float) -> list[str]:
    if not outages:
        return ["-"]
    times = sorted(one.away for one in outages if one.away is not None)
    if len(times) < len(outages):
        return ["not within", f"{within:g} s", f"{len(outages) - len(times)} of {len(outages)}"]
    extremes = f"{_short(times[0], speed)} to {_short(times[-1], speed)}"
    return [_short(statistics.median(times), speed), *[extremes] * (len(times) > 1)]


def _lost(outages: Sequence[Outage]) -> list[str]:
    return [f"{statistics.median(one.lost for one in outages):.0f}"] if outages else ["-"]


def _short(value: float, speed: float) -> str:
    """Model seconds as milliseconds, or as seconds where a real one is many."""
    return f"{value * 1000:.0f}" if speed < 10 else f"{value:.1f}"
