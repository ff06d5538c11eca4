"""What becomes of SAs: they come up, are confirmed, replaced, deleted, and followed to where their peer has gone."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from ..messages import Path
from ..wire.payloads import Notification
from . import informational
from .address_pool import AddressPool
from .context import Context
from .events import ExchangeFailed, IkeSaDeleted, PeerMoved, SaDeleted
from .identity import Identity, IdentityPattern
from .ike_sa import IkeSa
from .inner_networks import InnerNetworks
from .keepalives import KeepaliveKeeper
from .launcher import Launcher, Want
from .liveness import Liveness
from .policy import Connection
from .quick_mode import QuickMode
from .quick_mode import State as QuickState
from .relation import needs_keepalives, serves, siblings
from .renewal import Renewal
from .sa_table import Pair, PairTable, Phase1, Phase1Table

PEERS_TURN = 1.0  # seconds in which who began a phase 1 will begin its Quick Mode too
MAX_REMEMBERED = 10_000  # peers whose SAs have ended and whom we could still reach through their NAT


class SaKeeper:
    """All SAs of one endpoint. It implements what exchanges, timers and peers report to."""

    def __init__(
        self,
        context: Context,
        local: tuple[str, int],
        connections: dict[str, Connection],
        phase1: Phase1Table,
        pairs: PairTable,
        pool: AddressPool | None = None,
    ) -> None:
        self.phase1 = phase1
        self.pairs = pairs
        self.launcher = Launcher(context, local, phase1, self)
        self.keepalives = KeepaliveKeeper(context)
        self.liveness = Liveness(context, self._peer_is_dead)
        self.renewal = Renewal(context, phase1, pairs, connections.__getitem__, self)
        self.held: set[str] = set()  # connections that were taken down on purpose
        self._context = context
        self._inner = InnerNetworks(context, pool)
        context.inner_network = self._inner.assign
        self._connections = connections
        self._remembered: OrderedDict[tuple[str, Identity], Path] = OrderedDict()

    # what is wanted

    def bring_up(self, connection: Connection, now: float) -> None:
        """Get a pair for a connection whose peer's address is configured, unless it is or is about to be."""
        name = connection.name
        if any(pair.usable for pair in self.pairs.named(name)) or self.launcher.brings(name):
            return
        path = self.launcher.path_to(connection)
        for exchange in self.phase1:
            sa = exchange.sa
            if sa.established and sa.path == path and serves(sa, connection):
                self.launcher.begin_quick(sa, Want(connection), now)
                return
        for exchange in self.launcher.beginning(path):
            if siblings(self._connections[exchange.sa.connection.name], connection):
                self.launcher.want_also(exchange, Want(connection))
                return
        self.launcher.begin_phase1(connection, path, [Want(connection)], now)

    def reach(self, connection: Connection, now: float, address: str = "") -> bool:
        """Get a pair with a peer that has been here before, at its mapped port; whether there is such a peer."""
        for exchange in reversed(list(self.phase1)):
            sa = exchange.sa
            if sa.established and sa.path.remote == (address or sa.path.remote) and serves(sa, connection):
                fresh = not sa.initiator and now - self.phase1.since(exchange) < PEERS_TURN
                if not fresh and not self.launcher.brings(connection.name):
                    self.launcher.begin_quick(sa, Want(connection), now)
                return True
        for (name, identity), path in reversed(self._remembered.items()):
            if name == connection.name and path.remote == (address or path.remote):
                if not self.launcher.beginning(path):
                    self._begin_known_peer(connection, identity, path, [Want(connection)], now)
                return True
        return False

    def replace_pair(self, pair: Pair, now: float) -> None:
        """Begin the exchange that makes this pair's successor: the same source, the same destination (the draft, 5)."""
        want = self._successor_of(pair)
        path = pair.child.path
        established = self.phase1.of(pair.sa.identity, path)
        if established:
            self.launcher.begin_quick(established[-1].sa, want, now)
            return
        for exchange in self.launcher.beginning(path):
            self.launcher.want_also(exchange, want)
            return
        assert pair.sa.identity is not None
        self._begin_known_peer(want.connection, pair.sa.identity, path, [want], now)

    def replace_pair_anew(self, pair: Pair, now: float) -> None:
        """Replace a pair as soon as the phase 1 that is being begun with its peer is complete."""
        for exchange in self.launcher.beginning(pair.child.path):
            self.launcher.want_also(exchange, self._successor_of(pair))
            return
        self.replace_pair(pair, now)

    def _successor_of(self, pair: Pair) -> Want:
        """What replaces a pair, and with it all that stand for the same traffic: both ends may have rekeyed at once."""
        alike = [other for other in self._alike(pair) if other is not pair]
        for replaced in (pair, *alike):
            replaced.replacing = True
        return Want(self._connections[pair.child.connection], (pair, *alike))

    def _alike(self, pair: Pair) -> list[Pair]:
        mine = self.pairs.of(pair.sa.identity, pair.child.path)
        return [other for other in mine if other.usable and other.traffic == pair.traffic]

    def replace_phase1(self, exchange: Phase1, now: float) -> None:
        """Begin the exchange that makes this phase 1's successor."""
        sa = exchange.sa
        assert sa.identity is not None
        if not self.launcher.beginning(sa.path):
            self._begin_known_peer(self._connections[sa.connection.name], sa.identity, sa.path, [], now)

    def _begin_known_peer(
        self, connection: Connection, identity: Identity, path: Path, wants: list[Want], now: float
    ) -> None:
        only = replace(connection, remote_identity=IdentityPattern(identity.text))  # it must be the same peer again
        self.launcher.begin_phase1(only, path, wants, now)

    # phase 1

    def phase1_done(self, exchange: Phase1, now: float) -> None:
        """Both ends know each other."""
        sa = exchange.sa
        others = self.phase1.of(sa.identity)
        is_first = not others and not self.pairs.of(sa.identity)
        self.phase1.established(exchange, now)
        self.renewal.phase1_up(exchange, now)
        self.liveness.watch(sa, now)
        if sa.initial_contact:
            self.peer_is_new(sa, now)
        if sa.initiator:
            mine = self._connections[sa.connection.name]
            sa.candidates = tuple(c for c in self._connections.values() if siblings(c, mine))
            if mine.remote is not None and needs_keepalives(sa):
                self.keepalives.start(sa.path, mine)
        self.keepalives.in_use(sa.path)
        for want in self.launcher.take_wants(sa):
            if want.connection.name in self.held:
                continue
            self.launcher.begin_quick(sa, want, now, initial_contact=is_first)
            is_first = False

    def phase1_failed(self, exchange: Phase1, reason: str, now: float) -> None:
        """There will be no SA."""
        sa = exchange.sa
        wants = self.launcher.take_wants(sa)
        self.drop_phase1(exchange, "", now, tell=False)
        if not sa.initiator:
            self._context.emit(ExchangeFailed("", sa.path, reason))
            return
        for want in wants:
            self.refused_here(want, sa.path, reason, now)
        if not wants:
            self._context.emit(ExchangeFailed(sa.connection.name, sa.path, reason))
            for other in self.phase1.of(sa.identity, sa.path):
                self.renewal.phase1_not_replaced(other, now)

    def _drop_phase1_of(self, sa: IkeSa, reason: str, now: float) -> None:
        for exchange in self.phase1.of(sa.identity, sa.path):
            if exchange.sa is sa:
                self.drop_phase1(exchange, reason, now, tell=False)

    def drop_phase1(self, exchange: Phase1, reason: str, now: float, *, tell: bool) -> None:
        """End a phase 1 and what is under way in it; its pairs live on."""
        sa = exchange.sa
        if tell and sa.established:
            informational.send_delete_ike(self._context, sa)
        self.phase1.remove(exchange)
        exchange.abandon()
        self.renewal.forget_phase1(exchange)
        self.liveness.forget(sa)
        for want in self.launcher.take_wants(sa):
            for old in want.replaces:
                self.renewal.not_replaced(old, now)
        for quick in self.launcher.quick_of(sa):
            for old in self.launcher.replaced_by(quick):
                self.renewal.not_replaced(old, now)
            self.launcher.forget_quick(quick)
            pair = self.pairs.get(quick.inbound_spi)
            if pair is not None and not pair.confirmed:
                self.drop_pair(pair, reason, now, tell=False)
        if sa.established:
            sa.established = False
            self._context.emit(IkeSaDeleted(sa.connection.name, sa.path, reason))
            rest = self.pairs.of(sa.identity, sa.path)
            if all(pair.retired for pair in rest) and not self.phase1.of(sa.identity, sa.path):
                for pair in rest:  # the Delete of who replaced them was lost, and nobody is left to repeat it
                    self.drop_pair(pair, reason, now, tell=False)
            self._left(sa.connection, sa.identity, sa.path, now)

    # pairs

    def quick_answered(self, exchange: QuickMode, now: float) -> None:
        """As responder we accept traffic on the new pair, and send when the initiator has confirmed it."""
        pair = self._add_pair(exchange, now)
        self.launcher.keep_answered(exchange, tuple(self._alike(pair)))
        if exchange.initial_contact:
            self.peer_is_new(exchange.sa, now)
        if exchange.connection.name in self.held:
            self.launcher.forget_quick(exchange)
            self.drop_pair(pair, "taken down here", now, tell=True)

    def quick_finished(self, exchange: QuickMode, now: float) -> None:
        """The new pair may be used both ways."""
        pair = self.pairs.get(exchange.inbound_spi) or self._add_pair(exchange, now)
        replaced = list(self.launcher.replaced_by(exchange))
        mine = pair.child.initiator
        if mine:
            # Those too that the peer has made since this exchange began: it knew them when it answered, and leaves them
            # to us. It cannot do the same to ours: that it has confirmed its own means that it had no answer of ours.
            replaced += [other for other in self._alike(pair) if other not in replaced]
        pair.confirmed = True
        self.renewal.pair_up(pair, now)
        for old in replaced:
            self.renewal.replaced(old, now, mine=mine)

    def quick_failed(self, exchange: QuickMode, reason: str, now: float) -> None:
        """There will be no pair; without a reason, the exchange had done its work and is forgotten."""
        replaced = self.launcher.replaced_by(exchange)
        self.launcher.forget_quick(exchange)
        if not reason:
            return
        pair = self.pairs.get(exchange.inbound_spi)
        if pair is not None:
            self.drop_pair(pair, reason, now, tell=True)  # an initiator that thinks it is up must learn of it
        if pair is not None or not replaced:
            self._fail(exchange.connection, exchange.sa.path, reason, now)
            return
        self.refused_here(Want(exchange.connection, replaced), exchange.sa.path, reason, now)

    def refused_here(self, want: Want, path: Path, reason: str, now: float) -> None:
        """A wanted pair will not be."""
        for old in want.replaces:
            self.renewal.not_replaced(old, now)
        self._fail(want.connection, path, reason, now)

    def drop_pair(self, pair: Pair, reason: str, now: float, *, tell: bool) -> None:
        """End a pair."""
        if not self.pairs.remove(pair):
            return
        self.renewal.forget_pair(pair)
        if tell:
            established = self.phase1.of(pair.sa.identity, pair.child.path)
            if established:
                informational.send_delete_child(self._context, established[-1].sa, pair.child)
        self._context.emit(SaDeleted(pair.child, reason))
        connection = self._connections[pair.child.connection]
        self._inner.unused(pair, connection.keepalive_tail, now)
        self._left(connection, pair.sa.identity, pair.child.path, now)

    def end_all(self, sa: IkeSa, reason: str, now: float) -> None:
        """End every SA with a peer, and tell it so under each phase 1: an older one it may have forgotten already."""
        pairs, exchanges = self.pairs.of(sa.identity, sa.path), self.phase1.of(sa.identity, sa.path)
        for exchange in exchanges:
            informational.send_farewell(self._context, exchange.sa, [pair.child for pair in pairs])
        for pair in pairs:
            self.drop_pair(pair, reason, now, tell=False)
        for exchange in exchanges:
            self.drop_phase1(exchange, reason, now, tell=False)

    def pair_expired(self, pair: Pair, now: float) -> None:
        """A pair has come to its end without a successor."""
        connection = self._connections[pair.child.connection]
        if connection.start and connection.remote is not None and connection.name not in self.held:
            self.bring_up(connection, now)

    def follow(self, identity: Identity | None, old: Path, new: Path) -> None:
        """The data plane has seen, authenticated, that a peer sends from elsewhere now."""
        exchanges, pairs = self.phase1.of(identity, old), self.pairs.of(identity, old)
        for exchange in exchanges:
            self.phase1.move(exchange, new)
        for pair in pairs:
            self.pairs.move(pair, new)
        self.keepalives.moved(old, new)
        names = [p.child.connection for p in pairs] or [e.sa.connection.name for e in exchanges]
        if names:
            self._context.emit(PeerMoved(names[0], old, new))

    def _add_pair(self, exchange: QuickMode, now: float) -> Pair:
        assert exchange.child is not None
        pair = Pair(exchange.child, exchange.sa, now)
        self.pairs.add(pair)
        self._inner.in_use(pair)
        self.renewal.pair_made(pair, now)
        self.keepalives.in_use(pair.child.path)
        return pair

    def _left(self, connection: Connection, identity: Identity | None, path: Path, now: float) -> None:
        """An SA is gone: when it was the last one on the path, its NAT mapping is kept for a while (the draft, 4.3)."""
        if self.pairs.on_path(path) or self.phase1.of(identity, path):
            return
        if any(e.sa.path == path and e.sa.established for e in self.phase1):
            return
        self.keepalives.unused(path, now)
        if identity is not None and connection.remote is None:
            self._remember((connection.name, identity), path, now + connection.keepalive_tail)

    def _remember(self, peer: tuple[str, Identity], path: Path, until: float) -> None:
        self._remembered[peer] = path
        self._remembered.move_to_end(peer)
        self._context.timers.set(("remembered", peer), until, lambda _: self._remembered.pop(peer, None))
        if len(self._remembered) > MAX_REMEMBERED:
            oldest, _ = self._remembered.popitem(last=False)
            self._context.timers.cancel(("remembered", oldest))

    def _fail(self, connection: Connection, path: Path, reason: str, now: float) -> None:
        self._context.emit(ExchangeFailed(connection.name, path, reason))
        self.retry_later(connection, now)

    def retry_later(self, connection: Connection, now: float) -> None:
        """A connection that shall be kept up is not: try again after a pause."""
        mine = self._connections[connection.name]
        if mine.start and mine.remote is not None and mine.name not in self.held:
            self._context.timers.set(("retry", mine.name), now + mine.retry, lambda later: self.bring_up(mine, later))

    # what peers say, protected

    def peer_deleted_child(self, sa: IkeSa, spi: int, now: float) -> None:
        """The peer names the SPI that it receives on, which is the one that we send with."""
        for pair in self.pairs.of(sa.identity, sa.path):
            if pair.child.outbound_spi == spi:
                connection = self._connections[pair.child.connection]
                self.drop_pair(pair, "deleted by the peer", now, tell=False)
                if not any(other.usable for other in self.pairs.named(connection.name)):
                    self.retry_later(connection, now)

    def peer_deleted_ike(self, sa: IkeSa, now: float) -> None:
        """The peer has forgotten the phase 1 SA."""
        self._drop_phase1_of(sa, "deleted by the peer", now)

    def peer_refused(self, sa: IkeSa, spi: bytes, label: str, now: float) -> None:
        """The peer refuses the Quick Mode in which we offered `spi`."""
        mine = [q for q in self.launcher.quick_of(sa) if q.state == QuickState.WAITS_FOR_2]
        named = [q for q in mine if q.inbound_spi.to_bytes(4, "big") == spi]
        if named or len(mine) == 1:
            (named or mine)[0].fail(f"the peer refused Quick Mode: {label}", now)

    def peer_asks(self, sa: IkeSa, notification: Notification) -> None:
        """R-U-THERE."""
        self.liveness.answer(sa, notification)

    def peer_lives(self, sa: IkeSa, now: float) -> None:
        """It has said something that only it can have said just now."""
        self.liveness.heard(sa, now)

    def peer_is_new(self, sa: IkeSa, now: float) -> None:
        """The peer has begun anew: what it had before this phase 1 began is of no use any more.

        SAs that came up meanwhile stay: both ends may have begun at once.
        """
        for exchange in self.phase1.of(sa.identity):
            if exchange.sa is not sa and self.phase1.since(exchange) < sa.started:
                self.drop_phase1(exchange, "the peer began anew", now, tell=False)
        for pair in self.pairs.of(sa.identity):
            if pair.since < sa.started:
                self.drop_pair(pair, "the peer began anew", now, tell=False)

    def _peer_is_dead(self, sa: IkeSa, now: float) -> None:
        """Nothing of what we share with it is worth keeping; what was up, and was begun here, is begun again.

        It is told all the same: if only answers were lost, it learns at once that its SAs lead nowhere.
        """
        established = self.phase1.of(sa.identity, sa.path)
        if len(established) > 1:  # only this one is dead: the Delete of who replaced it was lost
            self._drop_phase1_of(sa, "the peer does not answer", now)
            return
        names = {sa.connection.name} if sa.connection.start else set()
        names |= {pair.child.connection for pair in self.pairs.of(sa.identity, sa.path)}
        self.end_all(sa, "the peer does not answer", now)
        for name in sorted(names):
            connection = self._connections[name]
            if connection.remote is not None and name not in self.held:
                self.bring_up(connection, now)
