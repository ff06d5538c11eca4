"""C. One or more clients through two or more outbound NATs to a destination on the Internet.

client1 ──┐
          ├── nat1 ──── isp ──── nat2 ──── internet ──── server
client2 ──┘   many:1             many:1
"""

from __future__ import annotations

import natbed.scenario
from natbed.scenario import InternetPlan, LanPlan, Scenario, Tunnel


class ClientsBehindNatsInARow(Scenario):
    """The draft's third case (3.1, C): what one NAT has mapped, the next maps again."""

    letter = "C"
    title = "clients behind NATs in a row"
    requirements = ("C",)

    def build(self, clients: int = 2, nats: int = 2) -> None:
        """`clients` hosts on the home LAN; `nats` many:1 NATs between them and the Internet, nat1 the innermost."""
        internet = self.internet()
        outside: InternetPlan | LanPlan = internet
        for n in range(nats, 1, -1):
            outside = self.nat_router(f"nat{n}", wan=outside, lan=f"100.64.{n}.0/24", lan_name=f"isp{n}").lan
        home = self.nat_router("nat1", wan=outside, lan="192.168.1.0/24", lan_name="home")
        for n in range(clients):
            self.host(f"client{n + 1}", on=home.lan)
        self.host("server", on=internet)

    def tunnels(self) -> list[Tunnel]:
        """Each client to the server."""
        return [Tunnel(client, "server") for client in self.clients]


if __name__ == "__main__":
    raise SystemExit(natbed.scenario.main(ClientsBehindNatsInARow))
