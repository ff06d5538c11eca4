"""The short way of a packet that comes alone, so that somebody waits for it or for what answers it.

A processor that was idle, or busy with others, has nothing of us in its caches: each function that is called and each
object that is touched is memory to be fetched first, and takes several times as long as in a loop. So one function a
direction does all that such a packet usually needs; for whatever is unusual it does nothing, and the long way of
`outbound` or `inbound` is taken, which knows everything. What is usual is a packet of a flow like one that came before.
"""

from __future__ import annotations

from collections.abc import Callable

from ..esp.sa import Drop
from ..messages import Mode
from ..wire.ip import TCP, WITH_PORTS, WITHOUT_OPTIONS
from ..wire.udp import ESP_MARKER
from .counters import Count, Counters
from .keepalive import Keepalives
from .sadb import Address, Inbound, Outbound, SaDatabase
from .tun import Tun
from .udp_socket import UdpSocket

_MARKER = len(ESP_MARKER)
_HEAD = _MARKER + 4  # marker and SPI
_TUNNEL = Mode.TUNNEL  # a look-up of an enum's attribute costs, for each packet
_UDP_OUT = Count.UDP_OUT
_FRAGMENT = 0x3F  # in an IP header's seventh octet, and all of the eighth
_TCP_OCTETS, _FLAGS, _SYN = 40, 33, 0x02  # of headers without options; where the flags are in them
_MOST_FLOWS = 4096
_WITH_PORTS = {bytes((protocol,)): 24 for protocol in WITH_PORTS}  # where what makes a flow ends
_WITHOUT_PORTS = 20  # other protocols have there what differs from packet to packet


def flow_of(packet: bytes) -> bytes:
    """Protocol, addresses and, where it has them, ports of an IPv4 packet whose header has no options."""
    protocol = packet[9:10]
    return protocol + packet[12 : _WITH_PORTS.get(protocol, _WITHOUT_PORTS)]


class LoneSender:
    """The way out. `routes` are the SAs of tunnel mode that packets went by before, by their flow."""

    __slots__ = ("_keepalives", "_routes", "_sendto", "_values")

    def __init__(
        self, routes: dict[bytes, Outbound], udp: UdpSocket, counters: Counters, keepalives: Keepalives
    ) -> None:
        self._routes = routes
        self._sendto = udp.sendto
        self._values = counters.values
        self._keepalives = keepalives

    def send(self, packet: bytes) -> bool:
        """Seal and send an inner packet; whether that was done."""
        protocol = packet[9:10]
        outbound = self._routes.get(protocol + packet[12 : _WITH_PORTS.get(protocol, _WITHOUT_PORTS)])
        if (
            outbound is None
            or not outbound.is_unlimited
            or len(packet) > outbound.room
            or packet[0] != WITHOUT_OPTIONS
            or packet[6] & _FRAGMENT
            or packet[7]
            or (packet[9] == TCP and (len(packet) < _TCP_OCTETS or packet[_FLAGS] & _SYN))  # its MSS is to be looked at
        ):
            return False
        sa, remote = outbound.sa, outbound.remote
        sealed = sa.seal_one(packet)
        if sealed is None:
            return False
        try:
            self._sendto(ESP_MARKER + sealed, remote)
        except OSError:
            return False  # the long way seals it anew, and knows what to do about the error
        sa.packets += 1
        sa.octets += len(packet)
        self._values[_UDP_OUT] += 1
        self._keepalives.sent(remote)
        return True


class LoneReceiver:
    """The way in. `refuse` is told of what an SA refuses; `allowed` says what of an inner packet may go on."""

    __slots__ = ("_allowed", "_flows", "_refuse", "_sadb", "_tun")

    def __init__(
        self,
        sadb: SaDatabase,
        tun: Tun,
        refuse: Callable[[Inbound, Drop], None],
        allowed: Callable[[Inbound, list[bytes | Drop]], list[bytes]],
    ) -> None:
        self._sadb = sadb
        self._tun = tun
        self._refuse = refuse
        self._allowed = allowed
        self._flows = sadb.accepted  # went on unchanged before, and an SA's selectors stay while it lives

    def take(self, datagram: bytes, remote: Address, local: Address) -> bool:
        """Open and deliver the ESP packet in a UDP datagram; whether that was done."""
        if len(datagram) < _HEAD or not datagram.startswith(ESP_MARKER):
            return False
        inbound = self._sadb.find_inbound(int.from_bytes(datagram[_MARKER:_HEAD], "big"), remote, local)
        if inbound is None or inbound.is_limited or not inbound.told_used or inbound.mode is not _TUNNEL:
            return False
        inner = inbound.sa.open_one(datagram[_MARKER:])
        if isinstance(inner, Drop):
            self._refuse(inbound, inner)
            return True
        protocol = inner[9:10]
        if (
            self._flows.get(protocol + inner[12 : _WITH_PORTS.get(protocol, _WITHOUT_PORTS)]) is inbound
            and inner[0] == WITHOUT_OPTIONS
            and int.from_bytes(inner[2:4], "big") == len(inner)
            and not inner[6] & _FRAGMENT
            and not inner[7]
            and (inner[9] != TCP or (len(inner) >= _TCP_OCTETS and not inner[_FLAGS] & _SYN))
        ):
            self._tun.write_one(inner)
            return True
        for packet in self._allowed(inbound, [inner]):
            self._tun.write_one(packet)
            if inner[0] == WITHOUT_OPTIONS and inbound.mapping is None:
                self._remember(inner, inbound)
        return True

    def _remember(self, packet: bytes, inbound: Inbound) -> None:
        if len(self._flows) >= _MOST_FLOWS:
            self._flows.clear()
        self._flows[flow_of(packet)] = inbound
