"""Measures a NAT from the inside, with a reflector outside: its behaviour in the terms of RFC 4787.

The tests are those of RFC 5780, 4: the same socket asks the reflector's addresses and ports in turn for its mapping,
and fresh ones ask to be answered from elsewhere for its filtering. Each trial has a socket of its own, since what
comes from outside unasked can leave traces in a NAT.
"""

from __future__ import annotations

import itertools
import secrets
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from .measured import Fingerprint
from .profile import Filtering, Hairpinning, Late, Mapping, Ports, ZeroChecksum
from .reflector import (
    ADDRESS,
    NO_CHECKSUM,
    PORT,
    QUESTION,
    REQUEST,
    Endpoint,
    Message,
    decode,
    without_checksum,
)

Open = Callable[[int], socket.socket]
"""Makes a UDP socket inside, bound to this port and an address of its own; port 0 is any."""

TRIES = 3
SAMPLES = 5  # mappings of which the ports are looked at
NEAR = 16  # ports are contiguous where each is at most so far above the one before: others use the NAT too
_HAIRPIN = b"nbhp"
_MOST = 2048  # octets that are read of a datagram


class FingerprintError(Exception):
    """Nothing can be measured: the reflector does not answer, or there is no way to it."""


@dataclass(frozen=True, slots=True)
class Reflection:
    """An answer: where the reflector saw the request come from, and its other address and port."""

    seen: Endpoint
    other: Endpoint
    rejected: bool


def ask(
    sock: socket.socket,
    server: Endpoint,
    patience: float,
    flags: int = 0,
    kind: int = REQUEST,
    transaction: bytes = b"",
) -> Reflection | None:
    """Ask until there is an answer, `TRIES` times, `patience` seconds each; None without one."""
    transaction = transaction or secrets.token_bytes(8)
    request = Message(kind=kind, flags=flags, transaction=transaction).encode()
    for _ in range(TRIES):
        sock.sendto(request, server)
        if (found := await_answer(sock, transaction, patience)) is not None:
            return found
    return None


