"""The network of the proof: every NAT beside the others, two hosts behind each, and a server on the Internet."""

from __future__ import annotations

from collections.abc import Sequence

from natbed.nat.profile import NatProfile
from natbed.scenario import HostPlan, Scenario, Tunnel

MOST = 40  # NATs in one network: what it has addresses for


class Street(Scenario):
    """NATs at one Internet."""

    title = "NATs beside each other"

    def build(self, nats: Sequence[NatProfile] = ()) -> None:
        """`nats` are `MOST` at most."""
        internet = self.internet()
        for place, profile in enumerate(nats, start=1):
            home = self.nat_router(f"nat{place}", wan=internet, lan=f"192.168.{place}.0/24", profile=profile)
            for number in (1, 2):
                self.host(f"host{place}x{number}", on=home.lan)
        self.host("server", on=internet)

    def tunnels(self) -> list[Tunnel]:
        """None: nobody speaks IPsec here."""
        return []

    def hosts_behind(self, nat: str) -> tuple[HostPlan, HostPlan]:
        """The two hosts behind the NAT of that name."""
        place = nat.removeprefix("nat")
        return self.hosts_planned[f"host{place}x1"], self.hosts_planned[f"host{place}x2"]
