"""What natbed asks of any implementation: start on a host, bring tunnels up, tell what it knows, stop."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import msgspec

from natbed.node_like import NodeLike


class StackError(Exception):
    """An implementation that did not start, answer or connect; the message is one line that says what it last said."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The PEM files that a host proves itself with, and those that it believes."""

    certificate: pathlib.Path
    private_key: pathlib.Path
    authorities: pathlib.Path


@dataclass(frozen=True, slots=True)
class Timing:
    """When things happen, in seconds, and what follows a peer that moves; None is the implementation's default."""

    dpd: float | None = None
    keepalive: float | None = None
    keepalive_tail: float | None = None
    ike_lifetime: int | None = None
    esp_lifetime: int | None = None
    esp_octets: int | None = None
    rekey_overlap: float | None = None
    rebinding: str | None = None  # never, authenticated
    start: bool | None = None  # initiators bring the tunnel up at once
    ike_tries: int | None = None  # how often an IKE message is sent in all before its exchange is given up


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """One tunnel from one host's point of view. `peer_address` is None where the peer may come from anywhere.

    The secret is for `authentication` psk; the networks are for `mode` tunnel, and in transport mode the hosts' own
    addresses are protected.
    """

    name: str
    peer_address: str | None
    peer_identity: str
    secret: str = field(repr=False)
    local_network: str
    remote_network: str
    mode: str = "tunnel"  # or transport
    exchange: str = "main"  # or aggressive
    authentication: str = "psk"  # or rsa
    ike_suite: str = "aes128-sha256-ecp256"
    esp_suite: str = "aes128gcm16"
    pfs: str = "ecp256"
    encapsulation: str = "auto"
    translate: bool = False  # the peer's network appears here as one of the host's pool


@dataclass(frozen=True, slots=True)
class Forwards:
    """Packets that belong into the tunnels though their source is mapped only after the route is chosen.

    They come in by `interface` and are for one of `networks`.
    """

    interface: str
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HostSettings:
    """One host: where it is, who it is, and its tunnels."""

    address: str
    identity: str
    tunnels: tuple[TunnelSettings, ...]
    credentials: Credentials | None = None  # for authentication rsa
    forwards: Forwards | None = None
    timing: Timing = field(default_factory=Timing)
    pool: str | None = None  # for tunnels that translate


class TunnelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What one end says about one tunnel. `nat` is None while it does not know."""

    name: str
    remote: tuple[str, int]
    nat: bool | None
    encapsulation: str
    inbound_spi: str
    outbound_spi: str
    suite: str
    mode: str = "tunnel"
    mapped_network: str = ""  # as what the peer's network appears at this end, if as another


class Daemon(Protocol):
    """A running implementation on one host."""

    ready_seconds: float  # from its start until it could be asked
    pids: tuple[int, ...]

    def up(self, tunnel: str, timeout: float) -> float:
        """Bring a tunnel up; the seconds that took. Raises StackError with the implementation's reason."""

    def rekey(self, tunnel: str, phase1: bool, timeout: float) -> float:
        """Replace a tunnel's SAs, with `phase1` those of IKE too; the seconds until the new ones can be used from here.

        Raises StackError with the implementation's reason.
        """

    def kill(self) -> None:
        """End it as a crash would, at once and with all its processes; `restart` or `stop` may follow."""

    def restart(self, timing: Timing | None = None) -> None:
        """Start it again after its end, with another timing where one is given, and wait until it can be asked."""

    def status(self) -> list[TunnelStatus]:
        """Every tunnel that is up: traffic can go both ways as far as this end is concerned."""

    def memory(self) -> int:
        """Octets of resident memory of all its processes together."""

    def stop(self) -> None:
        """End it in order. Raises StackError when it had to be killed or ended badly."""


@runtime_checkable
class CountsPackets(Protocol):
    """A daemon that can say which SAs were used, and what it lost."""

    def received_packets(self) -> Mapping[str, int]:
        """How many authentic packets came by each inbound SA that there is, by SPI (hexadecimal)."""

    def dropped_packets(self) -> Mapping[str, int]:
        """How many packets were dropped since its start, by the implementation's name for why."""


Daemons = Mapping[str, Daemon]
"""The running implementations of a lab, by host."""


class Stack(Protocol):
    """An implementation that can be run on hosts."""

    name: str

    def start(self, node: NodeLike, settings: HostSettings, evidence: pathlib.Path) -> Daemon:
        """Start it on a host and wait until it can be asked; its logs and key logs go to `evidence`."""
