"""What a peer's inner network appears as here, where clients may use the same addresses (the draft, 1 and 7)."""

from __future__ import annotations

from .address_pool import AddressPool
from .context import Context
from .identity import Identity
from .policy import Connection
from .sa_table import Pair

UNTIL_MADE = 60.0  # seconds that a network is kept for a Quick Mode under way

Borrower = tuple[Identity, str]  # who, and its own inner network


class InnerNetworks:
    """Lends networks of the pool to peers: for as long as they have pairs, and for the keepalives' tail after that."""

    def __init__(self, context: Context, pool: AddressPool | None) -> None:
        self._context = context
        self._pool = pool
        self._users: dict[Borrower, set[int]] = {}  # inbound SPIs

    def assign(self, identity: Identity, connection: Connection, now: float) -> str | None:
        """What the peer's network appears as: "" for itself, None if the pool has nothing left."""
        if not connection.translate:
            return ""
        if self._pool is None:
            return None
        borrower = identity, connection.selector.remote
        _, _, bits = borrower[1].partition("/")
        network = self._pool.lend(borrower, int(bits))
        if network is not None and borrower not in self._users:
            self._end(borrower, now + max(UNTIL_MADE, connection.keepalive_tail))
        return network

    def in_use(self, pair: Pair) -> None:
        """A pair has come."""
        if pair.child.mapped:
            borrower = _borrower(pair)
            self._users.setdefault(borrower, set()).add(pair.spi)
            self._context.timers.cancel(("inner network", borrower))

    def unused(self, pair: Pair, tail: float, now: float) -> None:
        """A pair is gone. When it was the last one, its network stays the peer's for `tail` seconds."""
        if not pair.child.mapped:
            return
        borrower = _borrower(pair)
        users = self._users[borrower]
        users.discard(pair.spi)
        if not users:
            del self._users[borrower]
            self._end(borrower, now + tail)

    def _end(self, borrower: Borrower, due: float) -> None:
        assert self._pool is not None
        pool = self._pool
        self._context.timers.set(("inner network", borrower), due, lambda _: pool.give_back(borrower))


def _borrower(pair: Pair) -> Borrower:
    assert pair.sa.identity is not None
    return pair.sa.identity, pair.child.selector.remote
