"""The raw socket of ESP that travels bare, as IP protocol 50 (RFC 2406, 3.1), where no NAT is in the way."""

from __future__ import annotations

import errno
import socket

from ..wire import ip
from .counters import Count, Counters
from .sadb import Address
from .udp_socket import TooLongError, enlarge_buffers, forbid_fragments, fragments_allowed

_MAX_PACKET = 65535


class EspSocket:
    """Bound to one address; what is sent carries `mark`. Raises OSError if raw sockets are not allowed here."""

    def __init__(self, address: str, counters: Counters, mark: int = 0) -> None:
        self.local: Address = (address, 0)
        self._counters = counters
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, ip.ESP)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            enlarge_buffers(self._socket)
            forbid_fragments(self._socket)
            self._socket.bind((address, 0))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._socket.fileno()

    def close(self) -> None:
        """Receive no more."""
        self._socket.close()

    def receive(self, most: int) -> list[tuple[bytes, Address]]:
        """Up to `most` ESP packets that are there now, their IP header cut off, and where they came from (port 0)."""
        packets: list[tuple[bytes, Address]] = []
        try:
            while len(packets) < most:
                packet, remote = self._socket.recvfrom(_MAX_PACKET)
                packets.append((packet[(packet[0] & 0x0F) << 2 :], (remote[0], 0)))
        except BlockingIOError:
            pass
        except OSError as error:
            self._counters.failed("raw_receive", error)
        self._counters.add(Count.RAW_IN, len(packets))
        return packets

    def send_in_fragments(self, packet: bytes, remote: Address) -> int:
        """Send an ESP packet, in fragments where the path is too narrow. 1 if the kernel took it."""
        with fragments_allowed(self._socket):
            try:
                return self.send([packet], remote)
            except TooLongError as error:
                self._counters.failed("raw_send", error)
                return 0

    def send(self, packets: list[bytes], remote: Address) -> int:
        """Send ESP packets to `remote` and say how many the kernel took; the others are counted and lost.

        Raises TooLongError where the path does not carry one of them; those behind it are not sent.
        """
        taken = 0
        try:
            for packet in packets:
                try:
                    self._socket.sendto(packet, remote)
                    taken += 1
                except OSError as error:
                    if error.errno == errno.EMSGSIZE:
                        raise TooLongError(*error.args) from error
                    self._counters.failed("raw_send", error)
        finally:
            self._counters.add(Count.RAW_OUT, taken)
        return taken
