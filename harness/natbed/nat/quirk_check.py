"""A NAT's quirk proves itself: who gets what of port 500, and of bare ESP, by plain sockets and without any IPsec."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from natbed.checks import CheckResult, Verdict
from natbed.node_like import NodeLike

from .profile import Quirk

IKE_PORT = 500
ELSEWHERE = 4_900  # and up: a port of the server for each client, who alone sends to it, from port 500 too
MARKER = bytes(8)
TURNS = 10  # how often the owner of port 500 changes from the first client through to the last, where it changes
DEADLINE = 2.0  # seconds for what must arrive
GRACE = 0.05  # seconds for what must not, once a later packet of the same sender has arrived
_CONTROL = 40_001  # the clients' and the server's port for such later packets
_ESP = 50  # IP protocol
_IP_HEADER = 20  # octets; a raw socket receives them too

Client = tuple[NodeLike, str]
"""A node and its address."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What became of one datagram from a client's port 500, and of the answer to it.

    `source` is what the server saw as its sender, None where it did not arrive; `cookie` are its first 8 octets there.
    `answered` is the client that got the answer, "" for nobody; `answer` are the first 8 octets of that.
    """

    source: tuple[str, int] | None
    cookie: bytes = b""
    answered: str = ""
    answer: bytes = b""


Sights = dict[tuple[str, str], Sight]
"""By client and by what was sent: "IKE", "ESP" behind a marker, or "elsewhere", IKE to a port of its own."""

KINDS = ("IKE", "ESP", "elsewhere")


def cookie_of(number: int, kind: str) -> bytes:
    """The first 8 octets of what the client of that number, 0 the first, sends."""
    return MARKER if kind == "ESP" else bytes((number + 1, KINDS.index(kind) + 1)) * 4


def observe(clients: Sequence[Client], server: NodeLike, server_address: str) -> Sights:
    """Let each client in turn send one datagram of each kind, then answer each that arrived.

    Raises OSError when what no quirk touches does not arrive either, or a port is not free.
    """
    with contextlib.ExitStack() as stack:

        def bound(node: NodeLike, address: str, port: int) -> socket.socket:
            return stack.enter_context(node.call(lambda: _udp(address, port)))

        elsewhere = range(ELSEWHERE, ELSEWHERE + len(clients))
        ears = {port: bound(server, server_address, port) for port in (IKE_PORT, *elsewhere)}
        control = bound(server, server_address, _CONTROL)
        mouths = {node.name: bound(node, address, IKE_PORT) for node, address in clients}
        # one port for each: who had to get another one could get one of those that a quirk gives to ESP
        controls = {node.name: bound(node, address, _CONTROL + n) for n, (node, address) in enumerate(clients)}
        arrived: dict[bytes, tuple[socket.socket, tuple[str, int], bytes]] = {}
        back_to: dict[str, tuple[str, int]] = {}
        for number, (node, _) in enumerate(clients):
            for kind in KINDS:
                port = ELSEWHERE + number if kind == "elsewhere" else IKE_PORT
                mouths[node.name].sendto(cookie_of(number, kind) + _label(node, kind), (server_address, port))
            controls[node.name].sendto(b"after", (server_address, _CONTROL))
            _, back_to[node.name] = control.recvfrom(64)
            for ear in ears.values():
                for data, source in _waiting(ear):
                    arrived[data[8:]] = (ear, source, data[:8])
        found: Sights = {}
        for number, (node, _) in enumerate(clients):
            for kind in KINDS:
                label = _label(node, kind)
                if label not in arrived:
                    found[node.name, kind] = Sight(None)
                    continue
                ear, source, cookie = arrived[label]
                ear.sendto(cookie_of(number, kind) + label, source)
                for name, mouth in controls.items():
                    control.sendto(b"after", back_to[name])
                    mouth.recv(64)
                got = [(name, data) for name, mouth in mouths.items() for data, _ in _waiting(mouth)]
                answered, answer = next(((name, data[:8]) for name, data in got if data[8:] == label), ("", b""))
                found[node.name, kind] = Sight(source, cookie, answered, answer)
    return found


def observe_spis(clients: Sequence[Client], server: NodeLike, server_address: str) -> list[tuple[str, str]]:
    """Let clients send bare ESP in turn and the server answer, each time by a new SPI; then by all SPIs once more.

    Returns who has got each answer, first and later; "" for nobody. Raises OSError as `observe` does.
    """
    with contextlib.ExitStack() as stack:
        ear = stack.enter_context(server.call(lambda: _raw(server_address)))
        mouths = {node.name: stack.enter_context(node.call(lambda at=at: _raw(at))) for node, at in clients}  # type: ignore[misc]

        def answer(number: int, to: str) -> str:
            data = (0x5000 + number).to_bytes(4, "big") + bytes(8)
            ear.sendto(data, (to, 0))
            readable, _, _ = select.select(list(mouths.values()), [], [], DEADLINE)
            got = [name for name, mouth in mouths.items() if mouth in readable and mouth.recv(64)[_IP_HEADER:] == data]
            return got[0] if got else ""

        sources, first = [], []
        for number, (node, _) in enumerate(clients):
            mouths[node.name].sendto((0x4000 + number).to_bytes(4, "big") + bytes(8), (server_address, 0))
            _, source = ear.recvfrom(64)
            sources.append(source[0])
            first.append(answer(number, source[0]))
        return [(one, answer(number, sources[number])) for number, one in enumerate(first)]


def observe_turns(clients: Sequence[Client], server: NodeLike, server_address: str) -> list[tuple[str, str]]:
    """Let clients send IKE in turn, `TURNS` times, and the server answer each before the next one sends.

    Returns who has sent and who has got the answer, "" for nobody, and ends with the first answer that another one has
    got. Raises OSError as `observe` does.
    """
    found: list[tuple[str, str]] = []
    with contextlib.ExitStack() as stack:
        ear = stack.enter_context(server.call(lambda: _udp(server_address, IKE_PORT)))
        mouths = {node.name: stack.enter_context(node.call(lambda at=at: _udp(at, IKE_PORT))) for node, at in clients}  # type: ignore[misc]
        for turn, (number, name) in itertools.product(range(TURNS), enumerate(mouths)):
            data = cookie_of(number, "IKE") + f"turn {turn}".encode()
            mouths[name].sendto(data, (server_address, IKE_PORT))
            ear.sendto(*ear.recvfrom(64))
            readable, _, _ = select.select(list(mouths.values()), [], [], DEADLINE)
            got = [one for one, mouth in mouths.items() if mouth in readable and mouth.recv(64) == data]
            found.append((name, got[0] if got else ""))
            if got != [name]:
                break
    return found


def check_quirk(
    quirk: Quirk,
    clients: Sequence[Client],
    server: NodeLike,
    server_address: str,
    public_address: str,
    forget: Callable[[], None],
) -> CheckResult:
    """See that the NAT with that outside address does to these clients what the quirk says.

    `forget` makes the NAT forget its mappings and what its quirk has learned; it is called before and after. LAB_BROKEN
    when it does something else, or cannot be tried.
    """
    names = [node.name for node, _ in clients]
    try:
        forget()
        seen = observe(clients, server, server_address)
        spis = observe_spis(clients, server, server_address) if quirk is Quirk.ESP_SPIS else []
        turns = observe_turns(clients, server, server_address) if quirk is Quirk.LAST_OWNS_500 else []
        forget()
    except OSError as error:
        return _result(f"{quirk}: no datagram could be sent or received: {error}")
    problem = next(_problems(quirk, names, public_address, seen), "")
    if not problem and spis != [(name, name) for name in names if spis]:
        problem = f"answers to bare ESP by new SPIs, and later by the same, went to {spis}"
    sender, owner = turns[-1] if turns else ("", "")
    if not problem and sender != owner:
        problem = f"{sender} sent last, in turn {len(turns)}, and the answer went to {owner or 'nobody'}"
    return _result(problem and f"{quirk}: {problem}", f"it does what {quirk} says")


def _problems(quirk: Quirk, names: Sequence[str], public_address: str, seen: Sights) -> Iterator[str]:
    for (name, kind), sight in seen.items():
        owner = _owner(quirk, names, name, kind)
        what = f"{kind} from {name}"
        if owner is None:
            if sight.source is not None:
                yield f"{what} was to be lost, and came from port {sight.source[1]}"
            continue
        if sight.source is None:
            yield f"{what} was lost"
            continue
        if sight.source[0] != public_address:
            yield f"{what} came from {sight.source[0]}, not from {public_address}"
        if quirk in _KEEP_500 and sight.source[1] != IKE_PORT:
            yield f"{what} came from port {sight.source[1]}, not from {IKE_PORT}"
        if sight.answered != owner:
            yield f"the answer to {what} was for {owner or 'nobody'}, and went to {sight.answered or 'nobody'}"
        if not sight.answered:
            continue
        damaged = [octets != cookie_of(names.index(name), kind) for octets in (sight.cookie, sight.answer)]
        if damaged != [quirk is Quirk.DAMAGES_MARKER and kind == "ESP"] * 2:
            yield f"of {what} there and back the first 8 octets were {sight.cookie.hex()} and {sight.answer.hex()}"
    for name in names:
        same = seen[name, "IKE"].source == seen[name, "ESP"].source
        if same is (quirk is Quirk.SPLITS_MAPPINGS):
            yield f"IKE and ESP from {name} came from {'the same port' if same else 'different ports'}"


_KEEP_500 = (Quirk.PIN_500, Quirk.ONE_CLIENT, Quirk.FIRST_OWNS_500, Quirk.LAST_OWNS_500, Quirk.IKE_COOKIES)


def _owner(quirk: Quirk, names: Sequence[str], name: str, kind: str) -> str | None:
    """Who must get the answer, "" for nobody; None where there must be nothing to answer."""
    if quirk is Quirk.ONE_CLIENT or (quirk is Quirk.PIN_500 and kind != "elsewhere"):
        return name if name == names[0] else None
    if quirk is Quirk.FIRST_OWNS_500:
        return names[0] if kind != "elsewhere" or name == names[0] else ""  # the owner has nothing to do with that port
    if quirk is Quirk.LAST_OWNS_500:
        return names[-1] if kind != "elsewhere" else name  # there nobody else has sent anything
    return names[0] if quirk is Quirk.IKE_COOKIES and kind == "ESP" else name


def _label(node: NodeLike, kind: str) -> bytes:
    return f"{kind} of {node.name}".encode()


def _waiting(ear: socket.socket) -> Iterator[tuple[bytes, tuple[str, int]]]:
    """What has come and is not read yet."""
    while select.select([ear], [], [], GRACE)[0]:
        yield ear.recvfrom(64)


def _udp(address: str, port: int) -> socket.socket:
    return _bound(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), address, port)


def _raw(address: str) -> socket.socket:
    return _bound(socket.socket(socket.AF_INET, socket.SOCK_RAW, _ESP), address, 0)


def _bound(made: socket.socket, address: str, port: int) -> socket.socket:
    try:
        made.settimeout(DEADLINE)
        made.bind((address, port))
    except BaseException:
        made.close()
        raise
    return made


def _result(problem: str, otherwise: str = "") -> CheckResult:
    verdict = Verdict.LAB_BROKEN if problem else Verdict.PASSED
    return CheckResult(name="NAT", verdict=verdict, reason=problem or otherwise)
