"""recvmmsg(2): many datagrams that came singly, with one system call. The socket module does not know it."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import socket
import struct

import numpy as np

from .arrivals import SLOT_OCTETS, SLOTS, Arrival, Slots
from .sadb import Address

_CONTROL_OCTETS = 64
_MSG_DONTWAIT = 0x40
_SOCKADDR = np.dtype([("family", "=u2"), ("port", ">u2"), ("address", ">u4"), ("zero", "V8")])
_IOVEC = np.dtype([("base", "=u8"), ("octets", "=u8")])
# struct mmsghdr where pointers have 8 octets
_MMSGHDR = np.dtype(
    {
        "names": ["name", "name_octets", "iov", "iovs", "control", "control_octets", "flags", "octets"],
        "formats": ["=u8", "=u4", "=u8", "=u8", "=u8", "=u8", "=u4", "=u4"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56],
        "itemsize": 64,
    }
)
_CMSGHDR = np.dtype(
    {"names": ["octets", "level", "type", "value"], "formats": ["=u8", "=i4", "=i4", "=i4"], "offsets": [0, 8, 12, 16]}
)


class ManyReceiver:
    """Reads one socket into `slots`. Raises OSError (ENOSYS) where the system has no such call."""

    def __init__(self, sock: socket.socket, slots: Slots, gro: int) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        if struct.calcsize("P") != 8 or not hasattr(library, "recvmmsg"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._call = library.recvmmsg
        self._call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
        self._call.restype = ctypes.c_int
        self._fd = sock.fileno()
        self._slots = slots
        self._gro = gro
        self._names = np.zeros(SLOTS, _SOCKADDR)
        self._iovecs = np.zeros(SLOTS, _IOVEC)
        self._controls = np.zeros((SLOTS, _CONTROL_OCTETS), np.uint8)
        self._cmsgs = self._controls[:, : _CMSGHDR.itemsize].view(_CMSGHDR)[:, 0]
        self._messages = np.zeros(SLOTS, _MMSGHDR)
        memory = np.frombuffer(slots.octets, np.uint8).ctypes.data
        stride = len(slots.octets) // SLOTS
        number = np.arange(SLOTS, dtype=np.uint64)
        self._iovecs["base"] = memory + number * stride
        self._iovecs["octets"] = SLOT_OCTETS
        self._messages["name"] = self._names.ctypes.data + number * _SOCKADDR.itemsize
        self._messages["iov"] = self._iovecs.ctypes.data + number * _IOVEC.itemsize
        self._messages["iovs"] = 1
        self._messages["control"] = self._controls.ctypes.data + number * _CONTROL_OCTETS
        self._at = self._messages.ctypes.data

    def receive(self) -> list[Arrival]:
        """What is there now. Neighbours from one remote that are equally long are one arrival.

        Raises BlockingIOError if nothing is there, OSError for what else the kernel says.
        """
        # The kernel writes over these with what it used.
        self._messages["name_octets"] = _SOCKADDR.itemsize
        self._messages["control_octets"] = _CONTROL_OCTETS
        self._cmsgs["octets"] = 0
        count = self._call(self._fd, self._at, SLOTS, _MSG_DONTWAIT, None)
        if count < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        octets = self._messages["octets"][:count]
        cmsgs = self._cmsgs[:count]
        joined = (cmsgs["octets"] >= 20) & (cmsgs["level"] == socket.IPPROTO_UDP) & (cmsgs["type"] == self._gro)
        segments = np.where(joined, cmsgs["value"], octets)
        remotes = self._names["address"][:count].astype(np.uint64) << np.uint64(16) | self._names["port"][:count]
        differs = (octets[1:] != octets[:-1]) | (remotes[1:] != remotes[:-1]) | joined[1:] | joined[:-1]
        borders = [0, *(np.flatnonzero(differs) + 1).tolist(), count]
        arrivals = []
        for first, last in itertools.pairwise(borders):
            total = int(octets[first]) * (last - first)
            remote = _address(int(remotes[first]))
            arrivals.append(Arrival(self._slots, remote, first, last - first, total, int(segments[first])))
        return arrivals


def _address(remote: int) -> Address:
    return socket.inet_ntoa((remote >> 16).to_bytes(4, "big")), remote & 0xFFFF
