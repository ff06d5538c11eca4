"""Hostile input: edits of real messages, exchanges that stop at any message, and the corpus of inputs that are kept.

Runs are the same every time. `ESPTHRUNAT_FUZZ=50 pytest impl/tests/test_fuzz_*.py` tries 50 times as many examples,
and others each time.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

from certificate_world import rsa_initiator, rsa_responder
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from ike_world import CLIENT, INITIATOR, PUBLIC, RESPONDER, SERVER, World, intact
from quick_world import transport

from espthrunat.ike import events
from espthrunat.ike.endpoint import Endpoint
from espthrunat.ike.groups import GROUPS
from espthrunat.ike.policy import Connection, Exchange
from espthrunat.messages import Path
from espthrunat.wire.isakmp import HEADER_OCTETS

CORPUS = FilePath(__file__).parent / "corpus"
STRANGER = ("203.0.113.66", 4500)

_FACTOR = int(os.environ.get("ESPTHRUNAT_FUZZ", "1"))


def fuzz(examples: int) -> settings:
    """So many examples, the same ones in every run, however long each takes."""
    return settings(
        max_examples=examples * _FACTOR,
        derandomize=_FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# edits of octets

Edit = tuple[str, int, int]  # what, where and a number; positions are taken modulo the length
KINDS = (
    "flip",
    "set",
    "cut",
    "extend",
    "double",
    "remove",
    "zero",
    "ones",
    "length+1",
    "length-1",
    "reserved",
    "next",
    "loop",
    "cookie",
    "responder cookie",
)
edits: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 0xFFFF), st.integers(0, 255)), min_size=1, max_size=3
)


def edited(message: bytes, changes: list[Edit], *, mend: bool = True) -> bytes:
    """`message` after all changes; `mend` makes the ISAKMP header's length fit again, so that more of it is read."""
    octets = bytearray(message)
    for change in changes:
        _edit(octets, *change)
    if mend and len(octets) >= HEADER_OCTETS:
        octets[24:28] = len(octets).to_bytes(4, "big")
    return bytes(octets)


def spliced(head: bytes, tail: bytes, at: int) -> bytes:
    """The beginning of one message and the end of another, with a length that fits."""
    at %= max(1, min(len(head), len(tail)))
    return edited(head[:at] + tail[at:], [])


def _edit(octets: bytearray, kind: str, where: int, number: int) -> None:
    if not octets:
        octets.append(number)
        return
    at = where % len(octets)
    match kind:
        case "flip":
            octets[at] ^= 1 << number % 8
        case "set":
            octets[at] = number
        case "cut":
            del octets[at:]
        case "extend":
            octets += bytes([number]) * (where % 64 + 1)
        case "double":
            octets[at:at] = octets[at : at + number + 1]
        case "remove":
            del octets[at : at + number + 1]
        case "zero" | "ones":
            octets[at : at + number % 16 + 1] = (b"\0" if kind == "zero" else b"\xff") * len(
                octets[at : at + number % 16 + 1]
            )
        case "cookie":
            octets[:8] = struct.pack("!HBxI", where, number, 1)
        case "responder cookie":
            octets[8:16] = bytes([number & 1]) * len(octets[8:16])
        case _:
            _edit_structure(octets, kind, where, number)


def _edit_structure(octets: bytearray, kind: str, where: int, number: int) -> None:
    """Change a field of one of the generic headers, those of proposals and transforms included."""
    headers = _generic_headers(bytes(octets))
    if not headers:
        return
    at = headers[where % len(headers)]
    if kind == "reserved":
        octets[at + 1] = number | 1
    elif kind == "next":
        octets[at] = number
    elif kind == "loop":  # the last payload is followed by one of its own kind, and so on
        octets[headers[-1]] = octets[at] or 1
    else:
        length = int.from_bytes(octets[at + 2 : at + 4], "big") + (1 if kind == "length+1" else -1)
        octets[at + 2 : at + 4] = (length & 0xFFFF).to_bytes(2, "big")


def _generic_headers(message: bytes) -> list[int]:
    """Where generic headers are: of payloads in the clear, and of the proposals and transforms in an SA payload."""
    found: list[int] = []
    if len(message) < HEADER_OCTETS:
        return found
    kind, position = message[16], HEADER_OCTETS
    while kind and position + 4 <= len(message) and len(found) < 64:
        found.append(position)
        length = max(4, int.from_bytes(message[position + 2 : position + 4], "big"))
        if kind == 1 and position + 20 <= len(message):
            found += [position + 12]
            transform = position + 20 + message[position + 18]
            found += [transform] if transform + 4 <= len(message) else []
        kind, position = message[position], position + length
    return found


# exchanges


