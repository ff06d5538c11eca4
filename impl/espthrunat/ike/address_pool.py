"""Networks of a pool, each lent to one peer at a time: what its inner network appears as here (the draft, 7)."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Hashable

MAX_LENT = 65_536
_ADDRESS_BITS = 32


class AddressPool:
    """Lends parts of an IPv4 network. Raises ValueError if `network` is none.

    What was given back is lent again as late as possible: somebody may still send to who had it before. The first and
    the last address are never lent alone, as programs take them for no host's. At most `most` parts are lent.
    """

    def __init__(self, network: str, most: int = MAX_LENT) -> None:
        parsed = ipaddress.IPv4Network(network)
        self._start, self._bits = int(parsed.network_address), parsed.prefixlen
        self._no_hosts = {self._start, int(parsed.broadcast_address)} if self._bits < 31 else set[int]()
        self._most = most
        self._lent: dict[Hashable, tuple[int, int]] = {}  # first address and prefix length
        self._inside: Counter[tuple[int, int]] = Counter()  # lent addresses in every network around a lent one
        self._next = self._start

    def __len__(self) -> int:
        return len(self._lent)

    def lend(self, borrower: Hashable, bits: int) -> str | None:
        """A network of prefix length `bits` in CIDR notation: the same until it is given back. None if none is free."""
        known = self._lent.get(borrower)
        if known is not None:
            return _text(known) if known[1] == bits else None
        if len(self._lent) >= self._most or not self._bits <= bits <= _ADDRESS_BITS:
            return None
        start = self._free(self._start, self._bits, bits, self._next)
        if start is None:
            start = self._free(self._start, self._bits, bits, self._start)
        if start is None:
            return None
        self._next = start + _size(bits)
        self._lent[borrower] = part = start, bits
        for around in self._around(part):
            self._inside[around] += _size(bits)
        return _text(part)

    def give_back(self, borrower: Hashable) -> None:
        """A network is free again. That of who has none is no error."""
        part = self._lent.pop(borrower, None)
        if part is None:
            return
        for around in self._around(part):
            self._inside[around] -= _size(part[1])
            if not self._inside[around]:
                del self._inside[around]

    def _free(self, start: int, bits: int, wanted: int, least: int) -> int | None:
        """The first free network of `wanted` bits in that of `bits` bits at `start`, not below address `least`."""
        used = self._inside.get((start, bits), 0)
        if start + _size(bits) <= least or used == _size(bits):
            return None
        if bits == wanted:
            hosts = wanted < _ADDRESS_BITS or start not in self._no_hosts
            return start if not used and start >= least and hosts else None
        for half in (start, start + _size(bits + 1)):
            found = self._free(half, bits + 1, wanted, least)
            if found is not None:
                return found
        return None

    def _around(self, part: tuple[int, int]) -> list[tuple[int, int]]:
        """The part itself, and every network of the pool that it lies in."""
        start, bits = part
        return [(start & -_size(length), length) for length in range(self._bits, bits + 1)]


def _size(bits: int) -> int:
    return 1 << (_ADDRESS_BITS - bits)


def _text(part: tuple[int, int]) -> str:
    return f"{ipaddress.IPv4Address(part[0])}/{part[1]}"
