"""Informational exchanges (RFC 2409, 5.7): Delete and notifications, protected; hints, where nothing can protect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..wire.isakmp import Chain, ExchangeType, Header
from ..wire.payloads import Delete, Notification, NotifyType, Payload
from ..wire.proposal import Protocol as ProtocolId
from . import keying
from .child_sa import ChildSa
from .context import Context
from .ike_sa import IkeSa, covered, require_hash

FIRST_STATUS = 16384  # notify types below are errors (RFC 2408, 3.14.1)


def send(context: Context, sa: IkeSa, payloads: list[Payload]) -> None:
    """Send one protected Informational message; nothing answers it."""
    message_id = context.message_id()
    context.send(sa.seal_informational(ExchangeType.INFORMATIONAL, message_id, payloads), sa.path)


def send_delete_child(context: Context, sa: IkeSa, child: ChildSa) -> None:
    """Tell the peer that we no longer accept this pair's inbound SA (RFC 2408, 3.15)."""
    send(context, sa, [Delete(ProtocolId.ESP, (child.inbound_spi.to_bytes(4, "big"),))])


def send_delete_ike(context: Context, sa: IkeSa) -> None:
    """Tell the peer that this phase 1 SA is gone."""
    send(context, sa, [Delete(ProtocolId.ISAKMP, (sa.initiator_cookie + sa.responder_cookie,))])


def send_farewell(context: Context, sa: IkeSa, children: Sequence[ChildSa]) -> None:
    """Tell the peer that these pairs and this phase 1 SA are gone: in one message, so that it learns all or nothing.

    A peer that knew only of its phase 1's end would go on sending on pairs that nobody asks about any more.
    """
    spis = tuple(child.inbound_spi.to_bytes(4, "big") for child in children)
    deletes: list[Payload] = [Delete(ProtocolId.ESP, spis)] if spis else []
    send(context, sa, [*deletes, Delete(ProtocolId.ISAKMP, (sa.initiator_cookie + sa.responder_cookie,))])


def send_refusal(context: Context, sa: IkeSa, notify: NotifyType, spi: bytes) -> None:
    """Tell the peer why its Quick Mode, named by the SPI that it offered, leads nowhere."""
    send(context, sa, [Notification(notify, ProtocolId.ESP, spi)])


def open_protected(sa: IkeSa, header: Header, datagram: bytes) -> Chain:
    """The payloads of a protected message; NotAuthentic when it is not the peer's."""
    assert sa.suite is not None
    assert sa.keys is not None
    message, plain, _ = sa.open(header, datagram, sa.phase2_iv(header.message_id))
    digest = keying.informational_hash(sa.suite.hash, sa.keys.a, header.message_id, covered(message, plain))
    require_hash(message, digest)
    return message


class Listener(Protocol):
    """Who acts on what a peer says, protected."""

    def peer_deleted_child(self, sa: IkeSa, spi: int, now: float) -> None:
        """The peer no longer accepts traffic on `spi`."""

    def peer_deleted_ike(self, sa: IkeSa, now: float) -> None:
        """The peer has forgotten the phase 1 SA."""

    def peer_refused(self, sa: IkeSa, spi: bytes, label: str, now: float) -> None:
        """The peer refuses the Quick Mode in which we offered `spi`."""

    def peer_lives(self, sa: IkeSa, now: float) -> None:
        """It has said something that only it can have said just now, R-U-THERE-ACK for example."""

    def peer_asks(self, sa: IkeSa, notification: Notification) -> None:
        """R-U-THERE (RFC 3706)."""

    def peer_is_new(self, sa: IkeSa, now: float) -> None:
        """INITIAL-CONTACT (RFC 2407, 4.6.3.3): the peer knows of no other SA with us."""


def handle(message: Chain, sa: IkeSa, listener: Listener, now: float) -> None:
    """Act on an authentic message that is no repetition."""
    listener.peer_lives(sa, now)
    for notification in message.all(Notification):
        match notification.notify_type:
            case NotifyType.R_U_THERE:
                listener.peer_asks(sa, notification)
            case NotifyType.INITIAL_CONTACT:
                listener.peer_is_new(sa, now)
            case kind if kind < FIRST_STATUS:
                try:
                    label = NotifyType(kind).label
                except ValueError:
                    label = f"notification {kind}"
                listener.peer_refused(sa, notification.spi, label, now)
    for delete in message.all(Delete):
        if delete.protocol == ProtocolId.ESP:
            for spi in delete.spis:
                listener.peer_deleted_child(sa, int.from_bytes(spi, "big"), now)
        elif delete.protocol == ProtocolId.ISAKMP and sa.initiator_cookie + sa.responder_cookie in delete.spis:
            listener.peer_deleted_ike(sa, now)
