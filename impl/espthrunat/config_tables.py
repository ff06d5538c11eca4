"""The configuration file's tables, as msgspec reads them: names, types and defaults. config.py says what is allowed."""

from __future__ import annotations

from typing import Literal

import msgspec

DEFAULT_CONTROL = "/run/espthrunat/control.sock"
DEFAULT_IKE = ("aes256-sha256-ecp256", "aes128-sha256-ecp256", "aes256-sha256-modp2048")
DEFAULT_IKE_AGGRESSIVE = ("aes256-sha256-ecp256", "aes128-sha256-ecp256")  # that exchange has one group only
DEFAULT_ESP = ("aes256gcm16", "aes128gcm16", "aes256-sha256", "aes128-sha256")


class LocalTable(msgspec.Struct, forbid_unknown_fields=True):
    """[local]: this host. Files are PEM; relative paths of files start at the configuration file."""

    address: str
    identity: str
    port: int = 500
    control: str = DEFAULT_CONTROL
    tun: str = "esp0"
    pool: str | None = None  # the network whose addresses stand for those of peers with connection.translate
    path_mtu: int = 1500  # octets of the largest outer packet
    batches: bool = True  # the data plane may take many packets a system call
    certificate: str | None = None  # ours, and those between it and the authority
    private_key: str | None = None
    ca: str | None = None  # the authorities whose certificates are believed
    max_half_open: int = 1000
    new_phase1_per_second: float = 100.0  # of one source address


class RetransmitTable(msgspec.Struct, forbid_unknown_fields=True):
    """connection.retransmit: seconds before the first repetition, the factor of each next wait, tries in all."""

    first: float = 0.5
    factor: float = 2.0
    tries: int = 6


class ConnectionTable(msgspec.Struct, forbid_unknown_fields=True):
    """[[connection]]: one peer, or with remote = "any" one kind of peers, and the traffic to protect."""

    name: str
    remote_identity: str
    local_network: str | None = None  # in tunnel mode
    remote_network: str | None = None
    remote: str = "any"
    remote_port: int = 500  # of the peer's IKE
    psk: str | None = None
    psk_file: str | None = None
    exchange: Literal["main", "aggressive"] = "main"
    authentication: Literal["psk", "rsa"] = "psk"
    ike: list[str] | None = None
    esp: list[str] | None = None
    pfs: str = "ecp256"
    mode: Literal["tunnel", "transport"] = "tunnel"
    translate: bool = False  # in tunnel mode: the peer's network appears here as one of local.pool
    traffic_protocol: str | int = "any"
    traffic_local_port: int = 0  # 0 for any
    traffic_remote_port: int = 0
    encapsulation: Literal["auto", "always", "never"] = "auto"
    rebinding: Literal["never", "authenticated"] = "never"
    start: bool = False
    acquire: bool = True
    ike_lifetime: int = 28_800  # seconds
    esp_lifetime: int = 3_600  # seconds
    esp_octets: int = 0  # of inner packets an SA; 0 for any number
    rekey: bool = True
    rekey_margin: float = 0.1  # of a lifetime
    rekey_overlap: float = 10.0  # seconds
    dpd: float = 30.0  # seconds; 0 for none
    keepalive: float = 20.0  # seconds; 0 for none
    keepalive_tail: float = 300.0  # seconds
    retry: float = 10.0  # seconds
    retransmit: RetransmitTable = msgspec.field(default_factory=RetransmitTable)


class FileTable(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    local: LocalTable
    connection: list[ConnectionTable]
