"""The UDP socket gives and takes the same datagrams in trains, by recvmmsg and one by one."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from espthrunat.plane import bulk, recvmmsg
from espthrunat.plane.arrivals import Arrival
from espthrunat.plane.counters import Counters
from espthrunat.plane.sadb import Address
from espthrunat.plane.udp_socket import TooLongError, UdpSocket, segments_in_a_train

bulk.load()

LOOPBACK = "127.0.0.1"


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def receiver(counters: Counters) -> Iterator[UdpSocket]:
    try:
        made = UdpSocket(LOOPBACK, 4500, counters)
    except PermissionError:
        pytest.skip("needs CAP_NET_ADMIN, for SO_MARK")
    made.expects_bulk = True
    yield made
    made.close()


@pytest.fixture
def sender(counters: Counters) -> Iterator[UdpSocket]:
    try:
        made = UdpSocket(LOOPBACK, 4501, counters)
    except PermissionError:
        pytest.skip("needs CAP_NET_ADMIN, for SO_MARK")
    yield made
    made.close()


def received(sock: UdpSocket, count: int) -> list[tuple[bytes, Address]]:
    """Read until `count` datagrams are there, which the loopback device has delivered already."""
    found: list[tuple[bytes, Address]] = []
    while len(found) < count:
        arrivals = sock.receive()
        assert arrivals, f"only {len(found)} of {count} datagrams are there"
        for arrival in arrivals:
            datagrams = arrival.datagrams()
            assert len(datagrams) == arrival.count
            found += [(datagram, arrival.remote) for datagram in datagrams]
    assert not sock.receive()
    return found


def test_a_train_arrives_as_its_datagrams(sender: UdpSocket, receiver: UdpSocket, counters: Counters) -> None:
    datagrams = [os.urandom(1000) for _ in range(30)] + [b"last"]
    assert sender.send_train([b"".join(datagrams[:7]), b"".join(datagrams[7:])], 1000, 31, receiver.local) == 31
    (arrival,) = receiver.receive()
    assert (arrival.count, arrival.segment, arrival.remote) == (31, 1000, sender.local)
    assert arrival.datagrams() == datagrams
    assert arrival.datagrams(28) == datagrams[28:]
    assert (counters.values["udp_out"], counters.values["udp_in"]) == (31, 31)
    assert not [name for name in counters.values if name.startswith(("error", "fallback"))]


@pytest.mark.parametrize("trains", [True, False])
def test_datagrams_of_any_lengths_arrive_in_order(receiver: UdpSocket, counters: Counters, trains: bool) -> None:
    chance = random.Random(5)
    lengths = [chance.choice([0, 1, 8, 100, 100, 100, 1400, 1400, 60000]) for _ in range(100)]
    sender = UdpSocket(LOOPBACK, 4502, counters, trains=trains)
    datagrams = [chance.randbytes(length) for length in lengths]
    for begin in range(0, 100, 10):
        part = datagrams[begin : begin + 10]
        assert sender.send(part, receiver.local) == 10
        assert received(receiver, 10) == [(datagram, sender.local) for datagram in part]
    sender.close()


def test_more_than_a_train_holds_goes_in_several(sender: UdpSocket, receiver: UdpSocket) -> None:
    datagrams = [os.urandom(10) for _ in range(150)] + [os.urandom(40000) for _ in range(3)]
    assert sender.send(datagrams, receiver.local) == 153
    assert [datagram for datagram, _ in received(receiver, 153)] == datagrams


def test_many_that_come_singly_are_read_with_one_call(receiver: UdpSocket, counters: Counters) -> None:
    """From several remotes, of several lengths, with trains among them: nothing changes but the number of calls."""
    senders = [UdpSocket(LOOPBACK, port, counters) for port in (4511, 4512, 4513)]
    chance = random.Random(6)
    calls = 0
    real = recvmmsg.ManyReceiver.receive

    def receive(self: recvmmsg.ManyReceiver) -> object:
        nonlocal calls
        calls += 1
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recvmmsg.ManyReceiver, "receive", receive)
        for _ in range(5):
            expected: list[tuple[bytes, Address]] = []
            for number in range(60):
                sender = chance.choice(senders)
                if number % 20 == 19:
                    train = [chance.randbytes(500) for _ in range(5)]
                    sender.send_train([b"".join(train)], 500, 5, receiver.local)
                    expected += [(datagram, sender.local) for datagram in train]
                else:
                    datagram = chance.randbytes(chance.choice([0, 1, 300, 300, 300, 1200]))
                    sender.send([datagram], receiver.local)
                    expected.append((datagram, sender.local))
            assert received(receiver, len(expected)) == expected
    assert 0 < calls < 5 * 30
    for sender in senders:
        sender.close()


def test_one_datagram_is_read_alone_and_a_train_stays_together(
    sender: UdpSocket, receiver: UdpSocket, counters: Counters
) -> None:
    assert receiver.receive_one() is None
    sender.send([b"one"], receiver.local)
    sender.send([b""], receiver.local)
    assert receiver.receive_one() == (b"one", sender.local)
    assert receiver.receive_one() == (b"", sender.local)
    train = [bytes([number]) * 100 for number in range(20)]
    sender.send(train, receiver.local)
    sender.send([b"last"], receiver.local)
    for _ in range(2):
        assert receiver.receive_one() is None, "a train is for those who can take it"
    assert received(receiver, 21) == [(datagram, sender.local) for datagram in [*train, b"last"]]
    assert counters.values["udp_in"] == 23


def test_one_remotes_equal_datagrams_are_one_arrival(sender: UdpSocket, receiver: UdpSocket) -> None:
    for _ in range(2):  # the first time shows how they come
        datagrams = [os.urandom(700) for _ in range(40)]
        for datagram in datagrams:
            sender.send([datagram], receiver.local)
        arrivals: list[Arrival] = []
        while sum(arrival.count for arrival in arrivals) < 40:
            for arrival in receiver.receive():
                arrivals.append(arrival)
                number = sum(before.count for before in arrivals) - arrival.count
                assert arrival.datagrams() == datagrams[number : number + arrival.count]
    assert max(arrival.slots for arrival in arrivals) > 20


class Refusing:
    """A socket that does all but to send trains."""

    def __init__(self, real: socket.socket, code: int, *, also_singly: bool = False) -> None:
        self._real = real
        self._code = code
        self._also_singly = also_singly

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def sendmsg(self, *_: object) -> int:
        raise OSError(self._code, os.strerror(self._code))

    def sendto(self, datagram: bytes, remote: Address) -> int:
        if self._also_singly:
            raise OSError(errno.EMSGSIZE, "too long")
        return self._real.sendto(datagram, remote)


Refuse = Callable[..., None]


@pytest.fixture
def refuse(sender: UdpSocket) -> Iterator[Refuse]:
    real = sender._socket

    def refuse(code: int, **options: bool) -> None:
        sender._socket = Refusing(real, code, **options)  # type: ignore[assignment]

    yield refuse
    sender._socket = real


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
def test_what_cannot_go_as_a_train_goes_singly(
    sender: UdpSocket, receiver: UdpSocket, counters: Counters, refuse: Refuse, code: int
) -> None:
    """EIO: the device cannot do checksums, and will not learn it."""
    refuse(code)
    datagrams: Sequence[bytes] = [os.urandom(100) for _ in range(9)] + [b"x"]
    for _ in range(3):
        assert sender.send_train([b"".join(datagrams)], 100, 10, receiver.local) == 10
        assert [datagram for datagram, _ in received(receiver, 10)] == datagrams
    assert counters.values["fallback_udp_gso"] == (code == errno.EIO)


@pytest.mark.draft("WIRE-6")
@pytest.mark.parametrize("code", [errno.EMSGSIZE, errno.EINVAL], ids=["newer kernels", "older kernels"])
def test_what_is_too_long_for_its_path_is_said_so(sender: UdpSocket, refuse: Refuse, code: int) -> None:
    refuse(code, also_singly=True)
    with pytest.raises(TooLongError):
        sender.send_train([bytes(300)], 100, 3, (LOOPBACK, 9))
    with pytest.raises(TooLongError):
        sender.send([bytes(100)], (LOOPBACK, 9))
    assert sender.send_in_fragments(bytes(100), (LOOPBACK, 9)) == 0


def test_other_errors_cost_what_was_to_be_sent(sender: UdpSocket, counters: Counters, refuse: Refuse) -> None:
    refuse(errno.ENETUNREACH)
    assert sender.send_train([bytes(300)], 100, 3, (LOOPBACK, 9)) == 0
    assert counters.values["error_udp_send_ENETUNREACH"] == 3


def test_a_train_fits_in_one_datagram_whatever_the_path() -> None:
    for mtu in (576, 1280, 1500, 9000, 65535):
        assert segments_in_a_train(mtu) * (mtu - 28) <= 65507
    assert [segments_in_a_train(mtu) for mtu in (28, 576, 1500, 9000)] == [64, 64, 44, 7]
