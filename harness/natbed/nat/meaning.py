"""What a measured NAT means for somebody who uses IPsec behind it."""

from __future__ import annotations

import rich.box
from rich.console import Console
from rich.table import Column, Table

from .measured import Fingerprint, Span
from .profile import Filtering, Hairpinning, Late, Mapping, Ports, ZeroChecksum

MAPPING = {
    Mapping.NONE: "no NAT: ESP needs no UDP, unless a firewall keeps it out",
    Mapping.ENDPOINT_INDEPENDENT: "a peer that moves to another address or port still sees the same source",
    Mapping.ADDRESS_DEPENDENT: "each peer sees a port of its own; moving from port 500 to 4500 keeps it",
    Mapping.ADDRESS_AND_PORT_DEPENDENT: "symmetric: each port of a peer sees another source; a peer must follow it",
}
FILTERING = {
    Filtering.NONE: "anybody can begin: this host can be a responder",
    Filtering.ENDPOINT_INDEPENDENT: "once the mapping is there anybody can reach it: a responder's address may change",
    Filtering.ADDRESS_DEPENDENT: "only addresses that were dialed get in: a peer's port may change",
    Filtering.ADDRESS_AND_PORT_DEPENDENT: "only who was dialed gets in: this host must begin, again after a timeout",
}
PORTS = {
    Ports.PRESERVED: "the first client keeps port 500; a second one of the same peer gets another",
    Ports.OVERLOADED: "two clients with port 500 show as one: only one of them can talk to a peer",
    Ports.CONTIGUOUS: "never port 500: a peer must take IKE from any port",
    Ports.RANDOM: "never port 500: a peer must take IKE from any port",
}
HAIRPINNING = {
    Hairpinning.NONE: "hosts behind this NAT cannot reach each other by their outside addresses",
    Hairpinning.EXTERNAL: "hosts behind this NAT reach each other by their outside addresses",
    Hairpinning.INTERNAL: "answers come from the inside address: IKE between two hosts behind this NAT sees a change",
}
CHECKSUMS = {
    ZeroChecksum.FORWARDED: "ESP in UDP passes as RFC 3948 sends it",
    ZeroChecksum.DROPPED: "ESP in UDP without a checksum, as RFC 3948, 2.1, sends it, is lost",
}
LATE = {
    Late.DROPPED: "a peer is not told that its packets come too late: it needs dead peer detection",
    Late.REJECTED: "a peer is told by ICMP that its packets come too late",
}


def rows(found: Fingerprint) -> list[tuple[str, str, str]]:
    """What was measured, its value, and what follows."""
    listed = [
        ("address", f"{found.inside} shows as {found.outside}", "1:1: anybody can begin" if found.one_to_one else ""),
        ("mapping", found.mapping, MAPPING[found.mapping]),
        ("filtering", found.filtering, FILTERING[found.filtering]),
        ("ports", found.ports, PORTS[found.ports]),
        ("hairpinning", found.hairpinning, HAIRPINNING[found.hairpinning]),
        ("UDP checksum 0", found.zero_checksum, CHECKSUMS[found.zero_checksum]),
        ("late packets", *((found.late, LATE[found.late]) if found.late else ("let in", "nothing was kept out"))),
        ("timeout, unreplied", *_timeout(found.udp_timeout, "IKE's first retransmissions must come sooner")),
        ("timeout, replied", *_timeout(found.udp_timeout_stream, _keepalives(found.udp_timeout_stream))),
    ]
    return [(what, str(value), meaning) for what, value, meaning in listed]


def show(found: Fingerprint, console: Console) -> None:
    """As a table."""
    columns = ("NAT", Column("measured", overflow="fold"), Column("what it means for IPsec", overflow="fold"))
    table = Table(*columns, box=rich.box.SIMPLE_HEAD)
    for row in rows(found):
        table.add_row(*row)
    console.print(table, markup=False)


def _timeout(span: Span | None, meaning: str) -> tuple[str, str]:
    return (str(span), meaning) if span else ("not measured", "see --timeouts")


def _keepalives(span: Span | None) -> str:
    if span is None:
        return ""
    if span.lost is None and span.survived < 40:
        return "longer than was looked: see --longest"
    interval = max(1, int(span.survived / 2))  # so that one may be lost
    enough = "RFC 3948's 20 s are enough" if interval >= 20 else "RFC 3948's 20 s are too long"
    return f"NAT keepalives at least every {min(interval, 20)} s: {enough}"
