"""Delay, jitter, reordering, duplication, corruption and loss in Python, where the kernel has no netem."""

from __future__ import annotations

import collections
import contextlib
import heapq
import random
import select
import socket
import threading
import time
from types import TracebackType
from typing import Self

from natbed.link import Interface
from natbed.nfqueue import Packet, Queue, QueueError

from .base import Impairment, ImpairmentError
from .fragments import in_fragments

_FIRST_QUEUE = 4700
_ETHERTYPE_IPV4 = b"\x08\x00"
_SETTLE_SECONDS = 5.0  # for what is still held at the end to be let go


class Queueing:
    """Every IPv4 packet that comes to `receiver` by its interface waits here for its fate; at most one an interface.

    Choices are drawn in the packets' order from one generator, the same number for each packet. A copy is put on the
    link again at its sending end, and is met here again as one that has had its delay.
    """

    def __init__(self, sender: Interface, receiver: Interface, impairment: Impairment, mtu: int) -> None:
        """`mtu` is the link's, in octets."""
        self._sender = sender
        self._mtu = mtu
        self._receiver = receiver
        self._impairment = impairment
        self._queue = Queue(receiver.node, _FIRST_QUEUE + receiver.index)
        self._rule = ["-i", receiver.name, "-j", "NFQUEUE", "--queue-num", str(self._queue.number)]
        self._held: list[tuple[float, int, Packet, bytes | None, bool]] = []  # a heap, by the time when they are due
        self._copies: collections.Counter[int] = collections.Counter()  # on their way, by their hash
        self._ending = threading.Event()
        self._problem = ""
        self.counts: collections.Counter[str] = collections.Counter()
        self._thread = threading.Thread(target=self._work, name=f"{receiver.name} impairment", daemon=True)
        self.begin_anew()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._queue)
            self._wire = stack.enter_context(self._sender.node.call(self._packet_socket))
            self._thread.start()
            stack.callback(self._end)
            self._receiver.node.run(["iptables", "-t", "raw", "-A", "PREROUTING", *self._rule])
            stack.callback(self._receiver.node.run, ["iptables", "-t", "raw", "-D", "PREROUTING", *self._rule])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        overruns = 0
        try:
            with contextlib.suppress(QueueError):
                overruns = self._queue.overruns().total
        finally:
            self._stack.close()
        if kind is None and (overruns or self._problem):
            reason = self._problem or f"{overruns} packets were lost because the lab was too slow"
            raise ImpairmentError(f"{self._receiver.name}: {reason}")

    def begin_anew(self) -> None:
        """Make the same choices again, from the first on."""
        self._random = random.Random(self._impairment.seed)  # noqa: S311 - no secrets
        self._number = 0
        self.counts.clear()

    def _packet_socket(self) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.bind((self._sender.name, 0))
        return made

    def _end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._ending.is_set():
                self._let_go(time.monotonic())
                wait = min(max(self._held[0][0] - time.monotonic(), 0), 0.05) if self._held else 0.05
                if select.select([self._queue], [], [], wait)[0]:
                    for packet in self._queue.receive(0):
                        self._decide(packet)
            self._finish()
        except (QueueError, OSError) as error:
            self._problem = str(error)

    def _finish(self) -> None:
        """The rule is gone: let go what is here."""
        until = time.monotonic() + _SETTLE_SECONDS
        while packets := self._queue.receive(0):
            for packet in packets:
                self._queue.accept(packet)
            if time.monotonic() > until:
                break
        self._let_go(float("inf"))

    def _let_go(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            _, _, packet, changed, doubled = heapq.heappop(self._held)
            self._queue.accept(packet, payload=changed)
            if doubled:
                self._double(changed or packet.payload)

    def _decide(self, packet: Packet) -> None:
        key = hash(packet.payload)
        if self._copies[key]:
            self._copies[key] -= 1
            self._queue.accept(packet)
            return
        what, draw = self._impairment, self._random.random
        lost, doubled, damaged, overtakes = (
            draw() < share for share in (what.loss, what.duplicate, what.corrupt, what.reorder)
        )
        jitter, place = what.jitter * (2 * draw() - 1), draw()
        self._number += 1
        self.counts["packets"] += 1
        if lost or (what.every_nth and self._number % what.every_nth == 0):
            self.counts["lost"] += 1
            self._queue.drop(packet)
            return
        changed = _with_a_bit_changed(packet.payload, place) if damaged else None
        self.counts["corrupted"] += damaged
        self.counts["overtaking"] += overtakes
        due = packet.came if overtakes else packet.came + what.delay + jitter
        heapq.heappush(self._held, (due, packet.identifier, packet, changed, doubled))
        if overtakes:
            self._let_go(due)

    def _double(self, payload: bytes) -> None:
        self._copies[hash(payload)] += 1
        self.counts["doubled"] += 1
        frame = _octets(self._receiver.mac) + _octets(self._sender.mac) + _ETHERTYPE_IPV4
        for piece in in_fragments(payload, self._mtu):
            self._wire.send(frame + piece)


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _with_a_bit_changed(payload: bytes, place: float) -> bytes:
    """One bit behind the IP header is another; `place`, from 0 to 1, says which."""
    header = (payload[0] & 0x0F) * 4
    octet, bit = divmod(int(place * (len(payload) - header) * 8), 8)
    changed = bytearray(payload)
    if header + octet < len(changed):
        changed[header + octet] ^= 1 << bit
    return bytes(changed)
