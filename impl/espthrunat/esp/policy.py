"""Which packets belong to which SA: selectors, and the ordered table of outbound policies (RFC 2401, 4.4.1, 4.4.2)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from .. import messages
from ..wire.ip import IpHeader

_CACHED_FLOWS = 4096


def parse_network(text: str) -> tuple[int, int]:
    """An IPv4 network such as "10.0.0.0/8", or one address, as its number and its prefix length in bits.

    Host bits are masked off. Raises ValueError with the text in it.
    """
    address, slash, length = text.partition("/")
    try:
        number = int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big")
        bits = int(length) if slash else 32
        if not 0 <= bits <= 32:
            raise ValueError
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is no IPv4 network") from None
    return number & netmask(bits), bits


def netmask(bits: int) -> int:
    """The mask of a prefix of `bits` bits, as a number."""
    return 0xFFFFFFFF ^ (0xFFFFFFFF >> bits)


@dataclass(frozen=True)
class Selectors:
    """A `messages.Selector` made ready for matching: networks as numbers and masks, 0 for any protocol or port."""

    local: int
    local_mask: int
    remote: int
    remote_mask: int
    protocol: int
    local_port: int
    remote_port: int

    @classmethod
    def of(cls, selector: messages.Selector) -> Selectors:
        """From a message. Raises ValueError that names what is wrong."""
        local, local_bits = parse_network(selector.local)
        remote, remote_bits = parse_network(selector.remote)
        if not 0 <= selector.protocol <= 0xFF:
            raise ValueError(f"{selector.protocol} is no IP protocol")
        for port in (selector.local_port, selector.remote_port):
            if not 0 <= port <= 0xFFFF:
                raise ValueError(f"{port} is no port")
        return cls(
            local,
            netmask(local_bits),
            remote,
            netmask(remote_bits),
            selector.protocol,
            selector.local_port,
            selector.remote_port,
        )

    def matches_outbound(self, header: IpHeader) -> bool:
        """Whether a packet that leaves is of this traffic: from the local network to the remote one."""
        return (
            header.destination & self.remote_mask == self.remote
            and header.source & self.local_mask == self.local
            and self.protocol in (0, header.protocol)
            and self.local_port in (0, header.source_port)
            and self.remote_port in (0, header.destination_port)
        )

    def may_match_fragment(self, header: IpHeader) -> bool:
        """Whether the packet that a fragment which leaves is part of may be of this traffic, whatever its ports."""
        return (
            header.destination & self.remote_mask == self.remote
            and header.source & self.local_mask == self.local
            and self.protocol in (0, header.protocol)
        )

    def matches_inbound(self, header: IpHeader) -> bool:
        """Whether a packet that arrived through the SA may do so: from the remote network to the local one.

        RFC 2401, 5.2.1 step 2. A packet that shows no ports (a later fragment) matches no selector that has one.
        """
        return (
            header.source & self.remote_mask == self.remote
            and header.destination & self.local_mask == self.local
            and self.protocol in (0, header.protocol)
            and self.remote_port in (0, header.source_port)
            and self.local_port in (0, header.destination_port)
        )


class PolicyTable:
    """Outbound policies in the order in which they were added; the first that matches a packet counts (4.4.1).

    Fallbacks come after all others. `changed` is called whenever a packet may find another policy than before.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._policies: dict[str, Selectors] = {}
        self._fallbacks: dict[str, Selectors] = {}
        self._cache: dict[IpHeader, str | None] = {}
        self._tell = changed

    def add(self, name: str, selectors: Selectors, *, fallback: bool = False) -> None:
        """Add a policy at the end; one of the same name keeps its place and gets new selectors."""
        (self._policies if fallback else self._fallbacks).pop(name, None)
        (self._fallbacks if fallback else self._policies)[name] = selectors
        self._changed()

    def remove(self, name: str) -> None:
        """Remove a policy, if it is there."""
        self._policies.pop(name, None)
        self._fallbacks.pop(name, None)
        self._changed()

    def _changed(self) -> None:
        self._cache.clear()
        self._tell()

    def lookup(self, header: IpHeader) -> str | None:
        """The name of the policy that protects the packet; None if none does."""
        try:
            return self._cache[header]
        except KeyError:
            pass
        if len(self._cache) >= _CACHED_FLOWS:
            self._cache.clear()  # a scan of ports must not grow it without bound; a refill costs little
        ordered = chain(self._policies.items(), self._fallbacks.items())
        name = next((name for name, selectors in ordered if selectors.matches_outbound(header)), None)
        self._cache[header] = name
        return name
