"""Audit of a public wire: nothing on it but IKE, ESP behind its marker, and keepalives, all readable with the keys.

Two judges look at every frame of a capture. This module reads link, IP and UDP headers by itself and searches the
pattern; tshark, with the keys that the ends logged, opens ESP and IKE. What may be there
(draft-huttunen-ipsec-esp-in-udp-01, clauses 3.2, 4.3, 4.4):

- UDP between the server's port and an expected peer: IKE, keepalives, and ESP behind eight octets of zero;
- for bare encapsulation instead: the same UDP without ESP in it, and IP protocol 50 between the same addresses;
- ARP;
- ICMPv6 of a link itself (types 130 to 137 and 143: neighbour and router discovery, multicast listeners) from a
  link-local or unspecified address: the kernel's own housekeeping, which no router passes on.

Everything else is a violation: ICMP is, and so is an IP fragment unless its first fragment is allowed.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from natbed.capture import (
    CaptureError,
    CaptureSummary,
    Dissection,
    Frame,
    WiresharkProfile,
    read_pcap,
    write_pcap,
)
from natbed.checks import PATTERN, CheckResult, Verdict

_SHOWN = 10  # violations in the details; all are counted
_IP, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_UDP, _ESP, _IPIP = 17, 50, 4
_LINK_ICMPV6 = {*range(130, 138), 143}
_ISAKMP_HEADER = 28  # octets


@dataclass(frozen=True, slots=True)
class WireExpectation:
    """What a wire may show.

    `server` and `peers` are (address, UDP port) as this wire sees them: behind a NAT, its public address and the mapped
    ports. `protected` pairs each peer-side network with the server-side network that its tunnels join ("a.b.c.d/n").
    """

    server: tuple[str, int]
    peers: frozenset[tuple[str, int]]
    protected: tuple[tuple[str, str], ...]
    encapsulation: Literal["udp", "none"] = "udp"
    pattern: bytes = PATTERN


class Kind(enum.StrEnum):
    """What a frame of the wire is, by its outer headers and the draft's demultiplexer."""

    ARP = "arp"
    LINK_ICMPV6 = "link icmpv6"
    IKE = "ike"
    KEEPALIVE = "keepalive"
    ESP = "esp"
    FRAGMENT = "fragment"  # not a packet's first one
    FOREIGN = "foreign"


class WireFacts(msgspec.Struct, kw_only=True):
    """What the audit saw, in frames."""

    frames: dict[str, int]
    esp_good: int = 0
    ike_encrypted: int = 0
    ike_decrypted: int = 0
    with_pattern: int = 0
    spis: list[str] = []
    violation_count: int = 0
    violations: list[str] = []


@dataclass(frozen=True, slots=True)
class _Outer:
    kind: Kind
    what: str  # for people: "UDP 203.0.113.2:337 > 203.0.113.18:500"
    from_server: bool = False
    payload: bytes = b""
    packet: tuple[bytes, ...] = ()  # which IP packet a fragment belongs to


def audit_wire(
    capture: Path,
    key_logs: Sequence[Path],
    expected: WireExpectation,
    *,
    profile: Path,
    summary: CaptureSummary | None = None,
) -> CheckResult:
    """Judge the capture of a public wire; `profile` is a directory to make for tshark's configuration and keys.

    FAILED names the first violation. LAB_BROKEN means that the evidence proves nothing: packets missing from the
    capture, no keys, tshark unable, or the pattern in no decrypted packet. What is certainly wrong outweighs that.
    """
    try:
        frames = read_pcap(capture)
        # All ports: a NAT may map to one that tshark knows for something else, such as 53.
        ports = [expected.server[1], *(port for _, port in expected.peers)]
        wireshark = WiresharkProfile(profile, key_logs, ports=ports)
        outers = [_classify(frame.data, expected) for frame in frames]
        facts, violations = _judge_outer(frames, outers, expected)
        dissections = _dissect(capture, frames, outers, wireshark)
    except CaptureError as error:
        return CheckResult(name="wire", verdict=Verdict.LAB_BROKEN, reason=str(error))
    violations += _judge_inner(facts, frames, outers, dissections, expected, wireshark)
    facts.violation_count = len(violations)
    facts.violations = violations[:_SHOWN]
    verdict, reason = _conclude(facts, violations, wireshark, summary, any(frame.truncated for frame in frames))
    return CheckResult(name="wire", verdict=verdict, reason=reason, details=msgspec.to_builtins(facts))


