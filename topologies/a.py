"""A. One or more clients behind one NAT, connected at once to a server on the Internet.

client1 ──┐
          ├── nat ──── internet ──── server
client2 ──┘
"""

from __future__ import annotations

import natbed.scenario
from natbed.nat import presets
from natbed.nat.passthrough_presets import PASSTHROUGH
from natbed.nat.profile import NatProfile
from natbed.scenario import Scenario, Tunnel


class ClientsBehindOneNat(Scenario):
    """The draft's first case (3.1, A): the server tells the clients apart by their ports alone."""

    letter = "A"
    title = "clients behind one NAT"
    requirements = ("A",)
    nats = ("masquerade", "one-to-one", "symmetric", "full-cone", "carrier-grade", *PASSTHROUGH)
    carries = ("l2tp",)

    def build(self, clients: int = 2, nat: NatProfile = presets.MASQUERADE) -> None:
        """`clients` hosts on the home LAN; `nat` is what their router does."""
        internet = self.internet()
        home = self.nat_router("nat", wan=internet, lan="192.168.1.0/24", profile=nat)
        for n in range(clients):
            self.host(f"client{n + 1}", on=home.lan)
        self.host("server", on=internet)

    def tunnels(self) -> list[Tunnel]:
        """Each client to the server."""
        return [Tunnel(client, "server") for client in self.clients]


if __name__ == "__main__":
    raise SystemExit(natbed.scenario.main(ClientsBehindOneNat))
