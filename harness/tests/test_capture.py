"""A capture holds every packet from its first moment to its last, as a real wire shows it, or says what it lacks."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_nodes import await_up

from natbed.capture import Capture, CaptureError, read_pcap
from natbed.lab import Lab
from natbed.node import Node
from natbed.topology_files import find

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node("client1")
    node.run(["ip", "link", "add", "wan", "type", "veth", "peer", "name", "far"])
    for command in (
        "ip address add 192.0.2.1/24 dev wan",
        "ip link set wan address 02:00:00:00:00:01",
        "ip link set wan up",
        "ip link set far up",
        "ip neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev wan",
    ):
        node.run(command.split())
    await_up(node, "wan")
    yield node
    node.terminate()


def udp_socket(node: Node) -> socket.socket:
    made = node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind(("192.0.2.1", 500))
    return made


def read_late(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let a capture that is not started yet read nothing before the event is set."""
    record, may_read = capture._record, threading.Event()
    monkeypatch.setattr(capture, "_record", lambda: may_read.wait() and record())
    return may_read


def payloads(path: Path) -> list[bytes]:
    """UDP payloads to port 4000."""
    frames = [frame.data for frame in read_pcap(path)]
    return [data[42:] for data in frames if data[23:24] == b"\x11" and data[36:38] == struct.pack("!H", 4000)]


def checksum_is_right(frame: bytes) -> bool:
    udp = frame[34:]
    pseudo = frame[26:34] + struct.pack("!HH", 17, len(udp))
    data = pseudo + udp + bytes(len(udp) % 2)
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    return sum(words) % 0xFFFF == 0


def test_not_one_packet_is_missing(node: Node, tmp_path: Path) -> None:
    with udp_socket(node) as sender, Capture(node, "wan", tmp_path / "wan.pcap") as capture:
        for number in range(5000):
            sender.sendto(struct.pack("!I", number), ("192.0.2.2", 4000))
    assert payloads(tmp_path / "wan.pcap") == [struct.pack("!I", number) for number in range(5000)]
    assert capture.summary.complete
    assert capture.summary.packets == len(read_pcap(tmp_path / "wan.pcap"))


def test_time_stamps_are_the_moments_of_passing(node: Node, tmp_path: Path) -> None:
    with udp_socket(node) as sender, Capture(node, "wan", tmp_path / "wan.pcap"):
        for _ in range(3):
            sender.sendto(b"x", ("192.0.2.2", 4000))
    times = [frame.nanoseconds for frame in read_pcap(tmp_path / "wan.pcap")]
    assert times == sorted(times)
    assert abs(times[0] - (tmp_path / "wan.pcap").stat().st_mtime_ns) < 10**9


def test_a_udp_train_is_cut_into_datagrams_with_right_checksums(node: Node, tmp_path: Path) -> None:
    train = os.urandom(1000 * 20 + 123)
    with udp_socket(node) as sender, Capture(node, "wan", tmp_path / "wan.pcap"):
        sender.sendmsg([train], [(socket.IPPROTO_UDP, 103, struct.pack("=H", 1000))], 0, ("192.0.2.2", 4000))
        sender.sendto(b"\xff", ("192.0.2.2", 4000))
    assert payloads(tmp_path / "wan.pcap") == [train[n : n + 1000] for n in range(0, len(train), 1000)] + [b"\xff"]
    frames = [frame.data for frame in read_pcap(tmp_path / "wan.pcap") if frame.data[23:24] == b"\x11"]
    assert all(checksum_is_right(frame) for frame in frames)
    assert [len(frame) - 14 for frame in frames] == [struct.unpack_from("!H", frame, 16)[0] for frame in frames]


def test_loopback_shows_each_packet_once(node: Node, tmp_path: Path) -> None:
    with (
        node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
        Capture(node, "lo", tmp_path / "lo.pcap"),
    ):
        sender.bind(("127.0.0.1", 4000))
        sender.sendto(b"once", ("127.0.0.1", 4000))
    assert payloads(tmp_path / "lo.pcap") == [b"once"]


