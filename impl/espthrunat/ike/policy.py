"""What an endpoint wants and allows: connections, as values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ..esp.suites import EspSuite
from ..messages import Selector
from .groups import Group
from .identity import Identity, IdentityPattern
from .keying import HashAlgorithm


class EncapsulationPolicy(enum.StrEnum):
    """When ESP goes in UDP (the draft, 1 and 4.3)."""

    AUTO = "auto"  # when a NAT was detected
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Secret:
    """A pre-shared key, which no log or repr may show."""

    octets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class IkeSuite:
    """A phase 1 transform: AES-CBC, a hash (which is the PRF too), and a group."""

    key_bits: int
    hash: HashAlgorithm
    group: Group

    @property
    def name(self) -> str:
        """As configurations write it: aes128-sha256-ecp256."""
        return f"aes{self.key_bits}-{self.hash.text}-{self.group.name}"


@dataclass(frozen=True, slots=True)
class Retransmission:
    """When an unanswered message is sent again: after `first` seconds, then `factor` times longer, `tries` in all."""

    first: float = 0.5
    factor: float = 2.0
    tries: int = 6

    def wait(self, sent: int) -> float:
        """Seconds to wait after the message went out for the `sent`-th time."""
        return self.first * self.factor ** (sent - 1)

    @property
    def total(self) -> float:
        """Seconds from the first transmission until the message is given up."""
        return sum(self.wait(n) for n in range(1, self.tries + 1))


@dataclass(frozen=True, slots=True)
class Connection:
    """One peer and the traffic to protect with it. `remote` is an IPv4 address, or None for any."""

    name: str
    remote: str | None
    local_identity: Identity
    remote_identity: IdentityPattern
    secret: Secret
    ike_suites: tuple[IkeSuite, ...]
    esp_suites: tuple[EspSuite, ...]
    selector: Selector
    remote_port: int = 500
    pfs: Group | None = None
    encapsulation: EncapsulationPolicy = EncapsulationPolicy.AUTO
    start: bool = False
    source: str = ""
    ike_lifetime: int = 28_800  # seconds
    esp_lifetime: int = 3_600  # seconds
    retry: float = 10.0  # seconds between attempts, where `start` asks for the connection to be kept up
    retransmission: Retransmission = field(default_factory=Retransmission)

    def may_come_from(self, address: str) -> bool:
        """Whether a peer at this address may be the one that is meant."""
        return self.remote is None or self.remote == address
