"""What is measured side by side: the plain path and implementations with a suite each; and which are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from natbed.stacks.base import Stack, StackError
from natbed.stacks.espthrunat import EspThruNat
from natbed.stacks.strongswan import StrongSwan

SUITES = (
    "aes128gcm16",
    "aes256gcm16",
    "aes128-sha256",
    "aes256-sha256",
    "aes256-sha384",
    "aes256-sha512",
    "aes128-sha1",
    "aes256-sha1",
    "aes128-md5",
    "3des-sha1",
    "3des-md5",
    "3des-sha256",
    "null-sha1",
    "null-md5",
    "null-sha256",
)
"""ESP suites that can be asked for: those that espthrunat has, which strongSwan has too."""
DEFAULT_SUITES = ("aes128gcm16", "aes128-sha1", "aes128-sha256")
PLAIN = "plain"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way from client to server. The plain path has neither implementation nor suite."""

    name: str
    implementation: str = ""
    suite: str = ""
    batches: bool = True

    @property
    def plain(self) -> bool:
        """Whether it is the path without IPsec."""
        return not self.implementation


@dataclass(frozen=True, slots=True)
class Field:
    """All candidates with their implementations, and why others are not among them."""

    candidates: tuple[Candidate, ...]
    stacks: dict[str, Stack]  # by candidate
    left_out: tuple[str, ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=dict)  # of peers, by their names

    def pairs(self) -> list[tuple[Candidate, Candidate]]:
        """Those to compare: each suite of espthrunat with strongSwan's, with its own without batches, and with none."""
        own = [one for one in self.candidates if one.implementation == EspThruNat.name and one.batches]
        found = []
        for suite in own:
            others = [one for one in self.candidates if one.suite == suite.suite and one != suite]
            others.sort(key=lambda one: one.implementation == suite.implementation)
            found += [(suite, other) for other in (*others, *(one for one in self.candidates if one.plain))]
        return found


def field(suites: Sequence[str], *, peers: bool = True) -> Field:
    """The plain path, and each suite by each implementation; a peer that is not installed is left out with a reason."""
    candidates = [Candidate(name=PLAIN)]
    stacks: dict[str, Stack] = {}
    left_out: list[str] = []
    versions: dict[str, str] = {}
    strongswan: StrongSwan | None = None
    if peers:
        try:
            strongswan = StrongSwan()
            versions[strongswan.name] = strongswan.version
        except StackError as error:
            left_out.append(f"strongswan is left out: {error}")
    for suite in dict.fromkeys(suites):
        contenders: list[tuple[str, bool, Stack]] = [
            (f"espthrunat {suite}", True, EspThruNat()),
            (f"espthrunat {suite}, no batches", False, EspThruNat(batches=False)),
        ]
        if strongswan is not None:
            contenders.append((f"strongswan {suite}", True, strongswan))
        for name, batches, stack in contenders:
            candidates.append(Candidate(name=name, implementation=stack.name, suite=suite, batches=batches))
            stacks[name] = stack
    return Field(tuple(candidates), stacks, tuple(left_out), versions)
