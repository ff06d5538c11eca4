"""Steers the traffic of policies into the TUN device, and nothing else: routing rules, and a table of their own.

Rules of four priorities stand before the user's own: first those that let our own IKE and ESP pass by, then those of
the policies, then the same once more to refuse what found no TUN device, then an empty one where the first go on. So a
policy's remote network may include the peer itself, and when a plane is killed nothing goes out in clear until the next
one has come.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import socket
import struct

from ..esp.policy import netmask, parse_network
from ..messages import AddPolicy, Mode
from ..wire.ip import ESP, TCP, UDP
from . import netlink
from .counters import Counters
from .flows import TRANSLATED_PORTS
from .netlink import Rule

MARK = 0x45535055
"""The SO_MARK of our own sockets."""

_BYPASS, _POLICIES, _REFUSALS, _END = 210, 211, 212, 213  # priorities
_TABLES = 0x45000000  # of TUN device n: this and n
_TABLES_MASK = 0xFF000000
_UNBOUND = "0.0.0.0/32"  # what the kernel looks up for a socket that has no source address yet

_LAST_PORT = 65535
_SIOCGIFCONF = 0x8912
_IFREQ_OCTETS = 40
_MAX_INTERFACES = 256

_log = logging.getLogger("espthrunat.plane")


class Steering:
    """The rules and routes of one plane. Raises OSError if the kernel refuses the first of them."""

    def __init__(self, device: str, address: str, port: int, counters: Counters) -> None:
        self._device = device
        self._counters = counters
        self._table = _TABLES + socket.if_nametoindex(device)
        self._policies: dict[str, AddPolicy] = {}
        netlink.delete_our_rules(self._is_ours_or_stale)
        bypass = [
            # The mark lets out what we send. Strict rp_filter looks up the way back of what the peer sends, and there
            # is no mark then: it needs the other two, or it would take the TUN device for the right way and drop. With
            # ARP it looks up neither protocol nor port: strict rp_filter makes a peer on the same link unreachable,
            # unless its policy names a protocol. A peer behind a router is not concerned.
            Rule(_BYPASS, self._table, mark=MARK, goto=_END),
            Rule(_BYPASS, self._table, f"{address}/32", protocol=UDP, source_ports=(port, port), goto=_END),
            Rule(_BYPASS, self._table, f"{address}/32", protocol=ESP, goto=_END),
        ]
        try:
            for rule in (Rule(_END, self._table, nop=True), *bypass):
                netlink.add_rule(rule)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Take all rules away. The routes go with the device."""
        try:
            netlink.delete_our_rules(lambda table: table == self._table)
        except OSError as error:
            self._counters.failed("rule_delete", error)

    def add(self, policy: AddPolicy) -> None:
        """Steer the policy's traffic, in place of what it was steered by before. Raises ValueError for no network.

        What the kernel refuses is logged and counted.
        """
        self.remove(policy.policy)
        self._policies[policy.policy] = policy
        self._route(policy)
        for rule in self._rules(policy):
            try:
                netlink.add_rule(rule)
            except OSError as error:
                _log.error("policy %s: no rule for its traffic: %s", policy.policy, error)
                self._counters.failed("rule_add", error)

    def remove(self, name: str) -> None:
        """Steer a policy's traffic no more, if it was."""
        policy = self._policies.pop(name, None)
        if policy is None:
            return
        for rule in self._rules(policy):
            try:
                netlink.delete_rule(rule)
            except OSError as error:
                self._counters.failed("rule_delete", error)
        remote = policy.selector.remote
        others = [other for other in self._policies.values() if other.selector.remote == remote]
        if others:
            self._route(others[-1])
            return
        try:
            netlink.delete_route(remote, self._device, self._table)
        except OSError as error:
            self._counters.failed("route_delete", error)

    def _is_ours_or_stale(self, table: int) -> bool:
        """Whether a table is this device's, or of a device that is gone: its plane was killed."""
        if table & _TABLES_MASK != _TABLES:
            return False
        if table == self._table:
            return True
        try:
            socket.if_indextoname(table & ~_TABLES_MASK)
        except OSError:
            return True
        return False

    def _rules(self, policy: AddPolicy) -> list[Rule]:
        """Rules that name all that the selector does: what no rule names goes out as if there were no policy.

        Ports hide in later fragments that are forwarded; where a selector has ports, such fragments are not steered.
        """
        selector = policy.selector
        # A program that binds no address is looked up without one, and gets the route's preferred source.
        sources = [""] if parse_network(selector.local)[1] == 0 else [selector.local, _UNBOUND]
        remote_ports = [_ports(selector.remote_port)]
        if policy.mode is Mode.TRANSPORT and selector.remote_port and selector.protocol in (TCP, UDP):
            # Where several clients share an address, the kernel may see another port than the peer uses.
            remote_ports.append(TRANSLATED_PORTS)
        return [
            Rule(
                priority,
                self._table,
                source,
                selector.remote,
                protocol=selector.protocol,
                source_ports=_ports(selector.local_port),
                destination_ports=ports,
                refuse=priority == _REFUSALS,
            )
            for priority in (_REFUSALS, _POLICIES)
            for source in sources
            for ports in remote_ports
        ]

    def _route(self, policy: AddPolicy) -> None:
        remote, source = policy.selector.remote, policy.source or _own_address(policy.selector.local)
        try:
            try:
                netlink.replace_route(remote, self._device, self._table, source)
            except OSError as error:
                if error.errno != errno.EINVAL or not source:
                    raise
                # Better a source that no policy knows, so that packets are dropped, than a way around the tunnel.
                _log.warning("policy %s: %s is no address of this host", policy.policy, source)
                netlink.replace_route(remote, self._device, self._table, "")
        except OSError as error:
            _log.error("policy %s: no route to %s: %s", policy.policy, remote, error)
            self._counters.failed("route_add", error)


def _ports(port: int) -> tuple[int, int]:
    """The range of a rule for `port`. The kernel knows no rule for the last one: then for any, rather than for none."""
    return (port, port) if port < _LAST_PORT else (0, 0)


def _own_address(network: str) -> str:
    """An address of this host in `network`; "" if there is none, or if any will do."""
    number, bits = parse_network(network)
    if not bits:
        return ""
    for address in _own_addresses():
        if int.from_bytes(address, "big") & netmask(bits) == number:
            return socket.inet_ntoa(address)
    return ""


def _own_addresses() -> list[bytes]:
    """The IPv4 addresses of this host (netdevice(7), SIOCGIFCONF)."""
    room = bytearray(_IFREQ_OCTETS * _MAX_INTERFACES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, contextlib.suppress(OSError):
        pinned = (ctypes.c_char * len(room)).from_buffer(room)
        answer = fcntl.ioctl(control, _SIOCGIFCONF, struct.pack("iP", len(room), ctypes.addressof(pinned)))
        (octets,) = struct.unpack_from("i", answer)
        return [bytes(room[at + 20 : at + 24]) for at in range(0, octets, _IFREQ_OCTETS)]
    return []
