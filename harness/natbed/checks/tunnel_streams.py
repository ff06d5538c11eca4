"""Numbered streams through tunnels: one to the server and one back through each, begun together.

Receivers listen before their senders begin. The sender of a reply stream answers to where the client's stream came
from, which in transport mode is the only way back through a NAT.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from .flows import End, LabError
from .sa_pairs import RekeyTarget
from .streams import RATE, Stream, enlarge

LEAD = 100  # datagrams of each stream that must have arrived before anything is done to them


@contextlib.contextmanager
def tunnel_streams(
    targets: Sequence[RekeyTarget], *, one_flow: bool, persistent: bool = False, rate: int = RATE
) -> Iterator[list[Stream]]:
    """Two streams for each target, to the server and back, not begun; each of `rate` datagrams a second.

    At the end of the block they stop, and all that is under way is received. Raises `LabError` where a socket cannot be
    had, and at the end where a receiver was too slow to read what had come to it.
    """
    with contextlib.ExitStack() as stack:
        try:
            streams = _opened(stack, targets, one_flow=one_flow, persistent=persistent, rate=rate)
        except OSError as error:
            raise LabError(str(error)) from error
        try:
            yield streams
        finally:
            _finish(streams)
        for stream in streams:
            if number := stream.unread:
                raise LabError(f"{stream.name}: the lab was too slow to read {number}")


def _finish(streams: Sequence[Stream]) -> None:
    """Stop them together and receive what is under way; all of them wait for what is lost at the same time."""
    for stream in streams:
        stream.stop()
    for stream in streams:
        stream.give_up()
    for stream in streams:
        stream.finish()


def _opened(
    stack: contextlib.ExitStack, targets: Sequence[RekeyTarget], *, one_flow: bool, persistent: bool, rate: int
) -> list[Stream]:
    streams: list[Stream] = []
    for target in targets:
        client = End(target.client, target.client_address, target.client_seen)
        server = End(target.server, target.server_address, target.server_seen)
        near, far = (stack.enter_context(_socket(end)) for end in (client, server))
        back, forth = (far, near) if one_flow else (stack.enter_context(_socket(end)) for end in (server, client))
        there, home = f"{target.name} to the server", f"{target.name} to the client"
        to_server = (server.seen, far.getsockname()[1])
        streams.append(Stream(len(streams), there, near, far, to_server, persistent=persistent, rate=rate))
        to_client = None if one_flow else (client.seen, forth.getsockname()[1])
        streams.append(Stream(len(streams), home, back, forth, to_client, persistent=persistent, rate=rate))
    return streams


def _socket(end: End) -> socket.socket:
    made = end.open(socket.SOCK_DGRAM)
    enlarge(made)
    return made


def begin(streams: Sequence[Stream], *, one_flow: bool, lead: int = LEAD) -> None:
    """Let them listen, then send, and wait until `lead` datagrams of each have arrived. Raises `FlowError`.

    With `one_flow` they are pairs, to the server and back. Others may be any of a block's; the rest stays unused.
    """
    for stream in streams:
        stream.listen()
    if one_flow:
        for there, back in zip(streams[::2], streams[1::2], strict=True):
            there.begin()
            there.await_arrivals(1)
            back.begin(there.source)
    else:
        for stream in streams:
            stream.begin()
    for stream in streams:
        stream.await_arrivals(lead)
