"""Informational exchanges (RFC 2409, 5.7): Delete and notifications, protected; hints, where nothing can protect."""

from __future__ import annotations

from collections.abc import Callable

from ..wire.isakmp import Chain, ExchangeType, Header
from ..wire.payloads import Delete, Notification, NotifyType, Payload
from ..wire.proposal import Protocol
from . import keying
from .child_sa import ChildSa
from .context import Context
from .ike_sa import IkeSa, covered, require_hash


def send(context: Context, sa: IkeSa, payloads: list[Payload]) -> None:
    """Send one protected Informational message; nothing answers it."""
    message_id = context.message_id()
    context.send(sa.seal_informational(ExchangeType.INFORMATIONAL, message_id, payloads), sa.path)


def send_delete_child(context: Context, sa: IkeSa, child: ChildSa) -> None:
    """Tell the peer that we no longer accept this pair's inbound SA (RFC 2408, 3.15)."""
    send(context, sa, [Delete(Protocol.ESP, (child.inbound_spi.to_bytes(4, "big"),))])


def send_delete_ike(context: Context, sa: IkeSa) -> None:
    """Tell the peer that this phase 1 SA is gone."""
    send(context, sa, [Delete(Protocol.ISAKMP, (sa.initiator_cookie + sa.responder_cookie,))])


def send_refusal(context: Context, sa: IkeSa, notify: NotifyType, spi: bytes) -> None:
    """Tell the peer why its Quick Mode, named by the SPI that it offered, leads nowhere."""
    send(context, sa, [Notification(notify, Protocol.ESP, spi)])


def open_protected(sa: IkeSa, header: Header, datagram: bytes) -> Chain:
    """The payloads of a protected message; NotAuthentic when it is not the peer's."""
    assert sa.suite is not None
    assert sa.keys is not None
    message, plain, _ = sa.open(header, datagram, sa.phase2_iv(header.message_id))
    digest = keying.informational_hash(sa.suite.hash, sa.keys.a, header.message_id, covered(message, plain))
    require_hash(message, digest)
    return message


def handle(
    message: Chain,
    sa: IkeSa,
    *,
    delete_child: Callable[[int], None],
    delete_ike: Callable[[], None],
    refused: Callable[[bytes, str], None],
) -> None:
    """Act on an authentic message: the peer's SPIs to delete, its phase 1 to delete, or a refusal of an offered SPI."""
    for notification in message.all(Notification):
        if notification.notify_type < 16384:  # error types (RFC 2408, 3.14.1)
            try:
                label = NotifyType(notification.notify_type).label
            except ValueError:
                label = f"notification {notification.notify_type}"
            refused(notification.spi, label)
    for delete in message.all(Delete):
        if delete.protocol == Protocol.ESP:
            for spi in delete.spis:
                delete_child(int.from_bytes(spi, "big"))
        elif delete.protocol == Protocol.ISAKMP and sa.initiator_cookie + sa.responder_cookie in delete.spis:
            delete_ike()
