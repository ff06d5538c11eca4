"""F1. As F, with one tunnel SA pair for all traffic between the two gateways.

client1 ──┐                                                                   ┌── server1
          ├── homegw ──── isp ──── nat ──── internet ──── corpgw ─────────────┤
client2 ──┘   192.168.1.0/24                              192.168.1.0/24      └── server2
              10.1.0.0/24  <═════════ one tunnel ═════════>  10.2.0.0/24
"""

from __future__ import annotations

import natbed.scenario
from natbed.scenario import Scenario, Tunnel

LAN = "192.168.1.0/24"
HOME, CORPORATION = "10.1.0.0/24", "10.2.0.0/24"  # as what each LAN appears on the other side


class OneTunnelBetweenGateways(Scenario):
    """The draft's case F1 (3.1): all hosts of both LANs share one SA pair."""

    letter = "F1"
    title = "LANs with the same private pool, one tunnel"
    requirements = ("F1", "G2G-NAT")
    modes = ("tunnel",)
    not_supported = {  # noqa: RUF012
        "transport": "gateways forward the packets of others: transport mode is for a host's own (RFC 2401, 4.1)"
    }
    client_counts = (1, 2)

    def build(self, clients: int = 2, placement: str = "ingress") -> None:
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
        """One, which joins every host at home with every server."""
        joins = tuple((client, server) for client in self.clients for server in self.servers)
        return [Tunnel("homegw", "corpgw", joins=joins)]


if __name__ == "__main__":
    raise SystemExit(natbed.scenario.main(OneTunnelBetweenGateways))
