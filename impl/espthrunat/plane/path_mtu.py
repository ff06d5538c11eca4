"""How long a datagram may be on each path: no fragments on the public wire (the draft, 3.2; RFC 1191)."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable

from ..wire.ip import ICMP, MIN_OCTETS, TCP, build_ipv4, checksum

MIN_PATH_MTU = 576  # octets; what claims less would stop all traffic rather than help it (RFC 1191, 3)
KEPT_SECONDS = 600.0  # then the path may carry more again (RFC 1191, 6.3: 10 minutes)

_IP_MTU = 14  # linux/in.h
_UNREACHABLE, _FRAGMENTATION_NEEDED = 3, 4
_QUOTED_OCTETS = 28  # the IP header and 8 octets behind it (RFC 792); options make no difference to whom it is for
_SYN, _MSS_OPTION, _END, _NOTHING = 0x02, 2, 0, 1
_FLAGS, _CHECKSUM = 13, 16  # offsets in the TCP header
_WORD = struct.Struct("!H")


class PathMtus:
    """What the kernel has learned of paths, asked when it refuses a datagram. `clock` gives seconds."""

    def __init__(self, configured: int, local: str, mark: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._configured = configured
        self._local = local
        self._mark = mark
        self._clock = clock
        self._learned: dict[str, tuple[int, float]] = {}  # by remote address: octets, and until when

    def of(self, remote: str) -> int:
        """Octets that an IP packet to `remote` may have."""
        return self._learned.get(remote, (self._configured, 0.0))[0]

    def learn(self, remote: str) -> bool:
        """The kernel refused a datagram as too long: ask it for the path's MTU. Whether that is news."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            asking.bind((self._local, 0))
            asking.connect((remote, 9))  # UDP: nothing is sent
            octets = max(MIN_PATH_MTU, asking.getsockopt(socket.IPPROTO_IP, _IP_MTU))
            if octets < self.of(remote):
                self._learned[remote] = octets, self._clock() + KEPT_SECONDS
                return True
        return False

    def forget_old(self) -> bool:
        """Forget what was learned too long ago; whether there was any."""
        now = self._clock()
        old = [remote for remote, (_, until) in self._learned.items() if now >= until]
        for remote in old:
            del self._learned[remote]
        return bool(old)

    def due(self) -> float | None:
        """When the first of what was learned is too old, in the clock's seconds; None if nothing was."""
        return min(until for _, until in self._learned.values()) if self._learned else None


def fragmentation_needed(packet: bytes, mtu: int) -> bytes:
    """The ICMP message that tells the sender of an IPv4 packet that only `mtu` octets fit (RFC 1191, 4).

    It comes from the packet's destination: an address that the kernel, if it checks, expects behind the TUN device.
    """
    octets = ((packet[0] & 0x0F) << 2) + 8
    body = struct.pack("!BBHHH", _UNREACHABLE, _FRAGMENTATION_NEEDED, 0, 0, mtu) + packet[: max(octets, _QUOTED_OCTETS)]
    body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
    return build_ipv4(packet[16:20], packet[12:16], ICMP, len(body)) + body


def clamped(packet: bytes, mtu: int) -> bytes:
    """An IPv4 packet as it is; or, where it opens a TCP connection with segments that `mtu` cannot carry, with fewer.

    Both ends of a connection then keep to what the tunnel carries, even where ICMP is filtered (RFC 4459, 3.2.3).
    """
    at = (packet[0] & 0x0F) << 2
    if packet[9] != TCP or len(packet) < at + MIN_OCTETS or not packet[at + _FLAGS] & _SYN:
        return packet
    if _WORD.unpack_from(packet, 6)[0] & 0x1FFF:
        return packet  # a later fragment
    most = mtu - MIN_OCTETS - MIN_OCTETS
    position, end = at + MIN_OCTETS, min(at + (packet[at + 12] >> 4 << 2), len(packet))
    while position + 4 <= end and packet[position] != _END:
        if packet[position] == _NOTHING:
            position += 1
            continue
        if packet[position] == _MSS_OPTION and packet[position + 1] == 4:
            return _with_mss(packet, at, position + 2, most)
        position += max(2, packet[position + 1])
    return packet


def _with_mss(packet: bytes, at: int, position: int, most: int) -> bytes:
    (old,) = _WORD.unpack_from(packet, position)
    if old <= most:
        return packet
    octets = bytearray(packet)
    _WORD.pack_into(octets, position, most)
    # At an odd octet the word counts with its octets swapped, which is to multiply by 256 (RFC 1071, 2).
    gain = (most - old) * (256 if (position - at) % 2 else 1)
    (before,) = _WORD.unpack_from(packet, at + _CHECKSUM)
    _WORD.pack_into(octets, at + _CHECKSUM, 0xFFFF ^ ((0xFFFF ^ before) + gain) % 0xFFFF)
    return bytes(octets)
