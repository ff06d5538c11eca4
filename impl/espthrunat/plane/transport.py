"""Transport mode (RFC 2406, 3.1.1): packets lose their IP header on the way out and get one on the way in.

Behind a NAT, addresses and ports are not those that the peer's checksums were made with (the draft, 5).
"""

from __future__ import annotations

from ..messages import Encapsulation
from ..wire.ip import (
    ICMP,
    ICMP_ERRORS,
    MAX_OCTETS,
    MIN_OCTETS,
    NO_PORT,
    TCP,
    UDP,
    IpHeader,
    adjusted,
    build_ipv4,
    checksum,
    ones_sum,
    parse_ipv4,
    ports_of,
)
from .counters import Count
from .flows import Flow, FlowKey, Flows
from .sadb import Inbound
from .super_packet import CHECKSUM_OFFSETS

_TCP_FLAGS = 13
_ICMP_OCTETS = 8
_ECHO_REPLY, _ECHO = 0, 8


class Refused(Exception):  # noqa: N818  it is an answer
    """A packet must not go on; `count` says what it counts as."""

    def __init__(self, count: Count, detail: str) -> None:
        super().__init__(detail)
        self.count = count


def arrived(inbound: Inbound, protocol: int, payload: bytes, flows: Flows) -> tuple[bytes, bool]:
    """The packet that the kernel gets for an authentic payload, and whether its checksum must not be checked.

    Raises Refused if the SA must not carry it, or the flow finds no place.
    """
    if len(payload) > MAX_OCTETS - MIN_OCTETS:
        raise Refused(Count.DROP_INNER_MALFORMED, f"{len(payload)} octets")
    remote = int.from_bytes(inbound.remote_address, "big")
    source_port, destination_port = ports_of(protocol, payload)
    header = IpHeader(
        remote, int.from_bytes(inbound.local_address, "big"), protocol, source_port, destination_port, True
    )
    if not inbound.selectors.matches_inbound(header):
        raise Refused(Count.DROP_INNER_SELECTOR, f"{header}")
    # Bare ESP met no NAT: the checksums are right, or the packet is damaged.
    translated = inbound.encapsulation is Encapsulation.UDP
    if protocol == ICMP:
        payload = _icmp_arrived(inbound, payload, remote, flows)
    else:
        key = FlowKey(protocol, max(destination_port, 0), remote, max(source_port, 0))
        movable = translated and protocol in CHECKSUM_OFFSETS and source_port != NO_PORT
        port = flows.arrived(inbound.path, key, _tcp_flags(protocol, payload), translate=movable)
        if port is None:
            raise Refused(Count.DROP_FLOW_PORTS, f"{header}")
        if port != key.remote_port:
            payload = port.to_bytes(2, "big") + payload[2:]
    at = CHECKSUM_OFFSETS.get(protocol)
    unverified = translated and at is not None and len(payload) >= at + 2
    if unverified and at is not None:
        pseudo = inbound.remote_address + inbound.local_address + bytes((0, protocol)) + len(payload).to_bytes(2, "big")
        payload = payload[:at] + ones_sum(pseudo).to_bytes(2, "big") + payload[at + 2 :]
    return build_ipv4(inbound.remote_address, inbound.local_address, protocol, len(payload)) + payload, unverified


def flow_of(header: IpHeader, packet: bytes, flows: Flows) -> Flow | None:
    """The flow of a packet that the kernel sends, if a peer began one; of an ICMP error, that of its cause."""
    payload = packet[(packet[0] & 0x0F) << 2 :]
    if header.protocol != ICMP:
        ports = max(header.source_port, 0), max(header.destination_port, 0)
        key = FlowKey(header.protocol, ports[0], header.destination, ports[1])
        return flows.leaving(key, _tcp_flags(header.protocol, payload))
    if len(payload) < _ICMP_OCTETS:
        return None
    if payload[0] == _ECHO_REPLY:
        return flows.leaving(FlowKey(ICMP, 0, header.destination, int.from_bytes(payload[4:6], "big")))
    if payload[0] in ICMP_ERRORS:
        cause = _cause(payload)
        if cause is not None:
            # What was refused had come from there.
            return flows.peek(FlowKey(cause.protocol, cause.destination_port, cause.source, cause.source_port))
    return None


