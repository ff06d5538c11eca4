"""E. Clients that are configured alike, with the same private address each behind its own NAT, connected at once.

client1 ──── nat1 ──┐
                    ├── internet ──── server
client2 ──── nat2 ──┘
"""

from __future__ import annotations

import natbed.scenario
from natbed.scenario import Scenario, Tunnel


class ClientsConfiguredAlike(Scenario):
    """The draft's fifth case (3.1, E): the server tells the clients apart by their NATs alone."""

    letter = "E"
    title = "clients with the same private address"
    requirements = ("E",)
    client_counts = (2, 3)

    def build(self, clients: int = 2) -> None:
        """So many homes, all with the same LAN prefix, and one client in each."""
        internet = self.internet()
        for n in range(clients):
            home = self.nat_router(f"nat{n + 1}", wan=internet, lan="192.168.1.0/24", lan_name=f"home{n + 1}")
            self.host(f"client{n + 1}", on=home.lan)
        self.host("server", on=internet)

    def tunnels(self) -> list[Tunnel]:
        """Each client to the server, which in tunnel mode knows each by an address of its own choice (1, 7)."""
        return [Tunnel(client, "server", translate=True) for client in self.clients]


if __name__ == "__main__":
    raise SystemExit(natbed.scenario.main(ClientsConfiguredAlike))
