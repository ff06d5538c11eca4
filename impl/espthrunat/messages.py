"""What the IKE daemon and the data plane say to each other, in the terms of PF_KEY (RFC 2367).

One message is one MessagePack object in one packet of a SOCK_SEQPACKET socket pair. The daemon opens with
`Configure` and waits for `Ready`; after that both sides speak when they have something to say.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec


class Path(msgspec.Struct, frozen=True, array_like=True):
    """The two ends of a UDP flow as seen from here. NATs live in the difference of two peers' paths, nowhere else."""

    local: str
    local_port: int
    remote: str
    remote_port: int


class Direction(enum.StrEnum):
    """Which way an SA's traffic goes, seen from here."""

    INBOUND = "in"
    OUTBOUND = "out"


class Mode(enum.StrEnum):
    """What ESP protects (RFC 2401, 4.1)."""

    TUNNEL = "tunnel"  # whole packets
    TRANSPORT = "transport"  # the payload of the host's own packets


class Encapsulation(enum.StrEnum):
    """What ESP travels in: UDP behind eight zero octets (the draft, clause 4.4), or bare IP protocol 50."""

    UDP = "udp"
    NONE = "none"


class Selector(msgspec.Struct, frozen=True, array_like=True):
    """The traffic an SA protects (RFC 2401, 4.4.2), seen from here; 0 means any protocol or any port."""

    local: str  # a network, "10.0.0.1/32"
    remote: str
    protocol: int = 0
    local_port: int = 0
    remote_port: int = 0


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Daemon to plane, first: open UDP `address`:`port` and the TUN device `tun`; `mtu` is the path's, in octets.

    Without `batches` no system call may carry more than one packet, which is slower but shows what batches are worth.
    """

    address: str
    port: int
    tun: str
    mtu: int = 1500
    batches: bool = True


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Plane to daemon: both devices are open; or, with `error` set, why they are not (the plane then ends)."""

    error: str = ""


class AddSa(msgspec.Struct, frozen=True, tag="add_sa"):
    """Daemon to plane: use this SA from now on. The newest outbound SA of a policy is the one that is used.

    In transport mode several peers may share a policy and an address, behind one NAT: each flow keeps to the newest SA
    of the path that it came by.
    """

    spi: int
    direction: Direction
    suite: str  # a name in esp.suites.SUITES
    keymat: bytes  # KEYMAT of RFC 2409, 5.5: encryption key, salt where the suite has one, authentication key
    path: Path
    encapsulation: Encapsulation
    selector: Selector
    policy: str  # the policy that outbound traffic reaches this SA by; for inbound SAs, a label
    mode: Mode = Mode.TUNNEL
    soft_octets: int = 0  # of inner packets, after which Expire(hard=False) is said once; 0 for never
    hard_octets: int = 0  # after which the SA carries nothing more; 0 for never
    rebinding: bool = False  # inbound: follow the peer to where an authentic, fresh packet comes from
    mapped: str = ""  # tunnel mode: the network as which the selector's remote one appears here; "" for itself


class DeleteSa(msgspec.Struct, frozen=True, tag="delete_sa"):
    """Daemon to plane: forget this SA. Deleting what is not there is no error."""

    spi: int
    direction: Direction
    path: Path


class AddPolicy(msgspec.Struct, frozen=True, tag="add_policy"):
    """Daemon to plane: traffic of this selector must be protected; without an SA it waits for one, and acquires it.

    Such traffic is routed into the TUN device, our own IKE and ESP excepted; `source` is the address the host prefers
    for it ("" for none). The first policy that a packet fits counts, but a `fallback` only when no other one does.
    Where the peer's address is known, traffic may wait until it has brought an SA up (`on_demand`); else only while an
    inbound SA says that its outbound one is about to come: whoever had the address before gets nothing.
    """

    policy: str
    selector: Selector
    source: str = ""
    mode: Mode = Mode.TUNNEL
    fallback: bool = False
    steer: bool = True  # without it, a fallback has brought the traffic here already
    on_demand: bool = True


class DeletePolicy(msgspec.Struct, frozen=True, tag="delete_policy"):
    """Daemon to plane: the policy and its route go."""

    policy: str


class Acquire(msgspec.Struct, frozen=True, tag="acquire"):
    """Plane to daemon: traffic met a policy that has no SA. At most one a second for each policy."""

    policy: str


class Expire(msgspec.Struct, frozen=True, tag="expire"):
    """Plane to daemon: an SA must be replaced (`hard`: it was not, and can no longer be used)."""

    spi: int
    direction: Direction
    reason: Literal["octets", "sequence"]
    hard: bool


class Used(msgspec.Struct, frozen=True, tag="used"):
    """Plane to daemon, once for each inbound SA: it has carried an authentic packet."""

    spi: int
    path: Path


class Rebound(msgspec.Struct, frozen=True, tag="rebound"):
    """Plane to daemon: an authentic, fresh packet of a rebinding SA came from elsewhere.

    That inbound SA, and the outbound SAs to `old`, now have the path `new`.
    """

    spi: int
    old: Path
    new: Path


class Move(msgspec.Struct, frozen=True, tag="move"):
    """Daemon to plane: the peer of an inbound SA has proved to IKE that it is at `new` now.

    That SA, if it is still at `old`, and the outbound SAs to there have the path `new` from now on.
    """

    spi: int
    old: Path
    new: Path


class Keepalive(msgspec.Struct, frozen=True, tag="keepalive"):
    """Daemon to plane: send a keepalive on this path whenever nothing else was sent for `interval` seconds.

    An interval of 0 ends it. The draft, 4.3.
    """

    path: Path
    interval: float


class Datagrams(msgspec.Struct, frozen=True, tag="datagrams"):
    """IKE datagrams, up from the wire or down to it, in order."""

    items: list[tuple[Path, bytes]]


class GetStats(msgspec.Struct, frozen=True, tag="get_stats"):
    """Daemon to plane: answer with `Stats` that carries the same `query`."""

    query: int


class SaStats(msgspec.Struct, frozen=True):
    """One SA's counters; octets are those of inner packets."""

    spi: int
    direction: Direction
    path: Path
    suite: str
    packets: int
    octets: int
    dropped: dict[str, int]


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """Plane to daemon: everything that was counted since start, drops by their kind. With `more`, more SAs follow."""

    query: int
    counters: dict[str, int]
    sas: list[SaStats]
    more: bool = False


ToPlane = Configure | AddSa | DeleteSa | Move | AddPolicy | DeletePolicy | Keepalive | Datagrams | GetStats
FromPlane = Ready | Acquire | Expire | Used | Rebound | Datagrams | Stats

MAX_MESSAGE = 200_000  # octets; below the kernel's default socket buffer of 212,992

encode = msgspec.msgpack.Encoder().encode
decode_to_plane = msgspec.msgpack.Decoder(ToPlane).decode
decode_from_plane = msgspec.msgpack.Decoder(FromPlane).decode
