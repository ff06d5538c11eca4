"""A pair of ESP SAs, as Quick Mode made it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..esp.suites import EspSuite
from ..messages import Encapsulation, Mode, Path, Selector


@dataclass(frozen=True, slots=True)
class ChildSa:
    """Both directions of one protected traffic: what IKE tells IPsec (the draft, 4.4)."""

    connection: str
    path: Path
    suite: EspSuite
    encapsulation: Encapsulation
    selector: Selector
    inbound_spi: int
    outbound_spi: int
    inbound_keymat: bytes = field(repr=False)
    outbound_keymat: bytes = field(repr=False)
    expires: float = float("inf")  # on the endpoint's clock, seconds
    mode: Mode = Mode.TUNNEL
    octets: int = 0  # of inner packets that each direction may carry; 0 for any number
    initiator: bool = True  # of the Quick Mode that made it
    mapped: str = ""  # in tunnel mode: the network as which the selector's remote one appears here; "" for itself

    @property
    def policy(self) -> str:
        """The data plane's policy that leads to it: in transport mode one for each address of a peer.

        Where inner addresses are translated, one for each network that a peer's appears as.
        """
        if self.mode == Mode.TUNNEL:
            return f"{self.connection}@{self.mapped}" if self.mapped else self.connection
        return f"{self.connection}@{self.path.remote}"
