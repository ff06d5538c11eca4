"""nftables text of NATs that remember their mappings apart from conntrack's flows, and of what iptables cannot see.

Conntrack knows flows: who has sent to whom. RFC 4787's mappings and filters are of less: an inside address and port,
whoever they send to. So each packet that leaves writes its mapping into sets and maps, where the next flow's choice of
a port, and packets from strangers, find it. Only UDP is treated so; all else has its flow's translation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import limits
from .profile import Filtering, Fragments, Hairpinning, Late, Mapping, NatProfile, Pooling, Ports, Refresh
from .profile import ZeroChecksum as Zero

TABLE = "ip natbed"
REFUSED = "refused"  # the counter of what came from outside when its mapping had ended

_BEFORE_DEFRAGMENTATION = -450  # conntrack puts fragments together at -400, and then nothing can tell
_BEFORE_CONNTRACK = -300
_AFTER_FILTERS = 10
_AFTER_TRANSLATION = 110  # conntrack translates sources at 100
_AFTER_CLASHES = 120
_SIZE = 65_536  # ports of an address
_ADDRESS, _PORT = "ipv4_addr", "inet_service"


@dataclass(frozen=True, slots=True)
class Where:
    """The addresses around a NAT: its own outside ones, the hosts that a port may be forwarded to, the LAN."""

    outside: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    network: str = ""


NOWHERE = Where()


@dataclass(frozen=True, slots=True)
class _Packet:
    """Where a packet's own fields and its flow say who is who: the mapping's two sides, and the remote end."""

    public: tuple[str, str]
    inside: tuple[str, str]
    remote: tuple[str, str]
    direction: str  # conntrack's: "original" is that of a flow's first packet


_SOURCE, _DESTINATION = ("ip saddr", "udp sport"), ("ip daddr", "udp dport")


def _of_flow(direction: str, end: str) -> tuple[str, str]:
    return f"ct {direction} ip {end[0]}addr", f"ct {direction} proto-{end}"


# as they leave, translated; and as they are forwarded to the inside, translated
_LEAVING = (
    _Packet(_SOURCE, _of_flow("original", "src"), _of_flow("original", "dst"), "original"),
    _Packet(_SOURCE, _of_flow("reply", "src"), _DESTINATION, "reply"),
)
_ARRIVING = (
    _Packet(_of_flow("original", "dst"), _DESTINATION, _SOURCE, "original"),
    _Packet(_of_flow("reply", "dst"), _DESTINATION, _SOURCE, "reply"),
)
_NEW = _Packet(("", ""), _SOURCE, _of_flow("original", "dst"), "original")  # not translated yet


def render(profile: NatProfile, wan: str, lan: str, where: Where = NOWHERE) -> str:
    """The input of `nft -f` for a router with these two interfaces; "" where iptables' rules are all that is needed.

    Raises ValueError for a profile that no rules make.
    """
    limits.check(profile)
    blocks = list(_packets(profile, wan, lan))
    if limits.remembers(profile) or profile.ports is Ports.OVERLOADED:
        blocks += _translation(profile, wan, lan, where)
    if not blocks:
        return ""
    body = "\n".join(blocks)
    return f"table {TABLE} {{\n}}\nflush table {TABLE}\ntable {TABLE} {{\n{body}\n}}\n"


def render_timeouts(profile: NatProfile, where: Where) -> str:
    """The input of `nft -f` for a NAT that has another profile's table, which differs in its timeouts alone.

    It leaves what the NAT has learned, and the port that is next; "" for a NAT that remembers nothing.
    """
    if not limits.remembers(profile):
        return ""
    written = list(_written_down(profile, where))
    flushed = "\n".join(f"flush chain {TABLE} {name}" for name, _ in written)
    body = "\n".join(_chain(name, *rules) for name, rules in written)
    return f"{flushed}\ntable {TABLE} {{\n{body}\n}}\n"


def _packets(profile: NatProfile, wan: str, lan: str) -> Iterator[str]:
    """What is dropped for what it is, whoever sends it."""
    if profile.fragments is Fragments.DROPPED:
        yield _chain(
            "fragments",
            f"type filter hook prerouting priority {_BEFORE_DEFRAGMENTATION}; policy accept;",
            f'iifname {{ "{wan}", "{lan}" }} ip frag-off & 0x3fff != 0 drop',
        )
    if profile.zero_checksum is Zero.DROPPED:
        yield _chain(
            "checksums",
            "type filter hook forward priority 0; policy accept;",
            "udp checksum 0 drop",
        )


def _translation(profile: NatProfile, wan: str, lan: str, where: Where) -> list[str]:
    outside, count = where.outside, profile.addresses
    if len(outside) != count:
        raise ValueError(f"NAT profile {profile.name}: it has {count} outside addresses, not {len(outside)}")
    forwards = _forwards(profile, where)
    blocks: list[str] = []
    if limits.remembers(profile):
        blocks += _memory(profile)
    ports = [port for port, _ in forwards]
    blocks += [_fresh(profile, number, address, ports) for number, address in enumerate(outside)]
    blocks += _outward(profile, wan, lan, outside[0], forwards, where.network)
    if limits.remembers(profile):
        blocks += _inward(profile, wan, lan, outside, forwards)
        blocks += _learning(profile, wan, lan, where)
    return blocks


def _nth(profile: NatProfile, hosts: Sequence[str], number: int) -> str:
    if number > len(hosts):
        raise ValueError(f"NAT profile {profile.name}: a port is for host {number} of a LAN that has {len(hosts)}")
    return hosts[number - 1]


# what is remembered


def _key(mapping: Mapping, packet: _Packet) -> str:
    """Whose packets share a mapping, in one packet's terms."""
    remote = {
        Mapping.ENDPOINT_INDEPENDENT: (),
        Mapping.ADDRESS_DEPENDENT: packet.remote[:1],
        Mapping.ADDRESS_AND_PORT_DEPENDENT: packet.remote,
    }[mapping]
    return " . ".join((*packet.inside, *remote))


