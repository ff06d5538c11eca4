"""Checks of single configuration values; what is wrong is said with file, key and value in one line."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .ike.identity import Identity, IdentityPattern
from .ike.policy import Connection, IkeSuite
from .messages import Mode

PROTOCOLS = {"any": 0, "icmp": 1, "tcp": 6, "udp": 17}
WITH_PORTS = (6, 17)


class ConfigError(Exception):
    """A configuration that cannot be used; the message names file, key and value."""


class Checks:
    """Values of one file, checked one by one."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def wrong(self, key: str, value: object, reason: str) -> ConfigError:
        """The error that says why a value cannot be used."""
        return ConfigError(f"{self.file}: {key} = {value!r}: {reason}")

    def missing(self, key: str, reason: str) -> ConfigError:
        """The error for a key that should stand there, or whose value must not be shown."""
        return ConfigError(f"{self.file}: {key}: {reason}")

    def range(self, key: str, value: float, least: float, most: float, *, or_zero: bool = False) -> None:
        """A number within limits; with `or_zero`, 0 switches something off."""
        if not (least <= value <= most or (or_zero and value == 0)):
            raise self.wrong(key, value, f"must be {'0, or ' if or_zero else ''}{least:g} to {most:g}")

    def address(self, key: str, text: str) -> str:
        """An IPv4 address."""
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise self.wrong(key, text, "not an IPv4 address") from None

    def network(self, key: str, text: str | None) -> str:
        """An IPv4 network in CIDR notation, which must be given."""
        if text is None:
            raise self.missing(key, "is needed in tunnel mode")
        try:
            return str(ipaddress.IPv4Network(text))
        except ValueError as error:
            raise self.wrong(key, text, f"not an IPv4 network: {error}") from None

    def pool(self, key: str, text: str | None, address: str, connections: Sequence[Connection]) -> str:
        """The network that stands for those of peers: nobody else's, and large enough; "" for none."""
        for index, connection in enumerate(connections):
            at = f"connection[{index}]."
            if connection.translate and connection.mode != Mode.TUNNEL:
                raise self.wrong(at + "translate", True, "transport mode has no inner addresses")
            if connection.translate and text is None:
                raise self.wrong(at + "translate", True, "needs local.pool")
        if text is None:
            return ""
        pool = ipaddress.IPv4Network(self.network(key, text))
        if ipaddress.IPv4Address(address) in pool:
            raise self.wrong(key, text, f"has local.address {address} in it")
        for index, connection in enumerate(connections):
            if connection.mode != Mode.TUNNEL:
                continue
            local, remote = (ipaddress.IPv4Network(n) for n in (connection.selector.local, connection.selector.remote))
            at = f"connection[{index}]."
            if local.subnet_of(pool):
                raise self.wrong(key, text, f"has {at}local_network {local} in it")
            if connection.translate and remote.prefixlen < pool.prefixlen:
                raise self.wrong(at + "remote_network", str(remote), f"larger than local.pool {pool}")
            if not connection.translate and remote.overlaps(pool):
                raise self.wrong(key, text, f"overlaps {at}remote_network {remote}, which is not translated")
        return str(pool)

    def identity(self, key: str, text: str) -> Identity:
        """Who somebody is in phase 1."""
        try:
            return Identity.from_text(text)
        except ValueError as error:
            raise self.wrong(key, text, str(error)) from None

    def pattern(self, key: str, text: str) -> IdentityPattern:
        """Whom a connection accepts."""
        if text != "any":
            self.identity(key, text)
        return IdentityPattern(text)

    def known(self, key: str, name: str, table: Mapping[str, Any]) -> str:
        """A name that stands in a table."""
        if name not in table:
            raise self.wrong(key, name, f"unknown; known are {', '.join(table)}")
        return name

    def some(self, key: str, names: Sequence[str]) -> Sequence[str]:
        """A list of suites that is not empty."""
        if not names:
            raise self.wrong(key, list(names), "at least one suite is needed")
        return names

    def ike_suite(self, key: str, name: str) -> IkeSuite:
        """A suite of phase 1."""
        try:
            return IkeSuite.from_name(name)
        except ValueError as error:
            raise self.wrong(key, name, str(error)) from None

    def protocol(self, key: str, value: str | int) -> int:
        """An IP protocol, 0 for any."""
        number = PROTOCOLS.get(value) if isinstance(value, str) else value
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 3:
            number = int(value)
        if number is None or not 0 <= number <= 255:
            raise self.wrong(key, value, f"not a protocol: {', '.join(PROTOCOLS)}, or a number below 256")
        return number

    def octets(self, key: str, name: str) -> bytes:
        """What a file holds; a relative path starts at the configuration file."""
        try:
            return (self.file.parent / name).read_bytes()
        except OSError as error:
            raise self.wrong(key, name, f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise self.wrong(key, name, "not a path") from error
