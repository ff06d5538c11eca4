"""Routes and routing rules in the kernel (rtnetlink), without the cost of starting a program for them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..esp.policy import parse_network

PROTOCOL = 145
"""Who made a route or a rule (`proto` of ip-rule(8)): this program. Nobody else is known to use the number."""

_NETLINK_ROUTE = 0
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_SETLINK, _IFLA_TXQLEN, _IFLA_GSO_MAX_SEGS = 19, 13, 40
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_REPLACE, _NLM_F_DUMP, _NLM_F_CREATE = 0x1, 0x4, 0x100, 0x300, 0x400
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 7, 15
_RT_TABLE_UNSPEC, _RT_SCOPE_LINK, _RTN_UNICAST = 0, 253, 1
_FRA_DST, _FRA_SRC, _FRA_GOTO, _FRA_PRIORITY, _FRA_FWMARK = 1, 2, 4, 6, 10
_FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL, _FRA_IP_PROTO, _FRA_SPORT_RANGE, _FRA_DPORT_RANGE = 15, 16, 21, 22, 23, 24
_FR_ACT_TO_TBL, _FR_ACT_GOTO, _FR_ACT_NOP, _FR_ACT_UNREACHABLE = 1, 2, 3, 7
_HEADER = struct.Struct("=IHHII")
_LINK_MESSAGE = struct.Struct("=BxHiII")
_ROUTE_MESSAGE = struct.Struct("=BBBBBBBBI")
_RULE_MESSAGE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_ANSWER_OCTETS = 1 << 17


@dataclass(frozen=True)
class Rule:
    """A rule of ip-rule(8): what it matches, and the table to look in then, or the priority to go on at.

    Networks are texts and "" for any; 0 is any protocol, port or mark; a port is a range, both ends in it. Without
    `goto`, and with `nop`, the rule is only a place to go to; with `refuse` it ends the search. `table` tells rules of
    several devices apart in any case.
    """

    priority: int
    table: int
    source: str = ""
    destination: str = ""
    mark: int = 0
    protocol: int = 0
    source_ports: tuple[int, int] = (0, 0)
    destination_ports: tuple[int, int] = (0, 0)
    goto: int = 0
    nop: bool = False
    refuse: bool = False


def add_rule(rule: Rule) -> None:
    """Raises ValueError for what is no network, OSError for what the kernel refuses."""
    _request(_RTM_NEWRULE, _NLM_F_CREATE, _rule_body(rule))


def delete_rule(rule: Rule) -> None:
    """Delete one such rule. Raises as `add_rule` does."""
    _request(_RTM_DELRULE, 0, _rule_body(rule))


def delete_our_rules(of_table: Callable[[int], bool]) -> None:
    """Delete the rules that carry `PROTOCOL` and a table that `of_table` says yes to. Raises OSError."""
    for body in list(_dump_rules()):
        attributes = dict(_attributes(body[_RULE_MESSAGE.size :]))
        if attributes.get(_FRA_PROTOCOL) != bytes([PROTOCOL]):
            continue
        (table,) = struct.unpack("=I", attributes.get(_FRA_TABLE, bytes(4)))
        if of_table(table):
            _request(_RTM_DELRULE, 0, body)


def replace_route(network: str, device: str, table: int, source: str) -> None:
    """Like `ip route replace NETWORK dev DEVICE table TABLE src SOURCE`, with "" for no source.

    Raises ValueError for what is no network, OSError for what the kernel refuses.
    """
    attributes = [(_RTA_PREFSRC, socket.inet_pton(socket.AF_INET, source))] if source else []
    _change_route(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, network, device, table, attributes)


def delete_route(network: str, device: str, table: int) -> None:
    """Like `ip route del NETWORK dev DEVICE table TABLE`. Raises ValueError and OSError as `replace_route` does."""
    _change_route(_RTM_DELROUTE, 0, network, device, table, [])


def set_queue(device: str, packets: int) -> None:
    """Like `ip link set DEVICE txqueuelen PACKETS`: an ioctl would ask for rights that a user namespace cannot give."""
    _set_link(device, _IFLA_TXQLEN, packets)


def set_segments(device: str, most: int) -> None:
    """Like `ip link set DEVICE gso_max_segs MOST`: how many segments a super-packet may have. Raises OSError."""
    _set_link(device, _IFLA_GSO_MAX_SEGS, most)


def _set_link(device: str, attribute: int, value: int) -> None:
    link = _LINK_MESSAGE.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(device), 0, 0)
    _request(_RTM_SETLINK, 0, link + _attribute(attribute, struct.pack("=I", value)))


def _rule_body(rule: Rule) -> bytes:
    attributes = [
        (_FRA_PRIORITY, struct.pack("=I", rule.priority)),
        (_FRA_TABLE, struct.pack("=I", rule.table)),
        (_FRA_PROTOCOL, bytes([PROTOCOL])),
    ]
    lengths = []
    for number, text in ((_FRA_DST, rule.destination), (_FRA_SRC, rule.source)):
        address, bits = parse_network(text) if text else (0, 0)
        lengths.append(bits)
        if bits:
            attributes.append((number, address.to_bytes(4, "big")))
    if rule.mark:
        attributes += [(_FRA_FWMARK, struct.pack("=I", rule.mark)), (_FRA_FWMASK, b"\xff\xff\xff\xff")]
    if rule.protocol:
        attributes.append((_FRA_IP_PROTO, bytes([rule.protocol])))
    for number, ports in ((_FRA_SPORT_RANGE, rule.source_ports), (_FRA_DPORT_RANGE, rule.destination_ports)):
        if ports[1]:
            attributes.append((number, struct.pack("=HH", *ports)))
    if rule.goto:
        attributes.append((_FRA_GOTO, struct.pack("=I", rule.goto)))
    chosen = ((rule.nop, _FR_ACT_NOP), (rule.goto, _FR_ACT_GOTO), (rule.refuse, _FR_ACT_UNREACHABLE))
    action = next((action for is_so, action in chosen if is_so), _FR_ACT_TO_TBL)
    header = _RULE_MESSAGE.pack(socket.AF_INET, *lengths, 0, _RT_TABLE_UNSPEC, 0, 0, action, 0)
    return header + b"".join(_attribute(number, value) for number, value in attributes)


def _change_route(
    kind: int, flags: int, network: str, device: str, table: int, attributes: list[tuple[int, bytes]]
) -> None:
    address, bits = parse_network(network)
    body = _ROUTE_MESSAGE.pack(socket.AF_INET, bits, 0, 0, _RT_TABLE_UNSPEC, PROTOCOL, _RT_SCOPE_LINK, _RTN_UNICAST, 0)
    attributes = [
        (_RTA_TABLE, struct.pack("=I", table)),
        (_RTA_DST, address.to_bytes(4, "big")),
        (_RTA_OIF, struct.pack("=I", socket.if_nametoindex(device))),
        *attributes,
    ]
    _request(kind, flags, body + b"".join(_attribute(number, value) for number, value in attributes))


def _attribute(number: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), number) + value + bytes(-len(value) % 4)


def _attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    while len(octets) >= _ATTRIBUTE.size:
        length, number = _ATTRIBUTE.unpack_from(octets)
        if length < _ATTRIBUTE.size:
            return
        yield number, octets[_ATTRIBUTE.size : length]
        octets = octets[length + -length % 4 :]


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | _NLM_F_REQUEST, 1, 0) + body


def _request(kind: int, flags: int, body: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as netlink:
        netlink.sendto(_message(kind, flags | _NLM_F_ACK, body), (0, 0))
        answer = netlink.recv(_ANSWER_OCTETS)
    _, answer_kind, *_ = _HEADER.unpack_from(answer)
    (code,) = struct.unpack_from("=i", answer, _HEADER.size)
    if answer_kind != _NLMSG_ERROR or code:
        raise OSError(-code, os.strerror(-code))


def _dump_rules() -> Iterator[bytes]:
    """The bodies of all IPv4 rules."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as netlink:
        body = _RULE_MESSAGE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        netlink.sendto(_message(_RTM_GETRULE, _NLM_F_DUMP, body), (0, 0))
        while True:
            answer = netlink.recv(_ANSWER_OCTETS)
            while answer:
                length, kind, *_ = _HEADER.unpack_from(answer)
                body = answer[_HEADER.size : length]
                answer = answer[length + -length % 4 :]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    raise OSError(-code, os.strerror(-code))
                yield body