def _key_type(mapping: Mapping) -> str:
    return " . ".join((_ADDRESS, _PORT, _ADDRESS, _PORT)[: _key(mapping, _NEW).count(" . ") + 1])


def _reuses(profile: NatProfile) -> bool:
    return profile.mapping is not Mapping.ADDRESS_AND_PORT_DEPENDENT


def _lets_strangers_in(profile: NatProfile) -> bool:
    return profile.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT


def _memory(profile: NatProfile) -> Iterator[str]:
    """`taken` are the outside ports in use; `owned` says by which mapping; `inside` and `outside` are the mappings."""
    key, public = _key_type(profile.mapping), f"{_ADDRESS} . {_PORT}"
    for number in range(profile.addresses):
        yield _set("set", f"taken{number}", _PORT)
    yield _set("set", "owned", f"{public} . {key}")
    yield _set("set", "claimed", public)
    if _lets_strangers_in(profile):
        yield _set("map", "inside", f"{public} : {public}")
    if _reuses(profile):
        yield _set("map", "outside", f"{key} : {public}")
    if profile.filtering is Filtering.ADDRESS_DEPENDENT:
        yield _set("set", "contacted", f"{public} . {_ADDRESS}")
    if profile.refresh is not Refresh.BOTH:
        yield f"\tcounter {REFUSED} {{\n\t}}"


def _set(what: str, name: str, types: str) -> str:
    return _block(what, name, f"type {types}", f"size {_SIZE}", "flags dynamic,timeout")


