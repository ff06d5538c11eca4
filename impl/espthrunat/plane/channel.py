"""The plane's end of the socket to the daemon: whole messages, and never a wait for a daemon that is busy."""

from __future__ import annotations

import socket
from collections import deque

import msgspec

from .. import messages
from .counters import Count, Counters

_MAX_WAITING = 1024  # messages; each is small, and there are few kinds
_ENVELOPE_OCTETS = 64  # MessagePack's own octets around the datagrams of a message
_ITEM_OCTETS = 64  # and around each datagram, its path included


class DaemonGoneError(Exception):
    """The daemon closed its end."""


class Channel:
    """Messages to and from the daemon over a SOCK_SEQPACKET socket, which it makes non-blocking."""

    def __init__(self, sock: socket.socket, counters: Counters) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._counters = counters
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING)

    @property
    def has_waiting(self) -> bool:
        """Whether `flush` should be called when the socket can be written."""
        return bool(self._waiting)

    def receive(self, most: int) -> list[messages.ToPlane]:
        """Up to `most` messages that are there now.

        Raises DaemonGoneError at the end of the stream, when all before it was given out: a daemon's last messages
        are its farewells to its peers. Raises msgspec.MsgspecError for octets that are no message.
        """
        received: list[messages.ToPlane] = []
        while len(received) < most:
            try:
                packet = self.socket.recv(messages.MAX_MESSAGE)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # said once, if the daemon left something unread; its messages and the end still follow
            if not packet:
                if received:
                    break  # the end is there the next time too
                raise DaemonGoneError
            try:
                received.append(messages.decode_to_plane(packet))
            except UnicodeDecodeError as error:
                raise msgspec.DecodeError(str(error)) from None
        return received

    def send(self, message: messages.FromPlane) -> None:
        """Send a message, or keep it until the daemon has room."""
        packet = messages.encode(message)
        if self._waiting or not self._try(packet):
            self._waiting.append(packet)

    def send_datagrams(self, items: list[tuple[messages.Path, bytes]]) -> None:
        """Pass IKE datagrams up. What the daemon has no room for is dropped and counted: IKE retransmits."""
        for batch in _split(items):
            if self._waiting or not self._try(messages.encode(messages.Datagrams(batch))):
                detail = f"the daemon is busy; the last one came from {batch[-1][0].remote}"
                self._counters.drop(Count.DROP_IKE_OVERLOAD, detail, len(batch))
            else:
                self._counters.add(Count.IKE_IN, len(batch))

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._waiting and self._try(self._waiting[0]):
            self._waiting.popleft()

    def _try(self, packet: bytes) -> bool:
        try:
            self.socket.send(packet)
        except BlockingIOError:
            return False
        except ConnectionError:
            # The end of the stream will say so too, and ends the plane in one place.
            return True
        return True


def _split(items: list[tuple[messages.Path, bytes]]) -> list[list[tuple[messages.Path, bytes]]]:
    """Batches that each fit in one message."""
    batches: list[list[tuple[messages.Path, bytes]]] = []
    room = 0
    for item in items:
        octets = _ITEM_OCTETS + len(item[1])
        if octets > room:
            batches.append([])
            room = messages.MAX_MESSAGE - _ENVELOPE_OCTETS
        batches[-1].append(item)
        room -= octets
    return batches
