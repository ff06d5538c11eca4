"""NFQUEUE: packets of a node are held, let go in any order, changed, dropped, and none is lost unnoticed."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from two_nodes import CLIENT, SERVER, Nodes

from natbed.nfqueue import NUMBERS, Packet, Queue, QueueError
from natbed.node import Node

pytestmark = pytest.mark.usefixtures("isolated")

NUMBER = 7
PORT = 4500
RULE = f"iptables -t raw -A PREROUTING -i wan -p udp --dport {PORT}"


@contextlib.contextmanager
def queued(server: Node, *, length: int = 1 << 14, match: str = "") -> Iterator[Queue]:
    with Queue(server, NUMBER, length=length) as queue:
        server.run(f"{RULE} {match} -j NFQUEUE --queue-num {NUMBER}".split())
        yield queue


@contextlib.contextmanager
def sockets(nodes: Nodes) -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = nodes
    with server.call(udp) as receiver, client.call(udp) as sender:
        receiver.bind((SERVER[0], PORT))
        receiver.settimeout(5)
        sender.bind((CLIENT[0], 0))
        sender.connect((SERVER[0], PORT))
        yield sender, receiver


def udp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def nothing_waits(receiver: socket.socket) -> bool:
    receiver.setblocking(False)
    try:
        receiver.recv(10)
    except BlockingIOError:
        return True
    finally:
        receiver.settimeout(5)
    return False


def collect(queue: Queue, number: int) -> list[Packet]:
    found: list[Packet] = []
    until = time.monotonic() + 5
    while len(found) < number:
        assert time.monotonic() < until, f"{len(found)} of {number} packets were handed over"
        found += queue.receive(1.0)
    return found


def test_packets_are_held_whole_and_let_go_in_any_order(nodes: Nodes) -> None:
    with sockets(nodes) as (sender, receiver), queued(nodes[1]) as queue:
        sent = [bytes([number]) * 1400 for number in range(3)]
        for data in sent:
            sender.send(data)
        packets = collect(queue, 3)
        assert [packet.payload[28:] for packet in packets] == sent
        assert {packet.payload[12:16] for packet in packets} == {socket.inet_aton(CLIENT[0])}
        wan = nodes[1].call(lambda: socket.if_nametoindex("wan"))
        assert {(packet.inward, packet.outward) for packet in packets} == {(wan, 0)}
        assert queue.waiting() == 3
        assert nothing_waits(receiver)
        for packet in (packets[2], packets[0], packets[1]):
            queue.accept(packet)
        assert [receiver.recv(2000) for _ in range(3)] == [sent[2], sent[0], sent[1]]
        assert (queue.waiting(), queue.overruns().total) == (0, 0)


def test_a_dropped_packet_does_not_come(nodes: Nodes) -> None:
    with sockets(nodes) as (sender, receiver), queued(nodes[1]) as queue:
        sender.send(b"first")
        sender.send(b"second")
        first, second = collect(queue, 2)
        queue.drop(first)
        queue.accept(second)
        assert receiver.recv(10) == b"second"


def test_a_changed_packet_comes_changed_and_its_checksum_is_verified(nodes: Nodes) -> None:
    with sockets(nodes) as (sender, receiver), queued(nodes[1]) as queue:
        for _ in range(2):
            sender.send(b"data")
        damaged, changed = collect(queue, 2)
        queue.accept(damaged, payload=damaged.payload[:-1] + b"!")
        # a checksum of 0 is none (RFC 768)
        queue.accept(changed, payload=changed.payload[:26] + bytes(2) + changed.payload[28:-1] + b"?")
        assert receiver.recv(10) == b"dat?", "the other one's checksum was wrong"


def test_a_repeated_packet_meets_the_rules_again_with_its_mark(nodes: Nodes) -> None:
    with sockets(nodes) as (sender, receiver), queued(nodes[1], match="-m mark ! --mark 5") as queue:
        sender.send(b"data")
        (packet,) = collect(queue, 1)
        queue.repeat(packet, mark=5)
        assert receiver.recv(10) == b"data"
        assert queue.receive(0) == []


def test_a_super_packet_comes_in_its_segments_with_checksums(nodes: Nodes) -> None:
    segment = 1000
    with sockets(nodes) as (sender, receiver), queued(nodes[1]) as queue:
        sender.setsockopt(socket.IPPROTO_UDP, 103, segment)  # UDP_SEGMENT
        sender.send(bytes(3 * segment))
        packets = collect(queue, 3)
        for packet in packets:
            assert len(packet.payload) == 28 + segment
            pseudo = packet.payload[12:20] + struct.pack("!HH", 17, len(packet.payload) - 20)
            words = struct.unpack(f"!{(len(pseudo) + len(packet.payload) - 20) // 2}H", pseudo + packet.payload[20:])
            assert sum(words) % 0xFFFF == 0
            queue.accept(packet)
        assert [len(receiver.recv(2000)) for _ in range(3)] == [segment] * 3


def test_what_found_the_queue_full_is_counted(nodes: Nodes) -> None:
    with sockets(nodes) as (sender, receiver), queued(nodes[1], length=5) as queue:
        for _ in range(8):
            sender.send(b"data")
        assert len(collect(queue, 5)) == 5
        assert (queue.overruns().queue, queue.overruns().socket) == (3, 0)
        assert nothing_waits(receiver), "the kernel must not let them pass"


def test_a_verdict_on_what_is_gone_is_counted(nodes: Nodes) -> None:
    with sockets(nodes) as (sender, _), queued(nodes[1]) as queue:
        sender.send(b"data")
        (packet,) = collect(queue, 1)
        nodes[1].run(["ip", "link", "set", "wan", "down"])
        queue.accept(packet)
        assert queue.receive(5) == []
        assert queue.vanished == 1


def test_a_queue_has_one_owner(nodes: Nodes) -> None:
    with Queue(nodes[1], NUMBER):
        with pytest.raises(QueueError, match="server: queue 7: another program has bound it"), Queue(nodes[1], NUMBER):
            pass
        with Queue(nodes[0], NUMBER) as other:
            assert other.overruns().total == 0
    with Queue(nodes[1], NUMBER):
        pass
    with pytest.raises(QueueError, match="server: queue 7 is not bound"):
        Queue(nodes[1], NUMBER).receive(0)


def test_there_are_so_many_numbers(nodes: Nodes) -> None:
    with pytest.raises(ValueError, match="queue 65536: there are 0 to 65535"):
        Queue(nodes[1], len(NUMBERS))
