"""Faults as a user writes them, in the shell and on the command line: "reboot nat", "link client1 home 2"."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from natbed.nat.profile import Kind
from natbed.scenario import Scenario

from .base import Fault
from .daemons import DaemonKill, DaemonRestart, DaemonStop, PlaneKill
from .links import LinkDown, LinkFlap, LinkUp
from .nats import MappingExpiry, NatReboot, WanRenumber
from .packets import ChecksumDamage, Forgery, MarkerDamage, Replay


class FaultNameError(ValueError):
    """There is no such fault, or it cannot be in this scenario; the message is one line that says what there is."""


@dataclass(frozen=True, slots=True)
class Named:
    """A fault that has a name: what may follow that, what it does, and how it is made of a scenario and the words."""

    arguments: str
    help: str
    make: Callable[[_Words], Fault]


class _Words:
    """The words behind a fault's name, and what is meant where there are none."""

    def __init__(self, scenario: Scenario, words: Sequence[str]) -> None:
        self._scenario = scenario
        self._left = list(words)

    def nat(self, kinds: Collection[Kind] = (Kind.MASQUERADE, Kind.ONE_TO_ONE), what: str = "translates") -> str:
        """A NAT that translates; the one nearest to the first initiator, unless named."""
        nats = [name for name, nat in self._scenario.nats_planned.items() if nat.profile.kind in kinds]
        if not nats:
            raise FaultNameError(f"no NAT of this scenario {what}")
        before = [nat.name for nat in self._scenario.nats_before(self._scenario.tunnels()[0].initiator)]
        usual = [name for name in before if name in nats] or nats
        return self._one_of(nats, usual[0], "NAT")

    def host(self, *, responder: bool = False) -> str:
        """A host with a tunnel; the first initiator or responder, unless named."""
        first = self._scenario.tunnels()[0]
        ends = {name for one in self._scenario.tunnels() for name in (one.initiator, one.responder)}
        hosts = [name for name in self._scenario.hosts_planned if name in ends]
        return self._one_of(hosts, first.responder if responder else first.initiator, "host with a tunnel")

    def inside_address(self) -> str:
        """The address of a host that is named, or nothing."""
        if not self._left:
            return ""
        plans = {**self._scenario.hosts_planned, **self._scenario.stations_planned}
        return plans[self._one_of(list(plans), "", "host")].address

    def link(self) -> tuple[str, str]:
        """Two nodes with a link; the first initiator and its neighbour, unless named."""
        links = [(one, other) for one, other, *_ in self._scenario.links()]
        first = self._scenario.tunnels()[0].initiator
        if self._left and not _is_number(self._left[0]):
            one, other = self._take(), self._take() if self._left else ""
        else:
            one, other = next(pair if pair[0] == first else pair[::-1] for pair in links if first in pair)
        if (one, other) not in links and (other, one) not in links:
            shown = ", ".join(" ".join(pair) for pair in links)
            raise FaultNameError(f"no link {f'{one} {other}'.strip()!r}; there are {shown}")
        return one, other

    def seconds(self, usual: float) -> float:
        """A number of seconds, 0 or more."""
        if not self._left:
            return usual
        word = self._take()
        if not _is_number(word):
            raise FaultNameError(f"{word!r} is no number of seconds")
        return float(word)

    def router(self) -> str:
        """The router of the Internet, which translates nothing."""
        if self._scenario.internet_name is None:
            raise FaultNameError("the scenario has no Internet")
        return self._scenario.internet_name

    def count(self, usual: int) -> int:
        """A number of packets, 1 or more."""
        if not self._left:
            return usual
        word = self._take()
        if not word.isdecimal() or not int(word):
            raise FaultNameError(f"{word!r} is no number of packets")
        return int(word)

    def word(self) -> str:
        """Any word, or nothing."""
        return self._take() if self._left else ""

    def end(self, name: str) -> None:
        """Raise `FaultNameError` where words are left."""
        if self._left:
            raise FaultNameError(f"{self._left[0]!r}: {name} takes {FAULTS[name].arguments or 'nothing'}")

    def _take(self) -> str:
        return self._left.pop(0)

    def _one_of(self, known: Sequence[str], usual: str, what: str) -> str:
        name = self._take() if self._left else usual
        if name not in known:
            raise FaultNameError(f"no {what} {name!r}; there are {', '.join(known)}")
        return name


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdecimal()