def _conclude(
    facts: WireFacts,
    violations: list[str],
    wireshark: WiresharkProfile,
    summary: CaptureSummary | None,
    truncated: bool,
) -> tuple[Verdict, str]:
    if violations:
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        return Verdict.FAILED, violations[0] + more
    if summary is not None and summary.dropped:
        return Verdict.LAB_BROKEN, f"the capture lacks {summary.dropped} packets that the kernel dropped"
    if truncated:
        return Verdict.LAB_BROKEN, "the capture holds truncated packets"
    if not wireshark.esp_keys:
        return Verdict.LAB_BROKEN, "no ESP keys were logged, so nothing could be decrypted"
    if not facts.with_pattern:
        return (
            Verdict.LAB_BROKEN,
            "the plaintext pattern is in no decrypted packet, so its absence in clear proves nothing",
        )
    sample = " in the capture's first packets, up to its limit" if summary is not None and summary.limit_reached else ""
    return Verdict.PASSED, (
        f"{facts.esp_good} ESP packets, all authentic; {facts.frames.get(Kind.IKE, 0)} IKE messages, "
        f"{facts.ike_decrypted} decrypted; nothing in clear{sample}"
    )


def _judge_outer(frames: list[Frame], outers: list[_Outer], expected: WireExpectation) -> tuple[WireFacts, list[str]]:
    facts = WireFacts(frames={str(kind): count for kind, count in Counter(outer.kind for outer in outers).items()})
    allowed = {outer.packet for outer in outers if outer.packet and outer.kind not in (Kind.FRAGMENT, Kind.FOREIGN)}
    violations = []
    for frame, outer in zip(frames, outers, strict=True):
        if outer.kind is Kind.FOREIGN or (outer.kind is Kind.FRAGMENT and outer.packet not in allowed):
            violations.append(f"frame {frame.number}: {outer.what}")
        if expected.pattern in frame.data:
            violations.append(f"frame {frame.number}: the plaintext pattern in clear ({outer.what})")
    if not facts.frames.get(Kind.ESP):
        violations.append("no ESP packet was on the wire")
    return facts, violations


def _judge_inner(
    facts: WireFacts,
    frames: list[Frame],
    outers: list[_Outer],
    dissections: dict[int, Dissection],
    expected: WireExpectation,
    wireshark: WiresharkProfile,
) -> list[str]:
    violations = []
    spis: dict[str, None] = {}
    for frame, outer in zip(frames, outers, strict=True):
        seen = dissections.get(frame.number)  # None: the repetition of an IKE datagram, judged with the first one
        problem = ""
        if outer.kind is Kind.ESP:
            if not wireshark.esp_keys:
                continue
            problem = _esp_problem(seen, outer, expected)
            facts.esp_good += not problem
            if seen is not None:
                facts.with_pattern += not problem and expected.pattern in seen.inner
                spis[seen.spi] = None
        elif outer.kind is Kind.IKE and seen is not None:
            facts.ike_encrypted += seen.ike_encrypted
            facts.ike_decrypted += seen.ike_decrypted
            if seen.malformed:
                problem = "IKE message that tshark calls malformed"
            elif seen.ike_encrypted and not seen.ike_decrypted and seen.initiator_cookie in wireshark.ike_cookies:
                problem = f"IKE message that the key of its initiator cookie {seen.initiator_cookie} does not open"
        if problem:
            violations.append(f"frame {frame.number}: {problem} ({outer.what})")
    facts.spis = list(spis)
    return violations


def _esp_problem(seen: Dissection | None, outer: _Outer, expected: WireExpectation) -> str:
    """Why an ESP packet is not what it should be, or nothing."""
    if seen is None or not seen.spi:
        return "ESP that tshark does not recognise"
    if bool(seen.marker) != (expected.encapsulation == "udp"):
        return "ESP whose marker tshark does not see"
    if seen.icv_bad:
        return f"ESP of SPI {seen.spi} with a wrong ICV"
    if not seen.icv_good or not seen.inner:
        return f"ESP of SPI {seen.spi}, for which no logged key fits"
    return _inner_problem(seen, outer.from_server, expected.protected)


def _inner_problem(seen: Dissection, from_server: bool, protected: tuple[tuple[str, str], ...]) -> str:
    inner = seen.inner
    if int(seen.next_header or "0", 0) != _IPIP:
        return f"ESP of SPI {seen.spi} whose next header is {seen.next_header}, not IPv4"
    if len(inner) < 20 or inner[0] >> 4 != 4 or int.from_bytes(inner[2:4], "big") != len(inner):
        return f"ESP of SPI {seen.spi} whose inner packet is no whole IPv4 packet"
    source, destination = _dotted(inner[12:16]), _dotted(inner[16:20])
    peer, server = (destination, source) if from_server else (source, destination)
    if not any(_within(peer, pair[0]) and _within(server, pair[1]) for pair in protected):
        return f"inner packet {source} > {destination} in ESP of SPI {seen.spi}, which no tunnel protects"
    return ""


@functools.cache
def _within(address: str, network: str) -> bool:
    return ipaddress.IPv4Address(address) in ipaddress.IPv4Network(network, strict=False)


