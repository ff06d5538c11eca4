"""Datagrams through a tunnel: the client begins, and later its server answers, if the NAT still lets it."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import Self

from natbed.checks import flows
from natbed.checks.flows import End
from natbed.lab import LabError
from natbed.node_like import NodeLike
from natbed.stacks.base import StackError

ARRIVAL_SECONDS = 5.0  # that a datagram may take to where it must come
LATE_SECONDS = 1.0  # after which an answer that may be lost is lost
_MOST = 1 << 16  # octets


@dataclass(frozen=True, slots=True)
class Talk:
    """Two nodes, and the addresses by which both know each other in the tunnel."""

    client: NodeLike
    client_address: str
    server: NodeLike
    server_address: str


class Listener:
    """Context manager: a socket at each end, for as long as the tunnel is watched."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._stack = contextlib.ExitStack()
        self._back: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        client = End(self._talk.client, self._talk.client_address)
        server = End(self._talk.server, self._talk.server_address)
        try:
            self._far = self._stack.enter_context(server.open(socket.SOCK_DGRAM))
            self._near = self._stack.enter_context(client.open(socket.SOCK_DGRAM))
        except flows.LabError as error:
            self._stack.close()
            raise LabError(str(error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def knock(self, octets: int = 8) -> None:
        """A datagram of the client's comes to the server. Raises StackError where it does not."""
        self._far.settimeout(ARRIVAL_SECONDS)
        try:
            self._near.sendto(bytes(octets), (self._talk.server_address, self._far.getsockname()[1]))
            _, self._back = self._far.recvfrom(_MOST)
        except OSError as error:
            raise StackError(f"{self._talk.client.name}: a datagram did not come to the server: {error}") from error

    def answer(self) -> bool:
        """Whether a datagram of the server's comes to the client."""
        if self._back is None:
            raise ValueError("the server knows nobody to answer")
        self._near.settimeout(LATE_SECONDS)
        try:
            self._far.sendto(bytes(8), self._back)
            self._near.recvfrom(_MOST)
        except TimeoutError:
            return False
        except OSError as error:
            raise StackError(f"{self._talk.server.name}: a datagram could not be sent: {error}") from error
        return True
