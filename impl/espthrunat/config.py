"""Configuration: TOML to typed policy, with errors that name file, key and value."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .config_checks import WITH_PORTS, Checks, ConfigError
from .config_tables import (
    DEFAULT_ESP,
    DEFAULT_IKE,
    DEFAULT_IKE_AGGRESSIVE,
    ConnectionTable,
    FileTable,
    LocalTable,
)
from .esp.suites import SUITES
from .ike.credentials import Credentials
from .ike.groups import GROUPS
from .ike.identity import Identity
from .ike.policy import (
    Authentication,
    Connection,
    EncapsulationPolicy,
    Exchange,
    IkeSuite,
    Rebinding,
    Retransmission,
    Secret,
)
from .messages import Mode, Selector

__all__ = ["Config", "ConfigError", "load"]

_SECRET_KEYS = {"psk"}
_DAYS = 86_400  # seconds
_ANYBODY = "0.0.0.0/0"


@dataclass(frozen=True, slots=True)
class Config:
    """What a daemon runs with."""

    address: str
    port: int
    control: Path
    tun: str
    path_mtu: int
    connections: tuple[Connection, ...]
    pool: str = ""  # for connections that translate
    max_half_open: int = 1000
    new_phase1_per_second: float = 100.0
    batches: bool = True

    @property
    def warnings(self) -> list[str]:
        """One line for each thing that works and that nobody should use without need."""
        said = []
        for connection in self.connections:
            for suite in connection.ike_suites:
                parts = [part for part in (suite.cipher, suite.hash) if part.legacy]
                names = [part.text for part in parts] + ([suite.group.name] if suite.group.legacy else [])
                if names:
                    said.append(f"{connection.name}: ike = {suite.name!r} is legacy ({', '.join(names)})")
            said += [
                f"{connection.name}: esp = {suite.name!r} is legacy" for suite in connection.esp_suites if suite.legacy
            ]
            if connection.pfs is not None and connection.pfs.legacy:
                said.append(f"{connection.name}: pfs = {connection.pfs.name!r} is legacy")
            if (connection.exchange, connection.authentication) == (Exchange.AGGRESSIVE, Authentication.PSK):
                said.append(
                    f"{connection.name}: Aggressive Mode with a pre-shared key: its hash can be guessed offline"
                )
        return said


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


class _Reader(Checks):
    """Turns tables into policy."""

    def read(self, table: FileTable) -> Config:
        local = table.local
        address = self.address("local.address", local.address)
        if address == "0.0.0.0":
            raise self.wrong("local.address", address, "NAT discovery needs one concrete address of this host")
        self.range("local.port", local.port, 1, 65535)
        self.range("local.path_mtu", local.path_mtu, 576, 65535)
        self.range("local.max_half_open", local.max_half_open, 1, 1_000_000)
        self.range("local.new_phase1_per_second", local.new_phase1_per_second, 0.1, 1_000_000)
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", local.tun):
            raise self.wrong("local.tun", local.tun, "a device name has 1 to 15 letters, digits, '_', '.', '-'")
        if not local.control or "\0" in local.control:
            raise self.wrong("local.control", local.control, "not a path")
        if len(local.control.encode()) > 100:
            raise self.wrong("local.control", local.control, "a socket's path has at most 100 octets")
        self._names([c.name for c in table.connection])
        identity = self.identity("local.identity", local.identity)
        credentials = self._credentials(local, identity)
        connections = []
        for index, connection in enumerate(table.connection):
            connections.append(self._connection(f"connection[{index}].", connection, address, identity, credentials))
        return Config(
            address,
            local.port,
            Path(local.control),
            local.tun,
            local.path_mtu,
            tuple(connections),
            self.pool("local.pool", local.pool, address, connections),
            local.max_half_open,
            local.new_phase1_per_second,
            local.batches,
        )

    def _names(self, names: list[str]) -> None:
        if not names:
            raise self.missing("connection", "at least one [[connection]] is needed")
        for index, name in enumerate(names):
            if not name:
                raise self.wrong(f"connection[{index}].name", name, "must not be empty")
            if "@" in name:
                raise self.wrong(f"connection[{index}].name", name, "must not contain '@'")
            if names.count(name) > 1:
                raise self.wrong("connection.name", name, "stands twice")

    def _connection(
        self, at: str, table: ConnectionTable, address: str, identity: Identity, credentials: Credentials | None
    ) -> Connection:
        remote = None if table.remote == "any" else self.address(at + "remote", table.remote)
        if table.start and remote is None:
            raise self.wrong(at + "start", True, 'a connection with remote = "any" can only be begun by its peers')
        self._numbers(at, table)
        mode = Mode(table.mode)
        selector = self._selector(at, table, address, remote)
        own_address = mode == Mode.TUNNEL and selector.local.endswith("/32")
        exchange = Exchange(table.exchange)
        authentication = Authentication(table.authentication)
        if authentication == Authentication.RSA and credentials is None:
            raise self.wrong(at + "authentication", "rsa", "needs local.certificate, local.private_key and local.ca")
        return Connection(
            name=table.name,
            remote=remote,
            remote_port=table.remote_port,
            local_identity=identity,
            remote_identity=self.pattern(at + "remote_identity", table.remote_identity),
            secret=self._secret(at, table),
            credentials=credentials if authentication == Authentication.RSA else None,
            exchange=exchange,
            authentication=authentication,
            mode=mode,
            translate=table.translate,
            ike_suites=self._ike_suites(at + "ike", table.ike, exchange),
            esp_suites=tuple(
                SUITES[self.known(at + "esp", name, SUITES)]
                for name in self.some(at + "esp", DEFAULT_ESP if table.esp is None else table.esp)
            ),
            pfs=None if table.pfs == "none" else GROUPS[self.known(at + "pfs", table.pfs, GROUPS)],
            selector=selector,
            encapsulation=EncapsulationPolicy(table.encapsulation),
            rebinding=Rebinding(table.rebinding),
            start=table.start,
            acquire=table.acquire,
            source=selector.local.removesuffix("/32") if own_address else "",
            ike_lifetime=table.ike_lifetime,
            esp_lifetime=table.esp_lifetime,
            esp_octets=table.esp_octets,
            rekey=table.rekey,
            rekey_margin=table.rekey_margin,
            rekey_overlap=table.rekey_overlap,
            dpd_interval=table.dpd,
            keepalive_interval=table.keepalive,
            keepalive_tail=table.keepalive_tail,
            retry=table.retry,
            retransmission=Retransmission(table.retransmit.first, table.retransmit.factor, table.retransmit.tries),
        )

    def _numbers(self, at: str, table: ConnectionTable) -> None:
        self.range(at + "remote_port", table.remote_port, 1, 65535)
        self.range(at + "ike_lifetime", table.ike_lifetime, 60, 7 * _DAYS)
        self.range(at + "esp_lifetime", table.esp_lifetime, 30, 7 * _DAYS)
        self.range(at + "esp_octets", table.esp_octets, 10_000, 2**40, or_zero=True)
        self.range(at + "rekey_margin", table.rekey_margin, 0.01, 0.5)
        self.range(at + "rekey_overlap", table.rekey_overlap, 0, 3_600)
        self.range(at + "dpd", table.dpd, 0.1, _DAYS, or_zero=True)
        self.range(at + "keepalive", table.keepalive, 0.1, 3_600, or_zero=True)
        self.range(at + "keepalive_tail", table.keepalive_tail, 0, 7 * _DAYS)
        self.range(at + "retry", table.retry, 0.1, _DAYS)
        self.range(at + "retransmit.first", table.retransmit.first, 0.01, 60)
        self.range(at + "retransmit.factor", table.retransmit.factor, 1, 10)
        self.range(at + "retransmit.tries", table.retransmit.tries, 1, 20)

    def _selector(self, at: str, table: ConnectionTable, address: str, remote: str | None) -> Selector:
        protocol = self.protocol(at + "traffic_protocol", table.traffic_protocol)
        ports = {"traffic_local_port": table.traffic_local_port, "traffic_remote_port": table.traffic_remote_port}
        for key, port in ports.items():
            self.range(at + key, port, 0, 65535)
            if port and protocol not in WITH_PORTS:
                raise self.wrong(at + key, port, 'a port needs traffic_protocol = "tcp" or "udp"')
        if table.mode == "tunnel":
            local_network = self.network(at + "local_network", table.local_network)
            remote_network = self.network(at + "remote_network", table.remote_network)
            return Selector(local_network, remote_network, protocol, *ports.values())
        for key, network in (("local_network", table.local_network), ("remote_network", table.remote_network)):
            if network is not None:
                raise self.wrong(
                    at + key, network, "transport mode protects the two hosts' own addresses: leave it out"
                )
        return Selector(f"{address}/32", f"{remote}/32" if remote else _ANYBODY, protocol, *ports.values())

    def _ike_suites(self, key: str, names: list[str] | None, exchange: Exchange) -> tuple[IkeSuite, ...]:
        aggressive = exchange == Exchange.AGGRESSIVE
        default = DEFAULT_IKE_AGGRESSIVE if aggressive else DEFAULT_IKE
        suites = tuple(self.ike_suite(key, name) for name in self.some(key, default if names is None else names))
        if aggressive and len({suite.group for suite in suites}) > 1:
            raise self.wrong(key, names, "Aggressive Mode cannot negotiate its group: all suites need the same one")
        return suites

    def _secret(self, at: str, table: ConnectionTable) -> Secret | None:
        given = [value for value in (table.psk, table.psk_file) if value is not None]
        if table.authentication == "rsa":
            if given:
                raise self.missing(at + "psk", 'authentication = "rsa" takes none')
            return None
        if len(given) != 1:
            raise self.missing(at + "psk", "give either psk or psk_file")
        if table.psk_file is not None:
            octets = self.octets(at + "psk_file", table.psk_file).rstrip(b"\r\n")
        else:
            octets = given[0].encode()
        if not octets:
            raise self.missing(at + "psk", "a pre-shared key must not be empty")
        return Secret(octets)

    def _credentials(self, local: LocalTable, identity: Identity) -> Credentials | None:
        files = {"certificate": local.certificate, "private_key": local.private_key, "ca": local.ca}
        if not any(name is not None for name in files.values()):
            return None
        octets = []
        for key, name in files.items():
            if name is None:
                raise self.missing(f"local.{key}", "certificate, private_key and ca are needed together")
            octets.append(self.octets(f"local.{key}", name))
        from .ike import certificates  # which loads much that pre-shared keys do not need

        try:
            credentials = certificates.load(*octets)
        except ValueError as error:
            raise self.missing("local.certificate, local.private_key, local.ca", str(error)) from None
        if not certificates.certifies(credentials, identity):
            raise self.wrong(
                "local.identity", local.identity, "local.certificate does not say so: no peer would believe it"
            )
        return credentials
