"""What the kernel dropped because this process did not come in time: the one loss that no packet tells us of."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import struct

from .counters import Count, Counters

_SO_MEMINFO = 55  # asm-generic/socket.h
_MEMINFO = struct.Struct("=9I")  # linux/sock_diag.h; the last one is SK_MEMINFO_DROPS
_DEVICES = pathlib.Path("/proc/self/net/dev")
_TX_DROPPED = 11  # its column behind the device's name


class Queues:
    """The queues of a TUN device and of sockets. Each look counts what was dropped since the one before."""

    def __init__(self, device: str, counters: Counters) -> None:
        self._device = device
        self._counters = counters
        self._known: dict[str, int] = {}

    def look(self, *sockets: int) -> None:
        """Count the drops of the device and of `sockets` (descriptors)."""
        for number in sockets:
            with socket.socket(fileno=number) as lent:
                memory = lent.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
                lent.detach()
            *_, dropped = _MEMINFO.unpack(memory)
            self._count(Count.DROP_SOCKET_QUEUE, f"socket {number}", dropped)
        with contextlib.suppress(OSError):  # no /proc here, or a device that is gone
            for line in _DEVICES.read_text().splitlines():
                name, _, columns = line.partition(":")
                if name.strip() == self._device:
                    self._count(Count.DROP_TUN_QUEUE, f"TUN device {self._device}", int(columns.split()[_TX_DROPPED]))

    def _count(self, count: Count, what: str, dropped: int) -> None:
        new = dropped - self._known.get(what, 0)
        self._known[what] = dropped
        if new > 0:
            self._counters.drop(count, f"{what}: its queue was full, as this process did not come in time", new)