class Gate:
    """A wire that lets so many more datagrams pass, and none after them until it is opened."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        self.left -= 1
        return intact(number, data, to_server) if self.left >= 0 else []

    def open(self) -> None:
        self.left = 1_000_000


def aggressive(connection: Connection) -> Connection:
    return replace(connection, exchange=Exchange.AGGRESSIVE)


ENDS: dict[str, Callable[[], tuple[Connection, Connection]]] = {
    "main-psk": lambda: (INITIATOR, RESPONDER),
    "main-rsa": lambda: (rsa_initiator(), rsa_responder()),
    "aggressive-psk": lambda: (aggressive(INITIATOR), aggressive(RESPONDER)),
    "aggressive-rsa": lambda: (aggressive(rsa_initiator()), aggressive(rsa_responder())),
    "transport": lambda: (transport(INITIATOR), transport(RESPONDER)),
    "pfs": lambda: (replace(INITIATOR, pfs=GROUPS["ecp256"]), replace(RESPONDER, pfs=GROUPS["ecp256"])),
}
_PHASE1_MESSAGES = {"main-psk": 6, "main-rsa": 6, "aggressive-psk": 3, "aggressive-rsa": 3, "transport": 6, "pfs": 6}
MESSAGES = {ends: number + 3 for ends, number in _PHASE1_MESSAGES.items()}


@dataclass(frozen=True)
class Stage:
    """An exchange that has come so far: `passed` messages have arrived, all later ones are lost until `open`."""

    ends: str
    passed: int
    rekey: str = ""  # or "quick" or "phase 1": what is replaced on an established connection

    def __str__(self) -> str:
        return f"{self.ends}{' rekeys ' + self.rekey if self.rekey else ''} after {self.passed}"

    @property
    def authenticated(self) -> bool:
        """Whether both ends have proven themselves, so that nobody without keys can do anything any more."""
        return self.rekey == "quick" or (not self.rekey and self.passed >= _PHASE1_MESSAGES[self.ends])

    def reach(self) -> tuple[World, Gate]:
        gate = Gate(1_000_000 if self.rekey else self.passed)
        world = World(*ENDS[self.ends](), fate=gate)
        world.connect(0.3)  # less than a retransmission takes
        if self.rekey:
            world.run(5.0)
            gate.left = self.passed
            world.client.rekey("server", world.now, phase1=self.rekey == "phase 1")
            world.run(0.3)
        return world, gate


STAGES = [
    *(Stage("main-psk", n) for n in range(10)),
    *(Stage("main-rsa", n) for n in (2, 4, 5, 6)),
    *(Stage("aggressive-psk", n) for n in range(7)),
    *(Stage("transport", n) for n in (6, 7, 8, 9)),
    *(Stage("main-psk", n, "quick") for n in range(3)),
    *(Stage("main-psk", n, "phase 1") for n in (1, 3, 5)),
]


@functools.cache
def real_messages() -> tuple[tuple[str, bytes], ...]:
    """Every message of every exchange, with its name; made with other randomness than the stages have."""
    named: list[tuple[str, bytes]] = []
    for ends, both in ENDS.items():
        world = World(*both(), seed=1000).connect(5.0)
        assert len(world.wire) == MESSAGES[ends]
        world.client.terminate("server", world.now)
        world.run(1.0)
        named += [(f"{ends}-{number}", data) for number, (data, _) in enumerate(world.wire, 1)]
    return tuple(named)


# hostile datagrams against endpoints

HONEST = {True: Path(SERVER, 500, PUBLIC, 1024), False: Path(CLIENT, 500, SERVER, 500)}  # by: to the server?
STRANGE = {True: Path(SERVER, 500, *STRANGER), False: Path(CLIENT, 500, *STRANGER)}


CHANGES = (  # events that nobody without keys may cause
    events.IkeSaEstablished,
    events.IkeSaDeleted,
    events.SaEstablished,
    events.SaRetired,
    events.SaDeleted,
    events.NatDetected,
    events.KeepaliveWanted,
    events.PeerMoved,
)


def half_open(endpoint: Endpoint) -> int:
    return sum(not sa.established and not sa.initiator for sa in endpoint.ike_sas())


def is_first_message(datagram: bytes) -> bool:
    """Whether it may begin a phase 1."""
    return len(datagram) >= HEADER_OCTETS and not any(datagram[8:16]) and datagram[18] in (2, 4)


def hit(world: World, datagram: bytes, path: Path, *, to_server: bool) -> list[events.Event]:
    """Let a datagram arrive out of the blue; its answers go to whoever sent it. What the endpoint had to say of it.

    Whatever it holds, it raises nothing, is answered at most once, and to its sender only, and begins at most one
    phase 1, if it can begin one at all.
    """
    endpoint = world.server if to_server else world.client
    world.run(0.0)  # so that nothing waits but what comes of the datagram
    before = len(endpoint.ike_sas())
    shown = f"{datagram[:1000].hex()} on {path}"
    try:
        endpoint.receive_datagram(datagram, path, world.now)
    except Exception as error:
        raise AssertionError(f"{error!r} because of {shown}") from error
    said: list[events.Event] = []
    while (event := endpoint.next_event()) is not None:
        said.append(event)
    (world.server_events if to_server else world.client_events).extend(said)
    sent = endpoint.datagrams_to_send()
    assert len(sent) <= 1, f"{len(sent)} answers to {shown}"
    assert all(back == path for _, back in sent), f"an answer to somebody else than the sender of {shown}"
    assert len(endpoint.ike_sas()) <= before + is_first_message(datagram), f"state because of {shown}"
    return said


def recovers(world: World) -> bool:
    """Whether the connection comes up once somebody wants it anew and nobody is in the way."""
    world.client.terminate("server", world.now)
    world.run(120.0)
    assert not half_open(world.client)
    assert not half_open(world.server)
    world.client.initiate("server", world.now)
    world.run(120.0)
    return world.up


# the corpus


def corpus() -> dict[str, bytes]:
    """Every input that is kept, by the name of its file; corpus/README.md says how to add one."""
    return {file.stem: read_hex(file.read_text()) for file in sorted(CORPUS.glob("*.hex"))}


def read_hex(text: str) -> bytes:
    """Octets in hexadecimal; "#" begins a remark."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))
