"""Do packets of every size pass, and does path MTU discovery work through a tunnel (RFC 1191; the draft, 3.2).

What a path takes is learned as a program would learn it: a datagram of Ethernet size with DF set is refused, by the
kernel itself where the tunnel begins here, by an ICMP message of the gateway where it begins there, and the refusal
names the MTU. Then a datagram that just fits must arrive whole with DF set, one that is an octet larger must be refused
with the same MTU, and larger ones without DF must arrive whole, in fragments. Pings do the same.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from dataclasses import dataclass

import msgspec

from .flows import End, Flow, FlowError, ping, random_with_pattern, remaining, run_flow

ETHERNET = 1500  # octets of an IP packet
HEADERS = 28  # octets of IPv4 and UDP, or of IPv4 and ICMP echo
_SMALL = 64  # octets of data
_WITHOUT_DF = (ETHERNET - HEADERS, 4000)  # octets of data
_PINGS = 2

_IP_MTU_DISCOVER, _IP_RECVERR = 10, 11  # linux/in.h
_DONT, _PROBE = 0, 3  # IP_PMTUDISC_*: without DF; with DF, whatever has been learned before
_ERROR = struct.Struct("=IBBBBII")  # struct sock_extended_err: errno, origin, type, code, pad, info, data
_LOCAL = 1  # its origin; 2 is ICMP
_OFFENDER = slice(_ERROR.size + 4, _ERROR.size + 8)  # the address in the struct sockaddr_in that follows it


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a datagram was not sent on: the MTU that it should have kept to, in octets, and who said so."""

    mtu: int
    by: str


_NO_REFUSAL = Refusal(ETHERNET, "nobody")


def check_sizes(begin: End, end: End, deadline: float, *, protected: bool = True, back: bool = False) -> list[Flow]:
    """UDP and pings of all sizes from `begin`, each kind within `deadline` seconds.

    A `protected` path must have a smaller MTU than Ethernet. With `back` the far end answers with UDP of all sizes, to
    where they came from: so its side of the path is looked at where it may not begin.
    """
    found = _NO_REFUSAL

    def run() -> dict[str, object]:
        nonlocal found
        until = time.monotonic() + deadline
        with end.open(socket.SOCK_DGRAM) as far, begin.open(socket.SOCK_DGRAM) as near:
            near.connect((end.seen, far.getsockname()[1]))
            peer = _arrives(near, far, _SMALL, until)
            if not back and peer[0] != begin.seen:
                raise FlowError(f"a datagram came from {peer[0]}")
            found = _judge(near, far, protected, until)
            if back:
                far.connect(peer)
                _judge(far, near, protected, until)
        return {"mtu": found.mtu, "learned_from": found.by}

    flows = [run_flow("udp sizes", begin, end, run)]
    if flows[0].passed:
        fits = found.mtu - HEADERS
        for octets, fragment in ((fits, False), (fits + 1, True)):
            flow = ping(begin, end, _PINGS, deadline, octets=octets, fragment=fragment)
            flows.append(msgspec.structs.replace(flow, kind="ping sizes", octets=octets))
    return flows


def _judge(sender: socket.socket, receiver: socket.socket, protected: bool, until: float) -> Refusal:
    """What the way from a connected socket to another takes; `FlowError` for a packet that meets another fate."""
    sender.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    found = _with_df(sender, receiver, ETHERNET - HEADERS, until) or _NO_REFUSAL
    if protected and found is _NO_REFUSAL:
        raise FlowError(
            f"a packet of {ETHERNET} octets with DF arrived: with what IPsec adds, no Ethernet takes it whole"
        )
    if found.mtu > ETHERNET:
        raise FlowError(f"{found.by} refuses a packet of {ETHERNET} octets and says that the MTU is {found.mtu}")
    fits = found.mtu - HEADERS
    if refusal := _with_df(sender, receiver, fits, until):
        raise FlowError(f"{refusal.by} refuses a packet of {found.mtu} octets, the MTU that {found.by} had named")
    refusal = _with_df(sender, receiver, fits + 1, until)
    if refusal is None:
        raise FlowError(f"a packet of {found.mtu + 1} octets with DF arrived, though the MTU is {found.mtu}")
    if refusal.mtu != found.mtu:
        raise FlowError(f"the MTU is {found.mtu} first, then {refusal.by} says {refusal.mtu}")
    sender.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DONT)
    for octets in (fits + 1, *_WITHOUT_DF):
        _arrives(sender, receiver, octets, until)
    return found


def _arrives(sender: socket.socket, receiver: socket.socket, octets: int, until: float) -> tuple[str, int]:
    """Send a datagram and wait until it has come whole: from where. Late ones before it are passed over."""
    data = random_with_pattern(octets)
    sender.send(data)
    while True:
        receiver.settimeout(remaining(until, f"a datagram of {octets} octets did not arrive"))
        try:
            arrived, source = receiver.recvfrom(1 << 16)
        except TimeoutError:
            continue
        if arrived == data:
            return str(source[0]), int(source[1])


def _with_df(sender: socket.socket, receiver: socket.socket, octets: int, until: float) -> Refusal | None:
    """Send a datagram with DF set and wait for its fate: the refusal, or None once it has come whole."""
    sender.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PROBE)
    data = random_with_pattern(octets)
    try:
        sender.send(data)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
    poll = select.poll()
    poll.register(sender, 0)  # for POLLERR, which needs no asking for
    poll.register(receiver, select.POLLIN)
    while True:
        left = remaining(until, f"a datagram of {octets} octets with DF neither arrived nor was refused")
        for descriptor, _ in poll.poll(left * 1000):
            if descriptor == sender.fileno():
                return _refusal(sender)
            if receiver.recv(1 << 16) == data:
                return None


def _refusal(sender: socket.socket) -> Refusal:
    """The error that waits at a socket (ip(7), IP_RECVERR). Raises `FlowError` for one of another kind."""
    _, ancillary, _, _ = sender.recvmsg(1 << 16, 512, socket.MSG_ERRQUEUE)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR):
            number, origin, _, _, _, mtu, _ = _ERROR.unpack_from(data)
            by = "the host itself" if origin == _LOCAL else socket.inet_ntoa(data[_OFFENDER])
            if number != errno.EMSGSIZE:
                raise FlowError(f"{by}: {os.strerror(number)}")
            return Refusal(mtu, by)
    raise FlowError("the kernel reports an error and does not say which")
