"""The UDP socket that IKE and ESP share (the draft, 3.2)."""

from __future__ import annotations

import socket

from .counters import Count, Counters
from .sadb import Address

_BUFFER_OCTETS = 8 << 20
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; the socket module has no name for it
_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER = 10  # linux/in.h
_IP_PMTUDISC_WANT = 1
_MAX_DATAGRAM = 65535


def enlarge_buffers(sock: socket.socket) -> None:
    """Let the kernel keep megabytes for `sock`: a whole wake's work for one loop that does everything."""
    for force, polite in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, _BUFFER_OCTETS)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, polite, _BUFFER_OCTETS)


class UdpSocket:
    """Bound to one address and port, connected to nobody: a connected socket would hand us other people's errors.

    Checksums are on, as the keepalives need them (the draft, 4.3). What is sent carries `mark` (SO_MARK of socket(7)).
    Raises OSError if the port cannot be had or the mark is forbidden.
    """

    def __init__(self, address: str, port: int, counters: Counters, mark: int = 0) -> None:
        self.local: Address = (address, port)
        self._counters = counters
        socket.inet_pton(socket.AF_INET, address)  # a name would be resolved, and then compare equal to no path
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            enlarge_buffers(self._socket)
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_WANT)
            self._socket.bind((address, port))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give up the port."""
        self._socket.close()

    def receive(self, most: int) -> list[tuple[bytes, Address]]:
        """Up to `most` datagrams that are there now, and where they came from."""
        datagrams: list[tuple[bytes, Address]] = []
        receive = self._socket.recvfrom
        try:
            while len(datagrams) < most:
                datagrams.append(receive(_MAX_DATAGRAM))
        except BlockingIOError:
            pass
        except OSError as error:
            self._counters.failed("udp_receive", error)
        self._counters.add(Count.UDP_IN, len(datagrams))
        return datagrams

    def send(self, datagrams: list[bytes], remote: Address) -> int:
        """Send `datagrams` to `remote` and say how many the kernel took; the others are counted and lost."""
        taken = 0
        send = self._socket.sendto
        for datagram in datagrams:
            try:
                send(datagram, remote)
                taken += 1
            except OSError as error:
                self._counters.failed("udp_send", error)
        self._counters.add(Count.UDP_OUT, taken)
        return taken