def _dissect(
    capture: Path, frames: list[Frame], outers: list[_Outer], wireshark: WiresharkProfile
) -> dict[int, Dissection]:
    """Let tshark see each IKE datagram once, since a repetition would upset its chain of CBC initialisation vectors."""
    kept = []
    seen: set[tuple[bool, bytes]] = set()
    for frame, outer in zip(frames, outers, strict=True):
        if outer.kind is Kind.IKE and not outer.packet:
            if (outer.from_server, outer.payload) in seen:
                continue
            seen.add((outer.from_server, outer.payload))
        kept.append(frame)
    if len(kept) == len(frames):
        return wireshark.dissect(capture)
    without_repetitions = wireshark.directory / "without-repetitions.pcap"
    write_pcap(without_repetitions, kept)
    return {kept[number - 1].number: seen for number, seen in wireshark.dissect(without_repetitions).items()}


def _classify(frame: bytes, expected: WireExpectation) -> _Outer:
    """What an Ethernet frame is, by its outer headers and the draft's demultiplexer (clauses 3.2 and 4.3)."""
    if len(frame) < 14:
        return _Outer(Kind.FOREIGN, f"frame of {len(frame)} octets")
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype == _ARP:
        return _Outer(Kind.ARP, "ARP")
    if ethertype == _IPV6:
        return _classify_ipv6(frame[14:])
    packet = frame[14:]
    if ethertype != _IP or len(packet) < 20 or packet[0] >> 4 != 4:
        return _Outer(Kind.FOREIGN, f"ethertype {ethertype:#06x}")
    return _classify_ipv4(packet, expected)


def _classify_ipv6(packet: bytes) -> _Outer:
    if len(packet) < 48:
        return _Outer(Kind.FOREIGN, "IPv6")
    header, body, source = packet[6], packet[40:], ipaddress.IPv6Address(packet[8:24])
    if header == 0:  # multicast listener reports come behind a hop-by-hop option, the router alert
        header, body = body[0], body[(body[1] + 1) * 8 :]
    link_only = source.is_link_local or source.is_unspecified
    if header == 58 and body and body[0] in _LINK_ICMPV6 and link_only:
        return _Outer(Kind.LINK_ICMPV6, f"ICMPv6 type {body[0]} from {source}")
    return _Outer(Kind.FOREIGN, f"IPv6, next header {header}, from {source}")


def _classify_ipv4(packet: bytes, expected: WireExpectation) -> _Outer:
    length = (packet[0] & 15) * 4
    total, identification, fragment = struct.unpack_from("!HHH", packet, 2)
    protocol, source, destination = packet[9], _dotted(packet[12:16]), _dotted(packet[16:20])
    fragment_of = (packet[12:20], packet[4:6], packet[9:10]) if fragment & 0x3FFF else ()
    if fragment & 0x1FFF:
        what = f"IP fragment {identification} of protocol {protocol}, {source} > {destination}"
        return _Outer(Kind.FRAGMENT, what, packet=fragment_of)
    body = packet[length:total]
    from_server = source == expected.server[0]
    if protocol == _ESP:
        what = f"bare ESP {source} > {destination}"
        peers = {address for address, _ in expected.peers}
        inward = source in peers and destination == expected.server[0]
        allowed = expected.encapsulation == "none" and (inward or (from_server and destination in peers))
        return _Outer(Kind.ESP if allowed else Kind.FOREIGN, what, from_server, packet=fragment_of)
    if protocol != _UDP or len(body) < 8:
        name = {1: "ICMP", 6: "TCP", 17: "short UDP"}.get(protocol, f"IP protocol {protocol}")
        return _Outer(Kind.FOREIGN, f"{name} {source} > {destination}")
    source_port, destination_port = struct.unpack_from("!HH", body)
    what = f"UDP {source}:{source_port} > {destination}:{destination_port}"
    ends = (source, source_port), (destination, destination_port)
    from_server = ends[0] == expected.server
    server, peer = ends if from_server else ends[::-1]
    if server != expected.server or peer not in expected.peers:
        return _Outer(Kind.FOREIGN, f"{what}, which is no expected flow")
    kind, note = _demultiplex(body[8:], expected, whole=not fragment_of)
    return _Outer(kind, what + note, from_server, body[8:], fragment_of)


def _demultiplex(payload: bytes, expected: WireExpectation, *, whole: bool) -> tuple[Kind, str]:
    if payload == b"\xff":
        return Kind.KEEPALIVE, ""
    if len(payload) > 8 and payload[:8] == bytes(8):
        if expected.encapsulation == "udp":
            return Kind.ESP, ""
        return Kind.FOREIGN, ": ESP in UDP, where bare ESP was expected"
    stated = int.from_bytes(payload[24:28], "big")
    if len(payload) < _ISAKMP_HEADER or payload[17] >> 4 != 1 or (whole and stated != len(payload)):
        return Kind.FOREIGN, ": neither ESP behind its marker, nor an IKE message, nor a keepalive"
    return Kind.IKE, ""


def _dotted(address: bytes) -> str:
    return ".".join(map(str, address))
