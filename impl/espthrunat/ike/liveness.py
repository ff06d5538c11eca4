"""Dead peer detection (RFC 3706): asks at intervals whether the peer still has our phase 1 SA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..wire.payloads import Notification, NotifyType
from ..wire.proposal import Protocol
from . import informational
from .context import Context
from .ike_sa import IkeSa

_TRIES = 5  # of one question, spread over one interval: a lossy path must not look like a dead peer
_SEQUENCE_OCTETS = 4
_MAX_SEQUENCE = 0x7FFFFFFF


@dataclass(slots=True)
class _Watch:
    interval: float
    sequence: int
    asked: int = 0  # times that the present question went out; 0 while none is open


class Liveness:
    """Watches established phase 1 SAs. `dead` is called when a question had no answer for a whole interval.

    From the moment that a peer stops answering until `dead`, at most two intervals go by: one until the next
    question, one that waits for its answer.
    """

    def __init__(self, context: Context, dead: Callable[[IkeSa, float], None]) -> None:
        self._context = context
        self._dead = dead
        self._watched: dict[IkeSa, _Watch] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, sa: IkeSa, now: float) -> None:
        """Ask this peer from now on, if it has said that it answers and the connection wants to know."""
        interval = sa.connection.dpd_interval
        if interval and sa.peer_knows_dpd:
            start = int.from_bytes(self._context.entropy.octets(_SEQUENCE_OCTETS), "big") & (_MAX_SEQUENCE >> 1)
            self._watched[sa] = _Watch(interval, start)
            self._set(sa, now + interval)

    def forget(self, sa: IkeSa) -> None:
        """The SA is gone."""
        if self._watched.pop(sa, None) is not None:
            self._context.timers.cancel(("liveness", sa))

    def heard(self, sa: IkeSa, now: float) -> None:
        """Anything that the peer protects and that is no repetition shows that it lives (RFC 3706, 5.4)."""
        watch = self._watched.get(sa)
        if watch is not None:
            watch.asked = 0
            self._set(sa, now + watch.interval)

    def answer(self, sa: IkeSa, notification: Notification) -> None:
        """The peer asks, protected: R-U-THERE. A replayed question does not come so far: its message ID was used."""
        if notification.spi == _spi(sa) and len(notification.data) == _SEQUENCE_OCTETS:
            self._send(sa, NotifyType.R_U_THERE_ACK, notification.data)

    def _set(self, sa: IkeSa, due: float) -> None:
        self._context.timers.set(("liveness", sa), due, lambda now: self._due(sa, now))

    def _due(self, sa: IkeSa, now: float) -> None:
        watch = self._watched[sa]
        if watch.asked >= _TRIES:
            del self._watched[sa]
            self._dead(sa, now)
            return
        if not watch.asked:
            watch.sequence = (watch.sequence + 1) & _MAX_SEQUENCE
        watch.asked += 1
        self._send(sa, NotifyType.R_U_THERE, watch.sequence.to_bytes(_SEQUENCE_OCTETS, "big"))
        self._set(sa, now + watch.interval / _TRIES)

    def _send(self, sa: IkeSa, kind: NotifyType, data: bytes) -> None:
        informational.send(self._context, sa, [Notification(kind, Protocol.ISAKMP, _spi(sa), data)])


def _spi(sa: IkeSa) -> bytes:
    return sa.initiator_cookie + sa.responder_cookie