def _learning(profile: NatProfile, wan: str, lan: str, where: Where) -> Iterator[str]:
    """Each packet writes down its mapping, and so keeps it for another timeout where its direction refreshes."""
    outside, forwards = where.outside, _forwards(profile, where)
    learned = "meta l4proto udp goto learn"
    leaves = [f'oifname "{wan}" {learned}']
    if profile.hairpinning is Hairpinning.EXTERNAL:
        leaves.append(f'oifname "{lan}" ip saddr {{ {", ".join(outside)} }} {learned}')
    yield _chain(
        "clashes",
        f"type filter hook postrouting priority {_AFTER_TRANSLATION}; policy accept;",
        *_clashes(profile, outside, forwards),
    )
    for name, rules in _written_down(profile, where):
        yield _chain(name, *rules)
    yield _chain("leaving", f"type filter hook postrouting priority {_AFTER_CLASHES}; policy accept;", *leaves)
    if profile.refresh is Refresh.BOTH:
        yield _chain(
            "arriving",
            f"type filter hook forward priority {_AFTER_FILTERS}; policy accept;",
            f'iifname "{wan}" oifname "{lan}" meta l4proto udp goto refresh',
        )
        return
    # Conntrack would let a flow's inbound packets in for as long as any come.
    late = "reject with icmp type port-unreachable" if profile.late is Late.REJECTED else "drop"
    yield _chain(
        "ended",
        f"type filter hook prerouting priority {_BEFORE_CONNTRACK}; policy accept;",
        *(f'iifname "{wan}" udp dport {port} accept' for port, _ in forwards),
        *(
            f'iifname "{wan}" ip daddr {address} udp dport != @taken{number} counter name "{REFUSED}" {late}'
            for number, address in enumerate(outside)
        ),
    )


def _clashes(profile: NatProfile, outside: Sequence[str], forwards: Sequence[tuple[int, str]]) -> Iterator[str]:
    """A port was chosen without regard to who else has it towards others: the sender's next packet gets another.

    Of two hosts that choose one at once the first to claim it has it: else both would write it down, and come to it
    again. A claim's limit is asked under its own lock, so that just one of them is the first.
    """
    new, first = "ct state new ct direction original", _LEAVING[0]
    for number, address in enumerate(outside):
        owner = f"{_joined(first.public)} . {_key(profile.mapping, first)}"
        yield f"{new} ip saddr {address} udp sport @taken{number} {owner} != @owned drop"
        claim = f"{_joined(first.public)} timeout 1s limit rate over 1/second burst 1 packets"
        yield f"{new} ip saddr {address} meta l4proto udp {owner} != @owned add @claimed {{ {claim} }} drop"
    for port, host in forwards:
        yield f"{new} ip saddr {outside[0]} udp sport {port} ct original ip saddr != {host} drop"


def _written_down(profile: NatProfile, where: Where) -> Iterator[tuple[str, list[str]]]:
    """The chains that write mappings down, and so have their timeouts."""
    yield "learn", list(_written(profile, _LEAVING, where.outside))
    if profile.refresh is Refresh.BOTH:
        yield "refresh", list(_written(profile, _ARRIVING, where.outside))


def _forwards(profile: NatProfile, where: Where) -> list[tuple[int, str]]:
    """Which port is for which host."""
    return [(forward.port, _nth(profile, where.hosts, forward.inside)) for forward in profile.forwards]


def _written(profile: NatProfile, packets: Sequence[_Packet], outside: Sequence[str]) -> Iterator[str]:
    lasts = f"timeout {profile.udp_timeout_stream}s"
    for packet in packets:
        public, key = _joined(packet.public), _key(profile.mapping, packet)
        when = f"meta l4proto udp ct direction {packet.direction}"  # without, ports of flows have no type
        for number, address in enumerate(outside):
            yield f"{when} {packet.public[0]} {address} update @taken{number} {{ {packet.public[1]} {lasts} }}"
        yield f"{when} update @owned {{ {public} . {key} {lasts} }}"
        if _lets_strangers_in(profile):
            yield f"{when} update @inside {{ {public} {lasts} : {_joined(packet.inside)} }}"
        if _reuses(profile):
            yield f"{when} update @outside {{ {key} {lasts} : {public} }}"
        if profile.filtering is Filtering.ADDRESS_DEPENDENT:
            yield f"{when} update @contacted {{ {public} . {packet.remote[0]} {lasts} }}"


