"""B. One or more clients behind NAT1, connected at once to one destination address, which is behind NAT2.

client1 ──┐                                     ┌── server
          ├── nat1 ──── internet ──── nat2 ─────┘
client2 ──┘   many:1                  1:1, into a DMZ
"""

from __future__ import annotations

import natbed.scenario
from natbed.nat import presets
from natbed.scenario import Scenario, Tunnel


class ServerInDmz(Scenario):
    """The draft's second case (3.1, B): the server does not have the address that it is known by."""

    letter = "B"
    title = "clients behind a NAT, server behind a 1:1 NAT"
    requirements = ("B",)

    def build(self, clients: int = 2) -> None:
        """`clients` hosts on the home LAN."""
        internet = self.internet()
        home = self.nat_router("nat1", wan=internet, lan="192.168.1.0/24", lan_name="home")
        dmz = self.nat_router("nat2", wan=internet, lan="172.16.1.0/24", lan_name="dmz", profile=presets.ONE_TO_ONE)
        for n in range(clients):
            self.host(f"client{n + 1}", on=home.lan)
        self.host("server", on=dmz.lan)

    def tunnels(self) -> list[Tunnel]:
        """Each client to the server, which it dials at the address that NAT2 gives it."""
        return [Tunnel(client, "server") for client in self.clients]


if __name__ == "__main__":
    raise SystemExit(natbed.scenario.main(ServerInDmz))
