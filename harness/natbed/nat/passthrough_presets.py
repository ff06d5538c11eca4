"""NATs with "IPsec pass-through", by the names that people search for, and what becomes of the draft's method there.

RFC 3715, 2.3, is about what NATs do in order to help IPsec, and why that harms; RFC 3947, 4, has IKE leave port 500 for
this reason. The draft stays there (6.1 says why), so it meets these NATs with everything that it sends.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from .presets import MASQUERADE
from .profile import NatProfile, Quirk


class Traffic(enum.StrEnum):
    """Which way packets pass a client's tunnel while all clients use theirs."""

    BOTH = "both ways"
    OUTBOUND = "only from the client"
    INBOUND = "only to the client"
    NONE = "neither way"


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one client: whether its tunnel comes up, what passes it then, what one of its ends says of it.

    `says` is a part of the bundled implementation's answer or log; "" where it has nothing to complain of.
    """

    connects: bool = True
    traffic: Traffic = Traffic.BOTH
    says: str = ""


class PassThrough(msgspec.Struct, frozen=True, kw_only=True):
    """A NAT profile with a quirk, and what becomes of clients of one server that connect one after the other.

    It is declared of tunnel mode and of ESP in UDP. In transport mode a server cannot tell clients apart that have the
    same outside address and port.
    """

    profile: NatProfile
    alone: Expected
    first: Expected
    last: Expected
    between: Expected | None = None
    """None: as the last one."""

    def of(self, clients: int) -> Iterator[Expected]:
        """For so many clients, in the order in which they connect."""
        if clients == 1:
            yield self.alone
            return
        yield self.first
        for _ in range(clients - 2):
            yield self.between or self.last
        yield self.last


WORKS = Expected()
UNANSWERED = Expected(connects=False, traffic=Traffic.NONE, says="no valid answer to")


def _profile(name: str, quirk: Quirk) -> NatProfile:
    return msgspec.structs.replace(MASQUERADE, name=name, quirk=quirk)


PIN_500 = PassThrough(
    profile=_profile("ipsec-passthrough-pin-500", Quirk.PIN_500),
    alone=WORKS,
    first=WORKS,
    last=UNANSWERED,
)
"""Source port 500 is never translated. RFC 3715, 2.3 b, knows such NATs: some IKE implementations insist on port 500.

One client for each server: a second one to the same server gets no answer until the first one's mapping has ended.
Clients of different servers do not notice.
"""

ONE_CLIENT = PassThrough(
    profile=_profile("ipsec-passthrough-one-client", Quirk.ONE_CLIENT),
    alone=WORKS,
    first=WORKS,
    last=UNANSWERED,
)
"""One VPN client at a time: while it uses port 500, everybody else's packets from there are dropped, to any server.

A maker of router tests says that early pass-through was so (QA Cafe, CDRouter knowledge base, "IPSEC pass through").
A user's second PC connects once the first has been silent for as long as a mapping lasts.
"""

FIRST_OWNS_500 = PassThrough(
    profile=_profile("ipsec-passthrough-first-owns-500", Quirk.FIRST_OWNS_500),
    alone=WORKS,
    first=WORKS,
    last=UNANSWERED,
)
"""All clients keep port 500, and what a server sends back is for the one that used it first.

What a NAT does that has an entry for "VPN traffic" and does not replace it. The second client's first message reaches
the server, whose answers go to the first client: the server sees half-open negotiations from an address that it knows.
"""

LAST_OWNS_500 = PassThrough(
    profile=_profile("ipsec-passthrough-last-owns-500", Quirk.LAST_OWNS_500),
    alone=WORKS,
    first=Expected(traffic=Traffic.OUTBOUND),
    last=WORKS,
    between=Expected(traffic=Traffic.OUTBOUND),
)
"""All clients keep port 500, and what a server sends back is for the one that has sent something there last.

What a NAT does that replaces its one entry for "VPN traffic" with that server. Each client connects, and from then on
whoever sends takes the others' answers away: tunnels that are up, and of which one at a time works. Clients of
different servers do not notice.
"""

IKE_COOKIES = PassThrough(
    profile=_profile("ipsec-passthrough-ike-cookies", Quirk.IKE_COOKIES),
    alone=WORKS,
    first=WORKS,
    last=Expected(traffic=Traffic.OUTBOUND),
)
"""All clients keep port 500, and IKE is told apart by its initiator cookie (RFC 3715, 2.3 a; RFC 3947, 4).

The draft's marker is a cookie of zeros to such a NAT, the same from every client: IKE works for all, and all ESP from
the server goes to the client that has sent some first. Phase 1 that a server begins has a cookie that no client has
sent, and is lost.
"""

ESP_SPIS = PassThrough(
    profile=_profile("ipsec-passthrough-esp-spis", Quirk.ESP_SPIS),
    alone=WORKS,
    first=WORKS,
    last=WORKS,
)
"""Bare ESP is translated, each inbound SPI guessed to be that of whoever has sent some last (RFC 3715, 2.1 f).

Linux's VPN Masquerade guessed so (VPN Masquerade HOWTO, "Can several clients on my local network use IPsec
simultaneously?"). The draft's ESP is in UDP, to which such a NAT does nothing. Two clients that send bare
ESP and begin at the same time may get each other's; the bundled implementation sends none where it finds a NAT.
"""

DAMAGES_MARKER = PassThrough(
    profile=_profile("ipsec-passthrough-damages-marker", Quirk.DAMAGES_MARKER),
    alone=Expected(traffic=Traffic.NONE, says="datagram malformed"),
    first=Expected(traffic=Traffic.NONE, says="datagram malformed"),
    last=Expected(traffic=Traffic.NONE, says="datagram malformed"),
)
"""Eight zeros at the start of a packet on port 500 are overwritten, as by a NAT that takes them for a missing cookie.

The draft (3.2) asks implementations to survive this; no device is known to the authors of this file that does it. IKE
works, ESP does not: what arrives is neither IKE nor ESP.
"""

SPLITS_MAPPINGS = PassThrough(
    profile=_profile("ipsec-passthrough-splits-mappings", Quirk.SPLITS_MAPPINGS),
    alone=Expected(traffic=Traffic.INBOUND, says="drop_wrong_path"),
    first=Expected(traffic=Traffic.INBOUND, says="drop_wrong_path"),
    last=Expected(traffic=Traffic.INBOUND, says="drop_wrong_path"),
)
"""IKE and ESP of one port 500 get a mapping each, as where an IPsec helper takes one of them out of the usual path.

No device is known to the authors of this file that does it. A server sees ESP from another port than IKE's, and
drops it: the draft (4.4) has SAs known by their ports too. What the server sends goes to IKE's port, and arrives.
"""

PASSTHROUGH = {
    one.profile.name: one
    for one in (
        PIN_500,
        ONE_CLIENT,
        FIRST_OWNS_500,
        LAST_OWNS_500,
        IKE_COOKIES,
        ESP_SPIS,
        DAMAGES_MARKER,
        SPLITS_MAPPINGS,
    )
}
