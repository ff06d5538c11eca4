"""What an endpoint wants and allows: connections, as values."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

from ..esp.suites import EspSuite
from ..messages import Mode, Selector
from .credentials import Credentials
from .groups import GROUPS, Group
from .identity import Identity, IdentityPattern
from .keying import HASHES, HashAlgorithm, IkeCipher


class EncapsulationPolicy(enum.StrEnum):
    """When ESP goes in UDP (the draft, 1 and 4.3)."""

    AUTO = "auto"  # when a NAT was detected
    ALWAYS = "always"
    NEVER = "never"


class Exchange(enum.StrEnum):
    """How phase 1 is made (RFC 2409, 5)."""

    MAIN = "main"
    AGGRESSIVE = "aggressive"  # shows identities in the clear, and with pre-shared keys lets anyone guess them offline


class Authentication(enum.StrEnum):
    """How peers prove who they are in phase 1 (RFC 2409, 5.1 and 5.4)."""

    PSK = "psk"
    RSA = "rsa"


class Rebinding(enum.StrEnum):
    """Whether an SA follows a peer whose outer address or port has changed."""

    NEVER = "never"  # the draft, 5: only IKE says where a peer is
    AUTHENTICATED = "authenticated"  # after a packet that passed ICV and replay checks


@dataclass(frozen=True, slots=True)
class Secret:
    """A pre-shared key, which no log or repr may show."""

    octets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class IkeSuite:
    """A phase 1 transform: a cipher, a hash (which is the PRF too), and a group. `key_bits` is 0 for 3DES."""

    key_bits: int
    hash: HashAlgorithm
    group: Group
    cipher: IkeCipher = IkeCipher.AES_CBC

    @classmethod
    def from_name(cls, name: str) -> IkeSuite:
        """From what configurations write. Raises ValueError that says what is unknown."""
        match = re.fullmatch(r"(aes128|aes256|3des)-([a-z0-9]+)-([a-z0-9]+)", name)
        if match is None:
            raise ValueError("a suite reads like aes128-sha256-ecp256")
        for known, what, part in ((HASHES, "hash", match[2]), (GROUPS, "group", match[3])):
            if part not in known:
                raise ValueError(f"unknown {what} {part}; known are {', '.join(known)}")
        cipher = IkeCipher.TRIPLE_DES_CBC if match[1] == "3des" else IkeCipher.AES_CBC
        return cls(int(match[1][3:]) if match[1] != "3des" else 0, HASHES[match[2]], GROUPS[match[3]], cipher)

    @property
    def name(self) -> str:
        """As configurations write it: aes128-sha256-ecp256, 3des-sha1-modp1024."""
        return f"{self.cipher.text}{self.key_bits or ''}-{self.hash.text}-{self.group.name}"


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
    """One peer and the traffic to protect with it. `remote` is an IPv4 address, or None for any. Times in seconds."""

    name: str
    remote: str | None
    local_identity: Identity
    remote_identity: IdentityPattern
    ike_suites: tuple[IkeSuite, ...]
    esp_suites: tuple[EspSuite, ...]
    selector: Selector  # in transport mode protocol and ports count, and the addresses are those of the path
    secret: Secret | None = None  # with Authentication.PSK
    credentials: Credentials | None = None  # with Authentication.RSA
    remote_port: int = 500
    exchange: Exchange = Exchange.MAIN
    authentication: Authentication = Authentication.PSK
    mode: Mode = Mode.TUNNEL
    translate: bool = False  # in tunnel mode: the peer's inner network appears here as one of the pool (the draft, 7)
    pfs: Group | None = None
    encapsulation: EncapsulationPolicy = EncapsulationPolicy.AUTO
    rebinding: Rebinding = Rebinding.NEVER
    start: bool = False  # bring it up at once, and keep it up
    acquire: bool = True  # bring it up when there is traffic for it
    source: str = ""
    ike_lifetime: int = 28_800
    esp_lifetime: int = 3_600
    esp_octets: int = 0  # of inner packets that one SA may carry; 0 for any number
    rekey: bool = True  # replace SAs before they expire
    rekey_margin: float = 0.1  # of a lifetime: how long before its end an SA is replaced
    rekey_overlap: float = 10.0  # how long a replaced SA still accepts what is under way
    dpd_interval: float = 30.0  # of questions whether the peer is alive (RFC 3706); 0 for none
    keepalive_interval: float = 20.0  # of keepalives through a NAT (the draft, 4.3); 0 for none
    keepalive_tail: float = 300.0  # how long they go on when all SAs are gone (the draft, 4.3)
    retry: float = 10.0  # between attempts, where the connection is to be kept up
    retransmission: Retransmission = field(default_factory=Retransmission)

    def may_come_from(self, address: str) -> bool:
        """Whether a peer at this address may be the one that is meant."""
        return self.remote is None or self.remote == address
