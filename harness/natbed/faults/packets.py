"""Faults of single packets: damage on the way, and what an attacker adds who has read the wire.

All of it needs traffic: what is damaged, replayed or forged is ESP in UDP port 500 (the draft, 2) as it passes.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from natbed.link import interface_name
from natbed.nfqueue import Queue, QueueError
from natbed.node import Node

from .base import EFFECT_SECONDS, FaultError, FaultRecord, Moment, Scene, await_effect

_QUEUE = 4600
_IKE_PORT = 500
_MARKER = bytes(8)
_UDP_HEADER = 8  # octets
_ESP_SEQUENCE = slice(12, 16)  # behind the marker and the SPI, in octets of UDP data
_ETHERNET = 14
_ESP_IN_UDP = ["-p", "udp", "-m", "u32", "--u32", "0>>22&0x3C@8=0&&0>>22&0x3C@12=0"]
_ETH_P_IP = 0x0800
_PACKET_VNET_HDR, _VNET_HEADER = 15, 10  # virtio's header before each frame; its second octet is the kind of GSO


@dataclass(frozen=True, slots=True)
class MarkerDamage:
    """Some packets of ESP in UDP lose their marker: its 8 octets of zero become others, as by an IPsec-aware NAT.

    `router` should not be a NAT. The receiver takes them for IKE.
    """

    router: str
    count: int = 20

    def strike(self, scene: Scene) -> FaultRecord:
        """Damage them. Raises `FaultError` where too few pass within `EFFECT_SECONDS`."""
        return _damage(self, scene.lab[self.router], self.count, _without_marker, "lost their marker")


@dataclass(frozen=True, slots=True)
class ChecksumDamage:
    """Some packets of ESP in UDP get a wrong UDP checksum, as by a broken NAT; the receiver's kernel drops them.

    `router` should not be a NAT: one that tracks connections translates no packet with a wrong checksum.
    """

    router: str
    count: int = 20

    def strike(self, scene: Scene) -> FaultRecord:
        """Damage them. Raises `FaultError` where too few pass within `EFFECT_SECONDS`."""
        return _damage(self, scene.lab[self.router], self.count, _wrong_checksum, "got a wrong UDP checksum")


@dataclass(frozen=True, slots=True)
class Replay:
    """Packets of ESP in UDP to a host come once more, as they were, from somewhere on the way."""

    host: str
    router: str
    count: int = 20

    def strike(self, scene: Scene) -> FaultRecord:
        """Replay them. Raises `FaultError` where too few pass, or they do not come a second time."""
        moment = Moment()
        arrived = _inject(scene, self.host, self.router, self.count, lambda data, _: data, times=2)
        happened = f"{self.count} packets to {self.host} were replayed"
        return moment.record(self, happened, host=self.host, arrived=arrived)


@dataclass(frozen=True, slots=True)
class Forgery:
    """Packets with the peer's address, the marker, a true SPI and later sequence numbers come to a host.

    All that is wrong with them is that nobody with the keys has made them.
    """

    host: str
    router: str
    count: int = 20

    def strike(self, scene: Scene) -> FaultRecord:
        """Forge them. Raises `FaultError` where too few pass that could be imitated, or they do not arrive."""
        moment = Moment()
        arrived = _inject(scene, self.host, self.router, self.count, _later, times=1)
        return moment.record(self, f"{self.count} packets to {self.host} were forged", host=self.host, arrived=arrived)


# damage


def _damage(
    fault: MarkerDamage | ChecksumDamage, node: Node, count: int, change: Callable[[bytes], bytes], what: str
) -> FaultRecord:
    moment = Moment()
    rule = ["PREROUTING", *_ESP_IN_UDP, "-j", "NFQUEUE", "--queue-num", str(_QUEUE)]
    damaged = 0
    try:
        with Queue(node, _QUEUE) as queue:
            node.run(["iptables", "-t", "raw", "-I", *rule])
            try:
                until = time.monotonic() + EFFECT_SECONDS
                while damaged < count and (left := until - time.monotonic()) > 0:
                    for packet in queue.receive(left):
                        queue.accept(packet, payload=change(packet.payload) if damaged < count else None)
                        damaged += damaged < count
            finally:
                node.run(["iptables", "-t", "raw", "-D", *rule])
                while late := queue.receive(0):
                    for packet in late:
                        queue.accept(packet)
    except QueueError as error:
        raise FaultError(str(error)) from error
    if damaged < count:
        raise FaultError(f"only {damaged} of {count} packets of ESP in UDP passed {node.name} in {EFFECT_SECONDS:g} s")
    return moment.record(fault, f"{count} packets {what}", router=node.name, damaged=damaged)


def _without_marker(packet: bytes) -> bytes:
    start = _udp(packet) + _UDP_HEADER
    return with_checksum(packet[:start] + b"\xff" * len(_MARKER) + packet[start + len(_MARKER) :])


def _wrong_checksum(packet: bytes) -> bytes:
    at = _udp(packet) + 6
    (checksum,) = struct.unpack_from("!H", with_checksum(packet), at)
    wrong = checksum ^ 0x5555 or 0x5555  # 0 would be none
    return packet[:at] + wrong.to_bytes(2, "big") + packet[at + 2 :]


def with_checksum(packet: bytes) -> bytes:
    """An IPv4 packet with the right UDP checksum (RFC 768)."""
    start = _udp(packet)
    segment = packet[start : start + 6] + bytes(2) + packet[start + _UDP_HEADER :]
    covered = packet[12:20] + struct.pack("!HH", socket.IPPROTO_UDP, len(segment)) + segment
    covered += bytes(len(covered) % 2)
    checksum = -sum(struct.unpack(f"!{len(covered) // 2}H", covered)) % 0xFFFF or 0xFFFF
    return packet[: start + 6] + checksum.to_bytes(2, "big") + segment[_UDP_HEADER:]


def _udp(packet: bytes) -> int:
    """Where the UDP header begins."""
    return (packet[0] & 0x0F) * 4


# replays and forgeries


def _inject(scene: Scene, host: str, router: str, count: int, change: Callable[[bytes, int], bytes], times: int) -> int:
    """Overhear at the router what passes to the host, and send it again from there, changed.

    How many came to the host `times` times, which must be all.
    """
    node, relay = scene.lab.host(host), scene.lab[router]
    public = scene.lab.scenario.hosts_planned[host].public
    with _listening(node, interface_name(host, 0)) as arriving, _listening(relay) as passing:
        wire = relay.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        with wire:
            packets = _overhear(passing, public, count, router)
            sent = [_rebuilt(packet, change, number) for number, packet in enumerate(packets)]
            came = dict.fromkeys((_data(packet) for packet in sent), 0)
            for packet in sent:
                wire.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

            def missing() -> str:
                for packet in _packets(arriving):
                    data = _data(packet)
                    if data in came:
                        came[data] += 1
                late = sum(number < times for number in came.values())
                return f"{late} of {count} packets did not come to {host}" if late else ""

            await_effect(missing)
    return len(came)


def _overhear(passing: socket.socket, address: str, count: int, where: str) -> list[bytes]:
    wanted = socket.inet_aton(address)
    found: list[bytes] = []
    until = time.monotonic() + EFFECT_SECONDS
    while len(found) < count:
        left = until - time.monotonic()
        if left <= 0 or not select.select([passing], [], [], left)[0]:
            raise FaultError(f"only {len(found)} of {count} packets of ESP in UDP for {address} passed {where}")
        found += [packet for packet in _packets(passing) if packet[16:20] == wanted]
    return found[:count]


@contextlib.contextmanager
def _listening(node: Node, interface: str = "") -> Iterator[socket.socket]:
    """A copy of every IPv4 packet that comes to the node from now on, by that interface or any."""
    made = node.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP)))
    with made:
        made.setsockopt(263, _PACKET_VNET_HDR, 1)  # SOL_PACKET
        made.setblocking(False)
        if interface:
            made.bind((interface, _ETH_P_IP))
        for _ in _frames(made):  # what came before has no such header
            pass
        yield made


def _packets(listening: socket.socket) -> Iterator[bytes]:
    """What waits there of ESP in UDP port 500, but for super-packets, which are several."""
    for frame in _frames(listening):
        packet = frame[_VNET_HEADER + _ETHERNET :]
        packet = packet[: int.from_bytes(packet[2:4], "big")]
        marked = packet[9] == socket.IPPROTO_UDP and _data(packet).startswith(_MARKER)
        if frame[1] == 0 and marked and _IKE_PORT in struct.unpack_from("!2H", packet, _udp(packet)):
            yield packet


def _frames(listening: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield listening.recv(1 << 17)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # a super-packet of a kind that virtio has no name for
                raise


def _data(packet: bytes) -> bytes:
    return packet[_udp(packet) + _UDP_HEADER :]


def _rebuilt(packet: bytes, change: Callable[[bytes, int], bytes], number: int) -> bytes:
    start = _udp(packet) + _UDP_HEADER
    return with_checksum(packet[:start] + change(packet[start:], number))  # a link's sender may leave the sum undone


def _later(data: bytes, number: int) -> bytes:
    sequence = int.from_bytes(data[_ESP_SEQUENCE], "big") + 1000 + number
    return data[: _ESP_SEQUENCE.start] + (sequence & 0xFFFFFFFF).to_bytes(4, "big") + data[_ESP_SEQUENCE.stop :]
