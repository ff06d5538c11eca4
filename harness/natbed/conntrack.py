"""What a NAT's connection tracking knows: the UDP mappings it holds, and the events as they happen."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from natbed.node_like import NodeLike
from natbed.process import CommandFailed

_NETLINK_NETFILTER = 12
_PROTOCOL_UDP = 17
_PAIR = re.compile(r"\b(src|dst|sport|dport|id)=(\S+)")
_COUNTERS = re.compile(r"\b(packets|bytes)=(\d+)")


class ConntrackError(RuntimeError):
    """Connection tracking could not be read or watched: the lab's fault, never the implementation's."""


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """One UDP flow through a NAT: `public` is what the remote end sees in place of `inside`.

    Both are the same where nothing is translated. For a flow that came in through a port forward the inside is the host
    that it was forwarded to. `seconds` is the time until the mapping ends if nothing passes; `replied` and `assured`
    are conntrack's states. `packets` and `octets`, with IP headers, are what has passed both ways together, 0 where
    `nf_conntrack_acct` was not 1 when the flow began.
    """

    inside: tuple[str, int]
    public: tuple[str, int]
    remote: tuple[str, int]
    replied: bool
    assured: bool
    seconds: int
    identifier: int
    packets: int = 0
    octets: int = 0
    forwarded: bool = False  # the remote end has begun it


def udp_mappings(node: NodeLike) -> list[Mapping]:
    """The UDP mappings that the NAT `node` holds now. Raises `ConntrackError`."""
    try:
        done = node.run(["conntrack", "-L", "-p", "udp", "-o", "extended,id"], check=False)
    except (OSError, CommandFailed) as error:
        raise ConntrackError(f"conntrack on {node.name}: {error}") from error
    if done.returncode:
        raise ConntrackError(f"conntrack -L on {node.name}: {done.stderr.strip()}")
    return [parse_udp_entry(line) for line in done.stdout.splitlines() if line.startswith("ipv4")]


def parse_udp_entry(line: str) -> Mapping:
    """One IPv4 line of `conntrack -L -p udp -o extended,id`. Raises `ConntrackError` naming a line of another form."""
    words = line.split()
    pairs = _PAIR.findall(line)
    if words[:1] != ["ipv4"] or words[3:4] != [str(_PROTOCOL_UDP)] or [key for key, _ in pairs] != _EXPECTED_KEYS:
        raise ConntrackError(f"conntrack printed an entry of unknown form: {line!r}")
    values = [value for _, value in pairs]
    source, destination = (values[0], int(values[2])), (values[1], int(values[3]))
    reply_source, reply_destination = (values[4], int(values[6])), (values[5], int(values[7]))
    forwarded = reply_source != destination
    return Mapping(
        inside=reply_source if forwarded else source,
        public=destination if forwarded else reply_destination,
        remote=source if forwarded else destination,
        replied="[UNREPLIED]" not in line,
        assured="[ASSURED]" in line,
        seconds=int(words[4]),
        identifier=int(values[8]),
        packets=sum(int(number) for what, number in _COUNTERS.findall(line) if what == "packets"),
        octets=sum(int(number) for what, number in _COUNTERS.findall(line) if what == "bytes"),
        forwarded=forwarded,
    )


_EXPECTED_KEYS = ["src", "dst", "sport", "dport"] * 2 + ["id"]


class ConntrackEvents:
    """Context manager: write the NAT's conntrack events (`conntrack -E -o timestamp,extended,id`) to the file `path`.

    It listens before the block begins, and at the end every event of the block is in the file: `count` says how many
    there were. `nf_conntrack_events` of the namespace must be 1. Raises `ConntrackError`, also for lost events. DESTROY
    events come when the kernel collects its garbage, up to 25 s late, unless something reads the table.
    """

    def __init__(self, node: NodeLike, path: Path, *, deadline: float = 5.0) -> None:
        self.node = node
        self.path = path
        self.count = 0
        self._deadline = deadline

    def __enter__(self) -> Self:
        self._file: BinaryIO = self.path.open("wb")
        self._errors = self.path.with_suffix(self.path.suffix + ".stderr")
        try:
            with self._errors.open("wb") as errors:
                self._process = self.node.popen(
                    # A buffer of 8 MB: the default of 208 KB overruns when a NAT is flushed.
                    ["conntrack", "-E", "-b", str(8 << 20), "-o", "timestamp,extended,id"],
                    stdin=subprocess.DEVNULL,
                    stdout=self._file,
                    stderr=errors,
                )
        except OSError as error:
            self._file.close()
            raise ConntrackError(f"conntrack -E on {self.node.name}: {error}") from error
        try:
            self._await(lambda queue: queue is not None, "it does not listen for events")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._await(lambda queue: queue == 0, "it does not read its events")
        except ConntrackError:
            if kind is None:
                raise
        finally:
            self._end()
        messages = self._messages()
        shown = re.search(r"(\d+) flow events have been shown", messages)
        self.count = int(shown[1]) if shown else 0
        self._errors.unlink()
        if kind is None and ("ENOBUFS" in messages or shown is None):
            raise ConntrackError(f"conntrack -E on {self.node.name} lost events: {messages}")

    def _end(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._deadline)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._file.close()

    def _messages(self) -> str:
        return self._errors.read_text(errors="replace").strip().replace("\n", " / ")

    def _await(self, condition: Callable[[int | None], bool], otherwise: str) -> None:
        """Wait until the octets queued for the program's event socket (None: no such socket) meet the condition."""
        until = time.monotonic() + self._deadline
        while not condition(queue := self.node.call(self._queued)):
            ended = self._process.poll()
            if ended is not None or time.monotonic() > until:
                state = f"exit code {ended}" if ended is not None else f"queue {queue} after {self._deadline} s"
                raise ConntrackError(f"conntrack -E on {self.node.name}: {otherwise} ({state}) {self._messages()}")
            time.sleep(0.002)  # the pace of the poll; /proc has nothing to wait on

    def _queued(self) -> int | None:
        """Octets that wait in the program's netlink socket, which has joined conntrack's multicast groups."""
        try:
            held = {entry.readlink().name for entry in Path(f"/proc/{self._process.pid}/fd").iterdir()}
        except (FileNotFoundError, PermissionError):  # it closes a file just now, or has ended: that is root's to read
            return None
        for line in Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]:
            columns = line.split()
            if int(columns[1]) == _NETLINK_NETFILTER and int(columns[3], 16) and f"socket:[{columns[-1]}]" in held:
                return int(columns[4])
        return None
