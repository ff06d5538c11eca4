"""How long a NAT remembers an idle UDP mapping (RFC 4787, 4.3), measured with all idle times side by side.

Each trial has a socket and an idle time of its own: it asks the reflector to wait so long before it answers, says
nothing meanwhile, and the mapping was still there if the answer comes. All of a kind begin at once, so that finding
out takes hardly longer than the timeout itself.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from .fingerprint import Open
from .measured import Span
from .reflector import REQUEST, Endpoint, Message, decode

LONGEST = 300  # seconds: RFC 4787's REQ-5 recommends five minutes
SETTLE = 2.5  # seconds: Linux calls a flow replied once both sides have spoken and two seconds have gone by
WORDS = 5  # exchanges meanwhile
LOST_IN_A_ROW = 3  # idle times after which a mapping is believed to be gone: one datagram may be lost on the way
_TICK = 0.5  # seconds between words to a user


@dataclass(slots=True)
class Trials:
    """One kind of timeout: trials under way, by idle time."""

    name: str
    idle: list[float]
    answered: set[float] = field(default_factory=set)
    over: set[float] = field(default_factory=set)

    def gone(self) -> bool:
        """Whether enough idle times in a row, beyond the longest that survived, have had no answer."""
        beyond = [one for one in self.idle if one > self.survived]
        return not beyond or all(one in self.over for one in beyond[:LOST_IN_A_ROW])

    @property
    def survived(self) -> float:
        """The longest idle time after which an answer came; 0 where none has."""
        return max(self.answered, default=0.0)

    def span(self) -> Span:
        """What is known now."""
        beyond = [one for one in self.idle if one > self.survived]
        return Span(self.survived, beyond[0] if beyond else None)


def idle_times(longest: int) -> list[float]:
    """Between whole seconds up to a minute, then every 5 s up to 400 s, then every 30 s.

    Timeouts are whole numbers: 29.5 survived and 30.5 lost is 30. The longest that is well known is a cloud's, 350 s.
    """
    candidates = [
        *(n + 0.5 for n in range(61)),
        *(62.5 + 5 * n for n in range(69)),
        *(415.0 + 30 * n for n in range(108)),
    ]
    enough = next((n for n, one in enumerate(candidates) if one > longest), len(candidates) - 1)
    return candidates[: enough + 1]


def measure_timeouts(
    inside: Open,
    server: Endpoint,
    patience: float,
    longest: int = LONGEST,
    say: Callable[[str], None] = lambda _step: None,
) -> tuple[Span, Span]:
    """The timeouts of mappings that nobody has answered yet, and of those over which both sides have spoken.

    Takes about `SETTLE` and the longer of them, at most `longest` seconds. Raises OSError.
    """
    times = idle_times(longest)
    unreplied, replied = Trials("unreplied", list(times)), Trials("replied", list(times))
    kinds = (unreplied, replied)
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        fresh = [stack.enter_context(inside(0)) for _ in times]
        spoken = [stack.enter_context(inside(0)) for _ in times]
        for sock in (*fresh, *spoken):
            selector.register(sock, selectors.EVENT_READ)
        begin = time.monotonic()
        waiting = _start(unreplied, fresh, server)
        for number in range(WORDS):  # in time for the shortest timeout, so that no flow begins anew
            for sock in spoken:
                sock.sendto(Message(kind=REQUEST, transaction=secrets.token_bytes(8)).encode(), server)
            until = begin + SETTLE * (number + 1) / WORDS
            _collect(waiting, selector, patience, until, kinds, say, begin, whole=True)
        waiting.update(_start(replied, spoken, server))
        until = time.monotonic() + longest + 30 + patience
        _collect(waiting, selector, patience, until, kinds, say, begin, whole=False)
    return unreplied.span(), replied.span()


Waiting = dict[bytes, tuple[Trials, float, float]]  # by transaction: of which kind, how long idle, when it began


def _start(trials: Trials, socks: Sequence[socket.socket], server: Endpoint) -> Waiting:
    waiting: Waiting = {}
    for idle, sock in zip(trials.idle, socks, strict=True):
        transaction = secrets.token_bytes(8)
        sock.sendto(Message(kind=REQUEST, transaction=transaction, delay=idle).encode(), server)
        waiting[transaction] = (trials, idle, time.monotonic())
    return waiting


def _collect(
    waiting: Waiting,
    selector: selectors.BaseSelector,
    patience: float,
    until: float,
    kinds: Sequence[Trials],
    say: Callable[[str], None],
    begin: float,
    *,
    whole: bool,
) -> None:
    """Take answers until then, or, where not the `whole` time is asked for, until nothing more can be learnt."""
    said = 0.0
    while (now := time.monotonic()) < until and (whole or not all(kind.gone() for kind in kinds)):
        for key, _ in selector.select(min(0.1, until - now)):
            sock: socket.socket = key.fileobj  # type: ignore[assignment]
            answer = decode(sock.recv(2048))
            if answer is not None and (found := waiting.get(answer.transaction)) is not None:
                found[0].answered.add(found[1])
        now = time.monotonic()
        for kind, idle, began in waiting.values():
            if now > began + idle + patience:
                kind.over.add(idle)
        if now - said >= _TICK:
            said = now
            known = ", ".join(f"{kind.name} {kind.survived:g} s" for kind in kinds)
            say(f"timeouts: {now - begin:.0f} s; still there after: {known}")
