"""Numbered streams through tunnels: one to the server and one back through each, begun together.

Receivers listen before their senders begin. The sender of a reply stream answers to where the client's stream came
from, which in transport mode is the only way back through a NAT.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from .flows import End
from .sa_pairs import RekeyTarget
from .streams import Stream, enlarge

LEAD = 100  # datagrams of each stream that must have arrived before anything is done to them


def open_streams(
    stack: contextlib.ExitStack, targets: Sequence[RekeyTarget], *, one_flow: bool, persistent: bool = False
) -> list[Stream]:
    """Two streams for each target, to the server and back, not begun. Raises `LabError`."""
    streams: list[Stream] = []
    for target in targets:
        client = End(target.client, target.client_address, target.client_seen)
        server = End(target.server, target.server_address, target.server_seen)
        near, far = (stack.enter_context(_socket(end)) for end in (client, server))
        back, forth = (far, near) if one_flow else (stack.enter_context(_socket(end)) for end in (server, client))
        there, home = f"{target.name} to the server", f"{target.name} to the client"
        to_server = (server.seen, far.getsockname()[1])
        streams.append(Stream(len(streams), there, near, far, to_server, persistent=persistent))
        to_client = None if one_flow else (client.seen, forth.getsockname()[1])
        streams.append(Stream(len(streams), home, back, forth, to_client, persistent=persistent))
    return streams


def _socket(end: End) -> socket.socket:
    made = end.open(socket.SOCK_DGRAM)
    enlarge(made)
    return made


def begin(streams: Sequence[Stream], *, one_flow: bool) -> None:
    """Let them listen, then send, and wait until `LEAD` datagrams of each have arrived. Raises `FlowError`."""
    for stream in streams:
        stream.listen()
    for there, back in zip(streams[::2], streams[1::2], strict=True):
        there.begin()
        if one_flow:
            there.await_arrivals(1)
        back.begin(there.source if one_flow else None)
    for stream in streams:
        stream.await_arrivals(LEAD)
