"""The benchmark's network: NATs side by side, each with clients of its own, and one server."""

from __future__ import annotations

from collections.abc import Sequence

from natbed.nat.profile import NatProfile
from natbed.scenario import Scenario, Tunnel


class NatsSideBySide(Scenario):
    """Each NAT may forget after another time. Clients are numbered through, those of the first NAT first."""

    title = "NATs side by side"

    def build(self, nats: Sequence[NatProfile] = (), clients: Sequence[int] = ()) -> None:
        """`clients` are how many hosts are behind each of `nats`."""
        internet = self.internet()
        number = 0
        for place, (profile, count) in enumerate(zip(nats, clients, strict=True), start=1):
            home = self.nat_router(f"nat{place}", wan=internet, lan=f"192.168.{place}.0/24", profile=profile)
            for _ in range(count):
                number += 1
                self.host(f"client{number}", on=home.lan)
        self.host("server", on=internet)

    def tunnels(self) -> list[Tunnel]:
        """Each client to the server."""
        return [Tunnel(client, "server") for client in self.clients]

    def nat_of(self, client: str) -> str:
        """The name of the NAT before a client."""
        return self.routers_before(client)[0].name
