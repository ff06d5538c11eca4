"""F. A remote worker's home LAN, connected to the corporation's LAN; both use the same private address pool.

client1 ──┐                                                                   ┌── server1
          ├── homegw ──── isp ──── nat ──── internet ──── corpgw ─────────────┤
client2 ──┘   192.168.1.0/24                              192.168.1.0/24      └── server2

The two LANs' addresses collide, so each gateway does a second NAT (1): a packet of its LAN gets a source of another
network before it enters the tunnel, and one that has left the tunnel gets the host's own address as its destination.
Hosts at home are 10.1.0.x to the corporation, and its hosts are 10.2.0.x to them.
"""

from __future__ import annotations

import natbed.scenario
from natbed.scenario import Scenario, Tunnel

LAN = "192.168.1.0/24"
HOME, CORPORATION = "10.1.0.0/24", "10.2.0.0/24"  # as what each LAN appears on the other side


class LansWithTheSamePool(Scenario):
    """The draft's sixth case (3.1, F): one tunnel for each pair of hosts, between two gateways."""

    letter = "F"
    title = "LANs with the same private pool"
    requirements = ("F", "G2G-NAT")
    modes = ("tunnel",)
    not_supported = {  # noqa: RUF012
        "transport": "gateways forward the packets of others: transport mode is for a host's own (RFC 2401, 4.1)"
    }
    client_counts = (1, 2)

    def build(self, clients: int = 1, placement: str = "ingress") -> None:
        """`clients` hosts on the home LAN, two servers on the corporation's.

        The home's addresses are mapped before they enter the tunnel, at home ("ingress"), or after they have left it,
        at the corporation ("egress").
        """
        internet = self.internet()
        isp = self.nat_router("nat", wan=internet, lan="100.64.1.0/24", lan_name="isp")
        at_home = placement == "ingress"
        home = self.gateway("homegw", wan=isp.lan, lan=LAN, lan_name="home", mapped=HOME if at_home else "")
        beyond = None if at_home else (LAN, HOME)
        corporation = self.gateway(
            "corpgw", wan=internet, lan=LAN, lan_name="office", mapped=CORPORATION, remote=beyond
        )
        for n in range(clients):
            self.station(f"client{n + 1}", on=home.lan)
        for n in range(2):
            self.station(f"server{n + 1}", on=corporation.lan)

    def tunnels(self) -> list[Tunnel]:
        """One for each pair of hosts, by the addresses that the gateways give them."""
        pairs = [(client, server) for client in self.clients for server in self.servers]
        return [
            Tunnel(
                "homegw",
                "corpgw",
                name=f"{client}-{server}",
                initiator_network=f"{self.in_tunnel(client)}/32",
                responder_network=f"{self.in_tunnel(server)}/32",
                joins=((client, server),),
            )
            for client, server in pairs
        ]


if __name__ == "__main__":
    raise SystemExit(natbed.scenario.main(LansWithTheSamePool))
