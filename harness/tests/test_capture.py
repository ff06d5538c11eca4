"""A capture holds every packet from its first moment to its last, as a real wire shows it, or says what it lacks."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_nodes import await_up

from natbed.capture import Capture, CaptureError, read_pcap
from natbed.node import Node

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


def test_what_the_kernel_dropped_is_counted(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natbed.capture._BUFFER", 2000)
    with udp_socket(node) as sender, Capture(node, "wan", tmp_path / "wan.pcap") as capture:
        for _ in range(20):
            sender.sendmsg([bytes(60000)], [(socket.IPPROTO_UDP, 103, struct.pack("=H", 1400))], 0, ("192.0.2.2", 4000))
    assert capture.summary.dropped > 0
    assert not capture.summary.complete


def test_a_limit_hides_no_drops(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natbed.capture._BUFFER", 2000)
    capture = Capture(node, "wan", tmp_path / "wan.pcap", limit=1)
    monkeypatch.setattr(capture, "_record", lambda: None)  # nobody reads while the trains pass
    with udp_socket(node) as sender:
        capture.start()
        for _ in range(20):
            sender.sendmsg([bytes(60000)], [(socket.IPPROTO_UDP, 103, struct.pack("=H", 1400))], 0, ("192.0.2.2", 4000))
        monkeypatch.undo()
        capture._record()
    assert (capture.stop().limit_reached, capture.summary.dropped > 0) == (True, True)


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
    with pytest.raises(CaptureError, match="wan"):
        capture.stop()


@pytest.mark.parametrize(("content", "reason"), [(b"", "not a pcap"), (b"\x4d\x3c\xb2\xa1" + bytes(30), "ends inside")])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.pcap").write_bytes(content)
    with pytest.raises(CaptureError, match=reason):
        read_pcap(tmp_path / "x.pcap")