def leaving(header: IpHeader, packet: bytes, flow: Flow | None, encapsulation: Encapsulation) -> bytes:
    """What ESP carries of a packet that the kernel sends."""
    payload = packet[(packet[0] & 0x0F) << 2 :]
    if flow is not None and flow.port != flow.key.remote_port:
        port = flow.port.to_bytes(2, "big")
        if header.protocol != ICMP:
            payload = payload[:2] + port + payload[4:]
        elif payload[0] == _ECHO_REPLY:
            payload = _with_identifier(payload, flow.port)
        else:
            at = _ICMP_OCTETS + ((payload[_ICMP_OCTETS] & 0x0F) << 2)
            payload = _with_checksum(payload[:at] + port + payload[at + 2 :])
    if header.protocol == UDP and encapsulation is Encapsulation.UDP and len(payload) >= _ICMP_OCTETS:
        payload = payload[:6] + b"\0\0" + payload[8:]  # the draft, 5: the peer could not check it
    return payload


def _icmp_arrived(inbound: Inbound, payload: bytes, remote: int, flows: Flows) -> bytes:
    if len(payload) < _ICMP_OCTETS:
        return payload
    if payload[0] == _ECHO:
        identifier = int.from_bytes(payload[4:6], "big")
        port = flows.arrived(inbound.path, FlowKey(ICMP, 0, remote, identifier))
        if port is None:
            raise Refused(Count.DROP_FLOW_PORTS, f"echo request with identifier {identifier}")
        return payload if port == identifier else _with_identifier(payload, port)
    if payload[0] in ICMP_ERRORS:
        cause = _cause(payload)
        if cause is not None:
            return _error_for_the_kernel(inbound, payload, cause, remote, flows)
    return payload


def _error_for_the_kernel(inbound: Inbound, payload: bytes, cause: IpHeader, remote: int, flows: Flows) -> bytes:
    """An ICMP error that quotes our packet as the peer got it, in terms of addresses and ports that our kernel used."""
    key = FlowKey(cause.protocol, cause.source_port, remote, cause.destination_port)
    port = flows.port_of_peer(inbound.path, key)
    quoted = payload[_ICMP_OCTETS:]
    at = (quoted[0] & 0x0F) << 2
    header = quoted[:10] + b"\0\0" + inbound.local_address + inbound.remote_address + quoted[20:at]
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    body = quoted[at : at + 2] + port.to_bytes(2, "big") + quoted[at + 4 :]
    return _with_checksum(payload[:_ICMP_OCTETS] + header + body)


def _cause(payload: bytes) -> IpHeader | None:
    """The header of the TCP or UDP packet that an ICMP error quotes (RFC 792)."""
    quoted = payload[_ICMP_OCTETS:]
    if len(quoted) < MIN_OCTETS:
        return None
    # A quotation is cut off somewhere, but says how long the packet was.
    header = parse_ipv4(quoted[:2] + len(quoted).to_bytes(2, "big") + quoted[4:])
    return header if header is not None and header.protocol in (TCP, UDP) and header.source_port != NO_PORT else None


def _with_identifier(payload: bytes, identifier: int) -> bytes:
    old_checksum, old = int.from_bytes(payload[2:4], "big"), int.from_bytes(payload[4:6], "big")
    new_checksum = adjusted(old_checksum, old, identifier)
    return payload[:2] + new_checksum.to_bytes(2, "big") + identifier.to_bytes(2, "big") + payload[6:]


def _with_checksum(payload: bytes) -> bytes:
    payload = payload[:2] + b"\0\0" + payload[4:]
    return payload[:2] + checksum(payload).to_bytes(2, "big") + payload[4:]


def _tcp_flags(protocol: int, payload: bytes) -> int:
    return payload[_TCP_FLAGS] if protocol == TCP and len(payload) > _TCP_FLAGS else 0