# how it is translated


def _fresh(profile: NatProfile, number: int, address: str, forwarded: Sequence[int]) -> str:
    """A new mapping's port on one of the outside addresses."""
    free = f"udp sport != @taken{number} " + "".join(f"udp sport != {port} " for port in forwarded)
    first, last = profile.port_range
    some = f"meta l4proto udp snat to {address}:{first}-{last} fully-random"
    ports = {
        Ports.PRESERVED: [f"{free}snat to {address} : udp sport", some],
        Ports.OVERLOADED: [f"meta l4proto udp snat to {address} : udp sport"],
        Ports.CONTIGUOUS: [f"meta l4proto udp snat to {address} : {_next_of(first, last)}"],
        Ports.RANDOM: [some],
    }[profile.ports]
    return _chain(f"fresh{number}", *ports, f"snat to {address}")


def _next_of(first: int, last: int) -> str:
    """A number as a port: numgen's own is in the order of the machine's octets, not of the network's."""
    ports = ", ".join(f"{number} : {first + number}" for number in range(last - first + 1))
    return f"numgen inc mod {last - first + 1} map {{ {ports} }}"


def _outward(
    profile: NatProfile, wan: str, lan: str, first: str, forwards: Sequence[tuple[int, str]], network: str
) -> Iterator[str]:
    rules = [f"ip saddr {host} udp sport {port} snat to {first}:{port}" for port, host in forwards]
    if limits.remembers(profile) and _reuses(profile):
        rules.append(f"meta l4proto udp snat ip to {_key(profile.mapping, _NEW)} map @outside")
    yield _chain("translate", *rules, _pooled(profile))
    where = [f'oifname "{wan}" goto translate']
    if profile.hairpinning is Hairpinning.EXTERNAL:
        where.append(f'oifname "{lan}" ip saddr {network} ct status dnat goto translate')
    yield _chain("outward", "type nat hook postrouting priority 100; policy accept;", *where)


def _pooled(profile: NatProfile) -> str:
    count = profile.addresses
    if count == 1:
        return "goto fresh0"
    if profile.pooling is Pooling.PAIRED:
        choices = ", ".join(f"0.0.0.{number} : goto fresh{number}" for number in range(count))
        return f"ip saddr & 0.0.0.{count - 1} vmap {{ {choices} }}"
    choices = ", ".join(f"{number} : goto fresh{number}" for number in range(count))
    return f"numgen inc mod {count} vmap {{ {choices} }}"


def paired(address: str, outside: Sequence[str]) -> str:
    """The outside address of an inside one, of a NAT with paired pooling."""
    return outside[int(address.rpartition(".")[2]) & (len(outside) - 1)]


def _inward(
    profile: NatProfile, wan: str, lan: str, outside: Sequence[str], forwards: Sequence[tuple[int, str]]
) -> Iterator[str]:
    rules = [f'iifname "{wan}" ip daddr {outside[0]} udp dport {port} dnat to {host}' for port, host in forwards]
    if _lets_strangers_in(profile):
        known = f"{_joined(_DESTINATION)} . ip saddr @contacted "
        contacted = known if profile.filtering is Filtering.ADDRESS_DEPENDENT else ""
        rules.append(f'iifname "{wan}" {contacted}meta l4proto udp dnat ip to {_joined(_DESTINATION)} map @inside')
    if profile.hairpinning is not Hairpinning.NONE:
        rules.append(f'iifname "{lan}" meta l4proto udp dnat ip to {_joined(_DESTINATION)} map @inside')
    if rules:
        yield _chain("inward", "type nat hook prerouting priority -100; policy accept;", *rules)


# nftables' grammar


def _joined(parts: tuple[str, str]) -> str:
    return " . ".join(parts)


def _chain(name: str, *lines: str) -> str:
    return _block("chain", name, *lines)


def _block(what: str, name: str, *lines: str) -> str:
    return "\n".join((f"\t{what} {name} {{", *(f"\t\t{line}" for line in lines), "\t}"))