def await_answer(sock: socket.socket, transaction: bytes, patience: float) -> Reflection | None:
    """The answer of a transaction, if it comes within so many seconds; what else arrives is left out."""
    until = time.monotonic() + patience
    while (left := until - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
        answer = decode(sock.recv(_MOST))
        if answer is not None and answer.transaction == transaction:
            return Reflection(answer.endpoint, answer.other, answer.rejected)
    return None


class Surveyor:
    """Measures one NAT. `patience` is how many seconds an answer may take.

    `inside` opens sockets of one inside host, `second` of another one, where there is one: without it, overloading
    of ports is not seen, and hairpinning only where the own address does not show. `say` is told of each step.
    """

    def __init__(
        self,
        inside: Open,
        server: Endpoint,
        patience: float,
        *,
        second: Open | None = None,
        other: str = "",
        say: Callable[[str], None] = lambda _step: None,
    ) -> None:
        """`other` is the reflector's other address, where it is not the one that it says itself. Sends nothing yet."""
        self._inside, self._second, self._say = inside, second, say
        self._server, self._patience = server, patience
        self._told = other
        self._other = ("", 0)
        self._sent: list[bytes] = []  # transactions whose answers were to be kept out

    def measure(self) -> Fingerprint:
        """All but the timeouts: some exchanges, and some waits of `patience`. Raises `FingerprintError`."""
        self._say("looking for the reflector")
        with self._inside(0) as sock:
            local, first = sock.getsockname(), self._must(sock, self._server)
            self._other = (self._told or first.other[0], first.other[1])
            self._say("mapping: one socket, several destinations")
            mapping, translated = self._mapping(sock, first)
        self._say("filtering: answers from elsewhere")
        filtering = self._filtering(translated)
        self._say("ports: what fresh sockets get")
        pairs, addresses = self._ports()
        ports = judge_ports(pairs)
        if ports is Ports.PRESERVED and self._overloads():
            ports = Ports.OVERLOADED
        self._say("hairpinning, checksums, late packets")
        return Fingerprint(
            inside=local[0],
            outside=first.seen[0],
            mapping=mapping,
            filtering=filtering,
            ports=ports,
            port_samples=tuple(pairs),
            addresses=tuple(sorted({first.seen[0], *addresses})),
            one_to_one=filtering is Filtering.ENDPOINT_INDEPENDENT and self._reachable(),
            hairpinning=self._hairpinning(),
            zero_checksum=self._zero_checksum(),
            late=self._late(),
        )

    def behaviour(self) -> tuple[Mapping, Filtering, Ports]:
        """Mapping, filtering and port assignment alone, which is what a lab asks before it relies on a NAT."""
        with self._inside(0) as sock:
            first = self._must(sock, self._server)
            self._other = (self._told or first.other[0], first.other[1])
            mapping, translated = self._mapping(sock, first)
        filtering = self._filtering(translated)
        ports = judge_ports(self._ports()[0])
        return mapping, filtering, Ports.OVERLOADED if ports is Ports.PRESERVED and self._overloads() else ports

    def _must(self, sock: socket.socket, server: Endpoint) -> Reflection:
        try:
            found = ask(sock, server, self._patience)
        except OSError as error:
            raise FingerprintError(f"{server[0]} port {server[1]}: {error.strerror}") from error
        if found is None:
            raise FingerprintError(f"{server[0]} port {server[1]} does not answer: is natbed reflector running there?")
        return found

    def _mapping(self, sock: socket.socket, first: Reflection) -> tuple[Mapping, bool]:
        """RFC 5780, 4.3; and whether anything is translated at all."""
        address, port = self._server
        other_address, other_port = self._other
        by_port = self._must(sock, (address, other_port)).seen
        by_address = self._must(sock, (other_address, port)).seen
        if {first.seen, by_port, by_address} == {sock.getsockname()}:
            return Mapping.NONE, False
        if first.seen == by_port == by_address:
            return Mapping.ENDPOINT_INDEPENDENT, True
        return Mapping.ADDRESS_DEPENDENT if first.seen == by_port else Mapping.ADDRESS_AND_PORT_DEPENDENT, True

    def _filtering(self, translated: bool) -> Filtering:
        """RFC 5780, 4.4. Both trials at once."""
        with self._inside(0) as everywhere, self._inside(0) as port_only:
            anybody = self._elsewhere(everywhere, ADDRESS | PORT)
            same_address = self._elsewhere(port_only, PORT)
            if self._came(everywhere, anybody):
                return Filtering.ENDPOINT_INDEPENDENT if translated else Filtering.NONE
            if self._came(port_only, same_address):
                self._sent.append(anybody)
                return Filtering.ADDRESS_DEPENDENT
        self._sent += [anybody, same_address]
        return Filtering.ADDRESS_AND_PORT_DEPENDENT

    def _elsewhere(self, sock: socket.socket, flags: int) -> bytes:
        """Ask for answers from elsewhere, and see that the reflector has been asked: by an answer to a last request."""
        transaction = secrets.token_bytes(8)
        self._must(sock, self._server)
        for _ in range(2):
            sock.sendto(Message(kind=REQUEST, flags=flags, transaction=transaction).encode(), self._server)
        return transaction

    def _came(self, sock: socket.socket, transaction: bytes) -> bool:
        return await_answer(sock, transaction, self._patience) is not None

    def _ports(self) -> tuple[list[tuple[int, int]], set[str]]:
        """Inside and outside port of fresh mappings, in order; and the outside addresses that they got."""
        with ExitStack() as stack:
            socks = [stack.enter_context(self._inside(0)) for _ in range(SAMPLES)]
            seen = [self._must(sock, self._server).seen for sock in socks]
            pairs = [(sock.getsockname()[1], port) for sock, (_, port) in zip(socks, seen, strict=True)]
            return pairs, {address for address, _ in seen}

    def _overloads(self) -> bool:
        """Whether two inside hosts with one port show as one outside."""
        if self._second is None:
            return False
        with self._inside(0) as one, self._second(one.getsockname()[1]) as two:
            first = self._must(one, self._server).seen
            # the answer may go to the first one: that is what an overloaded port does
            transaction = secrets.token_bytes(8)
            two.sendto(Message(kind=REQUEST, transaction=transaction).encode(), self._server)
            found = await_answer(two, transaction, self._patience) or await_answer(one, transaction, 0.05)
            return found is not None and found.seen == first

    def _reachable(self) -> bool:
        """Whether somebody outside can begin: an answer to a port of the outside address that was never used."""
        with self._inside(0) as speaker, self._inside(0) as silent:
            self._must(speaker, self._server)
            transaction = secrets.token_bytes(8)
            request = Message(
                kind=REQUEST,
                flags=ADDRESS | PORT,
                transaction=transaction,
                endpoint=("0.0.0.0", silent.getsockname()[1]),
            )
            speaker.sendto(request.encode(), self._server)
            if self._came(silent, transaction):
                return True
            self._sent.append(transaction)
            return False

    def _hairpinning(self) -> Hairpinning:
        """RFC 4787, 6: two sockets dial each other at their outside endpoints."""
        with self._inside(0) as one, (self._second or self._inside)(0) as two:
            ends = [(s, self._must(s, self._server).seen) for s in (one, two)]
            for _ in range(2):  # the second time both are let in, whatever the filtering
                one.sendto(_HAIRPIN, ends[1][1])
                two.sendto(_HAIRPIN, ends[0][1])
            until = time.monotonic() + self._patience
            while (left := until - time.monotonic()) > 0 and select.select([one], [], [], left)[0]:
                data, source = one.recvfrom(_MOST)
                if data == _HAIRPIN:
                    inside = source[1] == two.getsockname()[1] and source[0] != ends[1][1][0]
                    return Hairpinning.INTERNAL if inside else Hairpinning.EXTERNAL
        return Hairpinning.NONE

    def _zero_checksum(self) -> ZeroChecksum:
        """Both ways without a UDP checksum."""
        with self._inside(0) as sock:
            self._must(sock, self._server)
            without_checksum(sock)
            passed = ask(sock, self._server, self._patience, flags=NO_CHECKSUM) is not None
        return ZeroChecksum.FORWARDED if passed else ZeroChecksum.DROPPED

    def _late(self) -> Late | None:
        """Whether what was kept out was rejected; None where nothing was kept out."""
        if not self._sent:
            return None
        with self._inside(0) as sock:
            answers = [ask(sock, self._server, self._patience, kind=QUESTION, transaction=t) for t in self._sent]
        return Late.REJECTED if any(answer and answer.rejected for answer in answers) else Late.DROPPED


def judge_ports(pairs: Sequence[tuple[int, int]]) -> Ports:
    """Port assignment by (inside, outside) ports of mappings in the order in which they were made."""
    if all(inside == outside for inside, outside in pairs):
        return Ports.PRESERVED
    steps = [after - before for (_, before), (_, after) in itertools.pairwise(pairs)]
    # at the end of its range a NAT begins again, once
    strange = [step for step in steps if not 0 < step <= NEAR]
    wrapped = len(strange) == 1 and strange[0] < 0 and len(steps) > 2
    return Ports.CONTIGUOUS if not strange or wrapped else Ports.RANDOM


def source_towards(address: str) -> str:
    """The address from which the caller's namespace would send there. Raises OSError where it has no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))
        source: str = sock.getsockname()[0]
        return source


def opener(address: str) -> Open:
    """Opens sockets in the caller's own network namespace, at this address."""

    def make(port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.bind((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    return make
