"""D. A client on the Internet, connected to servers behind a NAT.

                                       ┌── server1
client1 ──── internet ──── nat ────────┤
                           1:1         └── server2
"""

from __future__ import annotations

import natbed.scenario
from natbed.nat import presets
from natbed.scenario import Scenario, Tunnel


class ServersBehindNat(Scenario):
    """The draft's fourth case (3.1, D): only responders are behind a NAT, each known by an address of its own."""

    letter = "D"
    title = "servers behind a 1:1 NAT"
    requirements = ("D",)
    client_counts = (1, 2)
    nats = ("one-to-one",)  # behind a many:1 NAT a server could not be reached, and two could not be told apart

    def build(self, clients: int = 1) -> None:
        """`clients` hosts on the Internet, each connected to both servers."""
        internet = self.internet()
        dmz = self.nat_router("nat", wan=internet, lan="172.16.1.0/24", lan_name="dmz", profile=presets.ONE_TO_ONE)
        for n in range(clients):
            self.host(f"client{n + 1}", on=internet)
        for n in range(2):
            self.host(f"server{n + 1}", on=dmz.lan)

    def tunnels(self) -> list[Tunnel]:
        """Each client to each server, dialed at the address that the NAT gives it."""
        return [Tunnel(client, server) for client in self.clients for server in self.servers]


if __name__ == "__main__":
    raise SystemExit(natbed.scenario.main(ServersBehindNat))
