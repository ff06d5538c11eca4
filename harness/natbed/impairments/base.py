"""What a link may do to packets, and the record of what it was made to do."""

from __future__ import annotations

from typing import Any

import msgspec


class ImpairmentError(Exception):
    """An impairment that cannot be made here, or is not what was asked for: the lab's fault. The message says why."""


class Impairment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to the packets of one direction of a link. Times are seconds, shares between 0 and 1.

    `every_nth` loses each n-th packet instead of a random share. `reorder` packets overtake all that `delay` holds, so
    that there must be one; with jitter too some overtake others. `corrupt` packets have one bit behind
    the IP header changed; netem's may be in that too. `rate` is in bit/s. `mtu` is of both directions, in octets.
    The same `seed` makes the same choices, packet by packet, where the record says so. Raises ValueError.
    """

    loss: float = 0.0
    every_nth: int = 0
    delay: float = 0.0
    jitter: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    rate: float = 0.0
    drop_fragments: bool = False
    mtu: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: a share is between 0 and 1")
        for name in ("delay", "jitter", "rate", "every_nth", "mtu"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: it cannot be negative")
        if self.loss and self.every_nth:
            raise ValueError("loss and every_nth: one of them")
        if self.every_nth == 1:
            raise ValueError("every_nth 1: that is a link that is down")
        if self.jitter > self.delay:
            raise ValueError(f"jitter {self.jitter}: not more than the delay, {self.delay}")
        if self.reorder and not self.delay:
            raise ValueError("reorder: nothing can be overtaken without a delay")
        if self.mtu and self.mtu < 68:
            raise ValueError(f"mtu {self.mtu}: IPv4 needs 68 octets (RFC 791)")

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked for, by name."""
        usual = Impairment()
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value != getattr(usual, name)}


class ImpairmentRecord(msgspec.Struct, kw_only=True):
    """What was done to packets from `sender` to `receiver`, by what means, and what that was measured to do.

    `deterministic` are the names of what the same packets meet again with the same seed.
    """

    sender: str
    receiver: str
    asked: dict[str, Any]
    means: dict[str, str]
    deterministic: list[str] = []
    measured: dict[str, float] = {}
    passed: dict[str, int] = {}