def test_a_limit_ends_the_capture_and_is_no_complete_one(node: Node, tmp_path: Path) -> None:
    with udp_socket(node) as sender, Capture(node, "wan", tmp_path / "wan.pcap", limit=10) as capture:
        for _ in range(30):
            sender.sendto(b"bulk", ("192.0.2.2", 4000))
    assert (capture.summary.packets, capture.summary.limit_reached) == (10, True)
    assert len(read_pcap(tmp_path / "wan.pcap")) == 10
    assert not capture.summary.complete


@pytest.mark.usefixtures("isolated")
def test_fragments_are_as_they_passed_whatever_the_nat_makes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The NAT puts them together, and writes those that it sends on into the same memory."""
    client, server, public = ("192.168.1.11", 4000), ("203.0.113.18", 4000), "203.0.113.2"
    with Lab(find("A")(clients=1)) as lab:
        inside = lab["client1"].call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        outside = lab["server"].call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        capture = Capture(lab["nat"], "nat-eth0", tmp_path / "nat.pcap")
        may_read = read_late(capture, monkeypatch)
        with inside, outside, capture:
            inside.bind(client)
            outside.bind(server)
            inside.settimeout(10)
            outside.settimeout(10)
            outside.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: do not forbid fragments
            inside.sendto(b"where am I?", server)
            mapped = outside.recvfrom(100)[1]
            for number in range(50):
                outside.sendto(bytes([number]) * 3500, mapped)
                assert len(inside.recv(4000)) == 3500
            may_read.set()
    frames = [frame.data for frame in read_pcap(tmp_path / "nat.pcap")]
    sent_by_server = b"\x08\x00", socket.inet_aton(server[0])
    inbound = [data[14:] for data in frames if (data[12:14], data[26:30]) == sent_by_server]
    seen = [(*struct.unpack("!HxxHB", ip[2:9]), socket.inet_ntoa(ip[16:20])) for ip in inbound]
    more, ttl = 0x2000, 63
    assert seen == 50 * [
        (1500, more, ttl, public),
        (1500, more + 1480 // 8, ttl, public),
        (568, 2960 // 8, ttl, public),
    ]
    assert [{*ip[40:]} for ip in inbound] == [{number} for number in range(50) for _ in range(3)]


def test_what_passes_while_nobody_reads_is_kept(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Capture(node, "wan", tmp_path / "wan.pcap")
    may_read = read_late(capture, monkeypatch)
    sent = [struct.pack("!I", number) + bytes(1396) for number in range(3000)]  # more than a user's socket may hold
    with udp_socket(node) as sender, capture:
        for payload in sent:
            sender.sendto(payload, ("192.0.2.2", 4000))
        may_read.set()
    assert payloads(tmp_path / "wan.pcap") == sent
    assert capture.summary.complete


def test_memory_that_was_read_is_used_again(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natbed.capture_ring.BLOCKS", 2)
    path = tmp_path / "wan.pcap"
    sent = [bytes([number]) * 1400 for number in range(9)]
    with udp_socket(node) as sender, Capture(node, "wan", path) as capture:
        for number, payload in enumerate(sent):
            sender.sendto(payload, ("192.0.2.2", 4000))
            until = time.monotonic() + 10
            while path.stat().st_size < (number + 1) * 1400:
                assert time.monotonic() < until, f"only {path.stat().st_size} octets after {number + 1} datagrams"
                time.sleep(0.002)
    assert payloads(path) == sent
    assert capture.summary.complete


def test_where_memory_is_short_less_does(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Short(mmap.mmap):
        def __new__(cls, fileno: int, length: int) -> Short:
            asked.append(length >> 20)
            if length > 4 << 20:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return super().__new__(cls, fileno, length)

    monkeypatch.setattr("natbed.capture_ring.mmap.mmap", Short)
    with udp_socket(node) as sender, Capture(node, "wan", tmp_path / "wan.pcap") as capture:
        sender.sendto(b"x", ("192.0.2.2", 4000))
    assert asked == [16, 8, 4]
    assert payloads(tmp_path / "wan.pcap") == [b"x"]
    assert capture.summary.complete


def test_the_largest_super_packet_is_whole(node: Node, tmp_path: Path) -> None:
    """TCP hands over up to 64 kB at once; so does UDP to a train, of which the capture makes datagrams."""
    segment = 1472
    train = os.urandom(65507 // segment * segment)
    with udp_socket(node) as sender, Capture(node, "wan", tmp_path / "wan.pcap") as capture:
        sender.sendmsg([train], [(socket.IPPROTO_UDP, 103, struct.pack("=H", segment))], 0, ("192.0.2.2", 4000))
    assert b"".join(payloads(tmp_path / "wan.pcap")) == train
    assert capture.summary.complete


def test_a_frame_that_no_block_holds_is_marked_as_cut(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natbed.capture_ring.BLOCK", 8192)
    with udp_socket(node) as sender, Capture(node, "wan", tmp_path / "wan.pcap"):
        sender.sendmsg([bytes(14000)], [(socket.IPPROTO_UDP, 103, struct.pack("=H", 1400))], 0, ("192.0.2.2", 4000))
        sender.sendto(b"after it", ("192.0.2.2", 4000))
    cut, after = [frame for frame in read_pcap(tmp_path / "wan.pcap") if frame.data[23:24] == b"\x11"]
    assert (cut.truncated, after.truncated) == (True, False)
    assert 8000 < len(cut.data) < 8192


def test_what_the_kernel_dropped_is_counted(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natbed.capture_ring.BLOCKS", 1)
    capture = Capture(node, "wan", tmp_path / "wan.pcap")
    may_read = read_late(capture, monkeypatch)
    with udp_socket(node) as sender, capture:
        for _ in range(20):
            sender.sendmsg([bytes(60000)], [(socket.IPPROTO_UDP, 103, struct.pack("=H", 1400))], 0, ("192.0.2.2", 4000))
        may_read.set()
    missing = 20 - len(payloads(tmp_path / "wan.pcap")) / 43
    assert 0 < missing <= capture.summary.dropped
    assert not capture.summary.complete


def test_a_limit_hides_no_drops(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natbed.capture_ring.BLOCKS", 1)
    capture = Capture(node, "wan", tmp_path / "wan.pcap", limit=1)
    may_read = read_late(capture, monkeypatch)
    with udp_socket(node) as sender, capture:
        for _ in range(20):
            sender.sendmsg([bytes(60000)], [(socket.IPPROTO_UDP, 103, struct.pack("=H", 1400))], 0, ("192.0.2.2", 4000))
        may_read.set()
    assert (capture.summary.limit_reached, capture.summary.dropped > 0) == (True, True)


def test_a_missing_interface_is_named(node: Node, tmp_path: Path) -> None:
    with (
        pytest.raises(CaptureError, match=r"client1:nothing0: .*No such device"),
        Capture(node, "nothing0", tmp_path / "x.pcap"),
    ):
        pass


def test_an_interface_that_goes_away_breaks_the_capture(node: Node, tmp_path: Path) -> None:
    capture = Capture(node, "wan", tmp_path / "wan.pcap")
    capture.start()
    node.run(["ip", "link", "delete", "wan"])
    with pytest.raises(CaptureError, match=r"wan: .*went down or away"):
        capture.stop()


@pytest.mark.parametrize(("content", "reason"), [(b"", "not a pcap"), (b"\x4d\x3c\xb2\xa1" + bytes(30), "ends inside")])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.pcap").write_bytes(content)
    with pytest.raises(CaptureError, match=reason):
        read_pcap(tmp_path / "x.pcap")
