"""Random octets over one TCP connection between two nodes, and their digests at both ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from natbed.checks.flows import End

from .record import Transfer

_BLOCK = 1 << 20  # octets that are made, digested and sent at once
_STALLED_SECONDS = 30.0  # without a single octet
_CONNECT_SECONDS = 20.0  # a SYN may be lost more than once


@dataclass
class _Side:
    """What one end has sent or received until now."""

    octets: int = 0
    problem: str = ""
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)


def transfer(way: str, begin: End, end: End, octets: int, progress: Callable[[int], None]) -> Transfer:
    """Send so many random octets from `begin` to `end`; `progress` is told how many have arrived.

    What stalls or breaks becomes the transfer's problem. Raises `flows.LabError` where a socket cannot be had.
    """
    sent, arrived = _Side(), _Side()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(end.open(socket.SOCK_STREAM))
        connection = stack.enter_context(begin.open(socket.SOCK_STREAM))
        listener.listen(1)
        listener.settimeout(_CONNECT_SECONDS)
        connection.settimeout(_CONNECT_SECONDS)
        receiver = threading.Thread(target=_receive, args=(listener, arrived, progress), name=f"{way} receiver")
        receiver.start()
        started = time.monotonic()
        try:
            connection.connect((end.seen, listener.getsockname()[1]))
            _send(connection, octets, sent)
        except OSError as error:
            sent.problem = f"after {sent.octets} octets the sender saw: {error}"
        finally:
            connection.close()
            receiver.join()
        seconds = time.monotonic() - started
    return Transfer(
        way=way,
        octets=arrived.octets,
        seconds=round(seconds, 3),
        sent_digest=sent.digest.hexdigest(),
        arrived_digest=arrived.digest.hexdigest(),
        problem=arrived.problem or sent.problem,
    )


def _send(connection: socket.socket, octets: int, side: _Side) -> None:
    connection.settimeout(_STALLED_SECONDS)
    while side.octets < octets:
        block = os.urandom(min(_BLOCK, octets - side.octets))
        side.digest.update(block)
        connection.sendall(block)
        side.octets += len(block)
    connection.shutdown(socket.SHUT_WR)


def _receive(listener: socket.socket, side: _Side, progress: Callable[[int], None]) -> None:
    room = memoryview(bytearray(_BLOCK))
    try:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(_STALLED_SECONDS)
            while octets := connection.recv_into(room):
                side.digest.update(room[:octets])
                side.octets += octets
                progress(side.octets)
    except OSError as error:
        side.problem = f"after {side.octets} octets the receiver saw: {error}"