_PACKETS = 20

FAULTS: dict[str, Named] = {
    "reboot": Named(
        "[NAT [SECONDS]]",
        "the NAT forgets everything, is off for so long, and gives out other ports",
        lambda words: NatReboot(words.nat(), off=words.seconds(0.0)),
    ),
    "renumber": Named(
        "[NAT [ADDRESS]]",
        "the NAT gets another outside address",
        lambda words: WanRenumber(words.nat([Kind.MASQUERADE], "has an address for many"), words.word()),
    ),
    "expire": Named(
        "[NAT [HOST]]",
        "the NAT forgets its UDP mappings, all or a host's",
        lambda words: MappingExpiry(words.nat(), words.inside_address()),
    ),
    "link": Named(
        "[NODE NODE] [SECONDS]",
        "the link fails for so long, 1 s if not said",
        lambda words: LinkFlap(*words.link(), words.seconds(1.0)),
    ),
    "down": Named("[NODE NODE]", "the link fails and stays so", lambda words: LinkDown(*words.link())),
    "up": Named("[NODE NODE]", "the link works again", lambda words: LinkUp(*words.link())),
    "kill": Named("[HOST]", "kill -9 of the daemon, and a new start", lambda words: DaemonKill(words.host())),
    "stop": Named("[HOST]", "the daemon ends in order and stays so", lambda words: DaemonStop(words.host())),
    "restart": Named("[HOST]", "the daemon ends in order and starts again", lambda words: DaemonRestart(words.host())),
    "marker": Named(
        "[COUNT]",
        "so many packets of ESP in UDP lose their marker on the Internet",
        lambda words: MarkerDamage(words.router(), words.count(_PACKETS)),
    ),
    "checksum": Named(
        "[COUNT]",
        "so many get a wrong UDP checksum there",
        lambda words: ChecksumDamage(words.router(), words.count(_PACKETS)),
    ),
    "replay": Named(
        "[HOST [COUNT]]",
        "so many packets to the host, or the first responder, come twice",
        lambda words: Replay(words.host(responder=True), words.router(), words.count(_PACKETS)),
    ),
    "forge": Named(
        "[HOST [COUNT]]",
        "so many packets to the host come that nobody with the keys has made",
        lambda words: Forgery(words.host(responder=True), words.router(), words.count(_PACKETS)),
    ),
    "plane": Named("[HOST]", "kill -9 of the data plane alone", lambda words: PlaneKill(words.host())),
}
"""By name. What is not said is the first initiator, and the NAT or the link that is next to it."""

LASTING = frozenset({"down", "stop", "up"})
"""Those after which nothing can be expected to come back by itself."""


def parse(text: str, scenario: Scenario) -> Fault:
    """The fault that a user means in that scenario. Raises `FaultNameError`."""
    name, *rest = text.replace(",", " ").split() or [""]
    if name not in FAULTS:
        raise FaultNameError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
    if not scenario.tunnels():
        raise FaultNameError("the scenario has no tunnel")
    words = _Words(scenario, rest)
    fault = FAULTS[name].make(words)
    words.end(name)
    return fault


def usage() -> str:
    """One line a fault, for people."""
    rows = {f"{name} {one.arguments}".strip(): one.help for name, one in FAULTS.items()}
    width = max(map(len, rows))
    return "\n".join(f"{row:<{width}}  {text}" for row, text in rows.items())
