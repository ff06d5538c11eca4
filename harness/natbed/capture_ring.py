"""A ring in memory where the kernel leaves a copy of every packet of an interface at the moment it passes.

The plain queue of an AF_PACKET socket shares memory with the packets that travel on, and Linux writes into that: where
connection tracking has put IP fragments together and the packet leaves in the same fragments again, their headers are
made anew in place (net/ipv4/ip_output.c, fast path of ip_do_fragment). A reader of the queue sees addresses, TTL and
offset that the packet got later, or half of them. A ring (PACKET_RX_RING, Documentation/networking/packet_mmap.rst in
Linux) gets its copy before the packet goes on, super-packets of 64 kB included.

Of the ring's versions this is the third: packets lie close together in blocks, so that memory goes by octets and the
reader is woken once a block. The kernel hands over a block when the next packet does not fit, or some milliseconds
after its first one. The memory is the ring's own, without the limits of socket buffers (net.core.rmem_max) and of
locked memory, in user namespaces too.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

# 16 MiB. It must hold what passes while the reader does not get to run: 2 s of sparse traffic, since a block is used up
# with each hand-over, and 128 super-packets of TCP, which need a block each. More would cost each capture's start.
BLOCK = 128 << 10  # octets; a power of two, for the kernel rounds its memory up to one
BLOCKS = 128
_FEWEST_BLOCKS = 8  # what is still worth having where memory is short
_HAND_OVER = 16  # milliseconds after which a block is handed over that is not full; a capture's end waits for it
_REST_SECONDS = 5.0  # for the hand-over of the last block, on a machine that is busy

_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_PACKET_VNET_HDR = 15
_TPACKET_V3 = 2
_USER = 1  # TP_STATUS_USER: ours to read
_LEAST_SLOT = 2048  # octets; the kernel wants a size of slots, and in version 3 uses none
_VNET_HEADER = 10  # octets before each frame
_RING = struct.Struct("7I")  # tpacket_req3
_STATUS = struct.Struct("I")
_STATUS_OFFSET = 8  # of a block's status in it (tpacket_block_desc)
_STATISTICS = struct.Struct("3I")  # tpacket_stats_v3
_BLOCK_HEADER = struct.Struct("8x3I")  # its status, number of packets, offset of the first
_PACKET = struct.Struct("6I2H30xB")  # tpacket3_hdr up to tp_net; from octet 48 on sockaddr_ll up to sll_pkttype

_libc = ctypes.CDLL(None, use_errno=True)


class Copied(NamedTuple):
    """One packet as it passed: time, whether it was leaving, virtio header, frame, and octets that the frame had."""

    seconds: int
    nanoseconds: int
    outgoing: bool
    header: bytes
    frame: bytes
    length: int


class Counts(NamedTuple):
    """Packets since the ring listens: those in its memory or taken from there, and those that found it full."""

    accepted: int
    dropped: int


class CaptureRing:
    """Copies of all packets of `interface`, from the return of the constructor on, until `close`.

    To be made in the namespace of the interface; raises `OSError` with the reason.
    """

    def __init__(self, interface: str) -> None:
        self._next = 0  # the block to take
        self._taken = 0  # packets
        self._counts = Counts(0, 0)
        blocks = BLOCKS
        while True:
            try:
                self._open(interface, blocks)
            except OSError as error:
                if error.errno != errno.ENOMEM or blocks // 2 < min(BLOCKS, _FEWEST_BLOCKS):
                    raise
                blocks //= 2
            else:
                break
        self._blocks = blocks
        self.device_type: int = self._socket.getsockname()[3]  # ARPHRD_*

    def _open(self, interface: str, blocks: int) -> None:
        # Protocol 0 receives nothing until bind names the interface: no packet of another interface slips in.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            slots = BLOCK // _LEAST_SLOT * blocks
            ring = _RING.pack(BLOCK, blocks, _LEAST_SLOT, slots, _HAND_OVER, 0, 0)
            # The socket's own method would stop all threads of Python while the kernel waits, some 10 ms.
            if _libc.setsockopt(self._socket.fileno(), _SOL_PACKET, _PACKET_RX_RING, ring, len(ring)):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            self._map = mmap.mmap(self._socket.fileno(), BLOCK * blocks)
            try:
                self._socket.bind((interface, _ETH_P_ALL))
            except BaseException:
                self._map.close()
                raise
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor to poll for POLLIN: the kernel has handed over a block."""
        return self._socket.fileno()

    def take(self) -> list[Copied]:
        """The packets of the oldest block that was handed over, which is given back; none if there is no such block.

        Raises `OSError` (ENETDOWN) if the interface went down or away.
        """
        if error := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, f"the interface went down or away: {os.strerror(error)}")
        # The kernel writes a block's status after all else in it, and x86 keeps that order, in loads as in stores.
        # Elsewhere the poll that came before does: it takes the lock under which the block was handed over.
        start = self._next * BLOCK
        status, packets, offset = _BLOCK_HEADER.unpack_from(self._map, start)
        if not status & _USER:
            return []
        taken = []
        position = start + offset
        for _ in range(packets):
            ahead, seconds, nanoseconds, kept, length, status, mac, _, kind = _PACKET.unpack_from(self._map, position)
            if status & _USER:  # without it the place of a packet that was dropped, and is counted as such
                frame = position + mac
                taken.append(
                    Copied(
                        seconds,
                        nanoseconds,
                        kind == socket.PACKET_OUTGOING,
                        self._map[frame - _VNET_HEADER : frame],
                        self._map[frame : frame + kept],
                        length,
                    )
                )
            position += ahead
        _STATUS.pack_into(self._map, start + _STATUS_OFFSET, 0)  # in one store, for its format is native
        self._next = (self._next + 1) % self._blocks
        self._taken += len(taken)
        return taken

    def rest(self) -> Iterator[list[Copied]]:
        """What was accepted before this call and is not taken yet, block by block, as soon as the kernel hands it over.

        Raises `OSError` as `take` does, and with ETIMEDOUT if the kernel accepted more than it hands over.
        """
        poll = select.poll()
        poll.register(self, select.POLLIN)
        wanted = self.count().accepted
        until = time.monotonic() + _REST_SECONDS
        while self._taken < wanted:
            poll.poll(100)
            if taken := self.take():
                yield taken
            elif time.monotonic() > until:
                raise OSError(errno.ETIMEDOUT, f"the kernel accepted {wanted} packets and showed {self._taken}")

    def count(self) -> Counts:
        """How many packets the kernel has accepted and dropped until now."""
        counted = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        seen, dropped, _ = _STATISTICS.unpack(counted)  # since the last question
        self._counts = Counts(self._counts.accepted + seen - dropped, self._counts.dropped + dropped)
        return self._counts

    def close(self) -> None:
        """Give the memory back. The kernel takes some 20 ms: it waits until no processor uses the ring any more."""
        self._map.close()
        self._socket.close()
