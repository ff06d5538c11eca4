"""Configuration: TOML to typed policy, with errors that name file, key and value."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from .esp.suites import SUITES
from .ike.groups import GROUPS, Group
from .ike.identity import Identity, IdentityPattern
from .ike.policy import Connection, EncapsulationPolicy, IkeSuite, Retransmission, Secret
from .messages import Selector

DEFAULT_CONTROL = "/run/espthrunat/control.sock"
DEFAULT_IKE = ["aes256-sha256-ecp256", "aes128-sha256-ecp256", "aes256-sha256-modp2048"]
DEFAULT_ESP = ["aes256gcm16", "aes128gcm16", "aes256-sha256", "aes128-sha256"]
_SECRET_KEYS = {"psk"}


class ConfigError(Exception):
    """A configuration that cannot be used; the message names file, key and value."""


class LocalTable(msgspec.Struct, forbid_unknown_fields=True):
    """[local]: this host."""

    address: str
    identity: str
    port: int = 500
    control: str = DEFAULT_CONTROL
    tun: str = "esp0"
    path_mtu: int = 1500  # octets of the largest outer packet


class RetransmitTable(msgspec.Struct, forbid_unknown_fields=True):
    """connection.retransmit: seconds before the first repetition, the factor of each next wait, tries in all."""

    first: float = 0.5
    factor: float = 2.0
    tries: int = 6


class ConnectionTable(msgspec.Struct, forbid_unknown_fields=True):
    """[[connection]]: one peer, or with remote = "any" one kind of peers, and the traffic to protect."""

    name: str
    remote_identity: str
    local_network: str
    remote_network: str
    remote: str = "any"
    remote_port: int = 500
    psk: str | None = None
    psk_file: str | None = None
    ike: list[str] = msgspec.field(default_factory=lambda: list(DEFAULT_IKE))
    esp: list[str] = msgspec.field(default_factory=lambda: list(DEFAULT_ESP))
    pfs: str = "ecp256"
    mode: Literal["tunnel"] = "tunnel"
    encapsulation: Literal["auto", "always", "never"] = "auto"
    start: bool = False
    ike_lifetime: int = 28_800  # seconds
    esp_lifetime: int = 3_600  # seconds
    retry: float = 10.0  # seconds
    retransmit: RetransmitTable = msgspec.field(default_factory=RetransmitTable)


class FileTable(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    local: LocalTable
    connection: list[ConnectionTable]


@dataclass(frozen=True, slots=True)
class Config:
    """What a daemon runs with."""

    address: str
    port: int
    control: Path
    tun: str
    path_mtu: int
    connections: tuple[Connection, ...]


def load(file: Path) -> Config:
    """Read a configuration; ConfigError says in one line what is wrong with it."""
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    try:
        table = msgspec.convert(raw, FileTable)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(file, raw, str(error))) from error
    return _Reader(file).read(table)


def _explain(file: Path, raw: dict[str, Any], message: str) -> str:
    """msgspec says what it expected and where; people also want to see what stood there."""
    reason, _, where = message.partition(" - at `$")
    where = where.rstrip("`").lstrip(".")
    value: Any = raw
    try:
        for step in re.findall(r"\w+", where):
            value = value[int(step)] if step.isdigit() else value[step]
    except (KeyError, IndexError, TypeError):
        value = None
    shown = f" = {value!r}" if isinstance(value, str | int | float | bool) and not _is_secret(where) else ""
    return f"{file}: {where or 'top level'}{shown}: {reason}"


def _is_secret(key: str) -> bool:
    return key.rsplit(".", 1)[-1] in _SECRET_KEYS


class _Reader:
    """Turns tables into policy; knows the file, for errors."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _wrong(self, key: str, value: object, reason: str) -> ConfigError:
        return ConfigError(f"{self._file}: {key} = {value!r}: {reason}")

    def read(self, table: FileTable) -> Config:
        local = table.local
        address = self._address("local.address", local.address)
        if address == "0.0.0.0":
            raise self._wrong("local.address", address, "NAT discovery needs one concrete address of this host")
        self._range("local.port", local.port, 1, 65535)
        self._range("local.path_mtu", local.path_mtu, 576, 65535)
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", local.tun):
            raise self._wrong("local.tun", local.tun, "a device name has 1 to 15 letters, digits, '_', '.', '-'")
        if not local.control or "\0" in local.control:
            raise self._wrong("local.control", local.control, "not a path")
        if len(local.control.encode()) > 100:
            raise self._wrong("local.control", local.control, "a socket's path has at most 100 octets")
        names = [c.name for c in table.connection]
        if not names:
            raise ConfigError(f"{self._file}: connection: at least one [[connection]] is needed")
        for name in names:
            if names.count(name) > 1:
                raise self._wrong("connection.name", name, "stands twice")
        identity = self._identity("local.identity", local.identity)
        connections = tuple(self._connection(i, c, identity) for i, c in enumerate(table.connection))
        return Config(address, local.port, Path(local.control), local.tun, local.path_mtu, connections)

    def _connection(self, index: int, table: ConnectionTable, identity: Identity) -> Connection:
        at = f"connection[{index}]."
        if not table.name:
            raise self._wrong(at + "name", table.name, "must not be empty")
        remote = None if table.remote == "any" else self._address(at + "remote", table.remote)
        if table.start and remote is None:
            raise self._wrong(at + "start", True, 'a connection with remote = "any" can only be begun by its peers')
        self._range(at + "remote_port", table.remote_port, 1, 65535)
        self._range(at + "ike_lifetime", table.ike_lifetime, 60, 7 * 86_400)
        self._range(at + "esp_lifetime", table.esp_lifetime, 30, 7 * 86_400)
        self._range(at + "retry", table.retry, 0.1, 86_400)
        self._range(at + "retransmit.first", table.retransmit.first, 0.01, 60)
        self._range(at + "retransmit.factor", table.retransmit.factor, 1, 10)
        self._range(at + "retransmit.tries", table.retransmit.tries, 1, 20)
        local_network = self._network(at + "local_network", table.local_network)
        return Connection(
            name=table.name,
            remote=remote,
            remote_port=table.remote_port,
            local_identity=identity,
            remote_identity=self._pattern(at + "remote_identity", table.remote_identity),
            secret=self._secret(at, table),
            ike_suites=tuple(self._ike_suite(at + "ike", name) for name in self._some(at + "ike", table.ike)),
            esp_suites=tuple(
                SUITES[self._known(at + "esp", name, SUITES)] for name in self._some(at + "esp", table.esp)
            ),
            pfs=None if table.pfs == "none" else self._group(at + "pfs", table.pfs),
            selector=Selector(local_network, self._network(at + "remote_network", table.remote_network)),
            encapsulation=EncapsulationPolicy(table.encapsulation),
            start=table.start,
            source=local_network.removesuffix("/32") if local_network.endswith("/32") else "",
            ike_lifetime=table.ike_lifetime,
            esp_lifetime=table.esp_lifetime,
            retry=table.retry,
            retransmission=Retransmission(table.retransmit.first, table.retransmit.factor, table.retransmit.tries),
        )

    def _secret(self, at: str, table: ConnectionTable) -> Secret:
        if (table.psk is None) == (table.psk_file is None):
            raise ConfigError(f"{self._file}: {at}psk: give either psk or psk_file")
        if table.psk is not None:
            octets = table.psk.encode()
        else:
            assert table.psk_file is not None
            file = self._file.parent / table.psk_file
            try:
                octets = file.read_bytes().rstrip(b"\r\n")
            except OSError as error:
                raise self._wrong(at + "psk_file", table.psk_file, f"cannot be read: {error.strerror}") from error
            except ValueError as error:
                raise self._wrong(at + "psk_file", table.psk_file, "not a path") from error
        if not octets:
            raise ConfigError(f"{self._file}: {at}psk: a pre-shared key must not be empty")
        return Secret(octets)

    def _ike_suite(self, key: str, name: str) -> IkeSuite:
        try:
            return IkeSuite.from_name(name)
        except ValueError as error:
            raise self._wrong(key, name, str(error)) from None

    def _group(self, key: str, name: str) -> Group:
        return GROUPS[self._known(key, name, GROUPS)]

    def _known(self, key: str, name: str, table: dict[str, Any]) -> str:
        if name not in table:
            raise self._wrong(key, name, f"unknown; known are {', '.join(table)}")
        return name

    def _some(self, key: str, names: list[str]) -> list[str]:
        if not names:
            raise self._wrong(key, names, "at least one suite is needed")
        return names

    def _range(self, key: str, value: float, least: float, most: float) -> None:
        if not least <= value <= most:
            raise self._wrong(key, value, f"must be {least:g} to {most:g}")

    def _address(self, key: str, text: str) -> str:
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise self._wrong(key, text, "not an IPv4 address") from None

    def _network(self, key: str, text: str) -> str:
        try:
            return str(ipaddress.IPv4Network(text))
        except ValueError as error:
            raise self._wrong(key, text, f"not an IPv4 network: {error}") from None

    def _identity(self, key: str, text: str) -> Identity:
        try:
            return Identity.from_text(text)
        except ValueError as error:
            raise self._wrong(key, text, str(error)) from None

    def _pattern(self, key: str, text: str) -> IdentityPattern:
        if text != "any":
            self._identity(key, text)
        return IdentityPattern(text)
