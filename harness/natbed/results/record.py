"""The record of one run: typed, one JSON file beside its evidence."""

from __future__ import annotations

import msgspec

from natbed.checks import CheckResult, Verdict


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Mbit/s of one client: through the tunnel, and on the same path without IPsec."""

    tunnel_forward: float
    tunnel_reverse: float
    plain_forward: float
    plain_reverse: float


class ClientRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One client: what both ends found out, and how its traffic fared. None where it was not measured."""

    name: str
    nat_seen_by_initiator: bool | None = None
    nat_seen_by_responder: bool | None = None
    mapped_port: int | None = None
    encapsulation: str = ""
    connect_milliseconds: float | None = None  # Main Mode and Quick Mode together
    ping_loss_percent: float | None = None
    tcp_both_ways: bool | None = None
    udp_both_ways: bool | None = None
    throughput: Throughput | None = None


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One host's implementation."""

    name: str
    ready_milliseconds: float
    memory_megabytes: float


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one scenario."""

    scenario: str
    title: str
    started: str  # ISO 8601, with zone
    nat: str
    stack: str
    mode: str = "tunnel"  # or transport
    phase1: str = "main-psk"  # exchange and authentication
    verdict: Verdict
    reason: str
    seconds: float
    build_milliseconds: float
    teardown_milliseconds: float
    clients: list[ClientRecord]
    hosts: list[HostRecord]
    checks: list[CheckResult]
    notes: list[str] = []  # what was left out, and why; nobody's fault
    evidence: list[str]  # files beside the record
    hostname: str = ""  # of the machine that it ran on
    kernel: str
    version: str
