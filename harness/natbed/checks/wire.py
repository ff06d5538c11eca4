"""Audit of a public wire: nothing on it but IKE, ESP behind its marker, and keepalives, all readable with the keys.

Two judges look at every frame of a capture. This module reads link, IP and UDP headers by itself and searches the
pattern; tshark, with the keys that the ends logged, opens ESP and IKE. What may be there
(draft-huttunen-ipsec-esp-in-udp-01, clauses 3.2, 4.3, 4.4):

- UDP between the server's port and an expected peer: IKE, keepalives, and ESP behind eight octets of zero;
- for bare encapsulation instead: the same UDP without ESP in it, and IP protocol 50 between the same addresses;
- ARP;
- ICMPv6 of a link itself (types 130 to 137 and 143: neighbour and router discovery, multicast listeners) from a
  link-local or unspecified address: the kernel's own housekeeping, which no router passes on.

Everything else is a violation: ICMP is, and so is an IP fragment that makes no whole packet with others. What went out
in clear is named first. In transport mode ESP holds TCP, UDP and ICMP itself, and UDP's checksum is 0 in ESP in UDP
(5). No sender of ESP repeats an IV or a sequence number.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from natbed.capture import CaptureError, CaptureSummary, Frame, read_pcap, write_pcap
from natbed.checks import CheckResult, Verdict
from natbed.dissection import Dissection, WiresharkProfile

from .esp_freshness import find_repetitions, iv_octets
from .fragments import reassemble
from .outer import Kind, Outer, WireExpectation, classify, dotted

_SHOWN = 10  # violations in the details; all are counted
_IPIP = 4
_ICMP, _TCP, _UDP = 1, 6, 17
_L2TP_PORT = 1701
_L2TP_CONTROL, _L2TP_MASK = 0xC802, 0xC80F  # RFC 2661, 3.1: T, L and S bits set in control messages, version 2


class WireFacts(msgspec.Struct, kw_only=True):
    """What the audit saw, in frames."""

    frames: dict[str, int]
    esp_good: int = 0
    ike_encrypted: int = 0
    ike_decrypted: int = 0
    with_pattern: int = 0
    l2tp: int = 0  # control messages in ESP of transport mode
    spis: list[str] = []
    ike_cookies: list[str] = []  # the initiators'
    violation_count: int = 0
    violations: list[str] = []


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
        captured = read_pcap(capture)
        frames, incomplete = reassemble(captured)
        # All ports: a NAT may map to one that tshark knows for something else, such as 53.
        ports = [*(port for _, port in expected.servers), *(port for _, port in expected.peers)]
        wireshark = WiresharkProfile(profile, key_logs, ports=ports)
        outers = [classify(frame.data, expected) for frame in frames]
        facts, violations = _judge_outer(frames, outers, expected)
        violations += _judge_fragments(captured, frames, incomplete, facts, expected)
        dissections = _dissect(capture, captured, frames, outers, wireshark)
        ivs = iv_octets(profile / "esp_sa")
    except CaptureError as error:
        return CheckResult(name="wire", verdict=Verdict.LAB_BROKEN, reason=str(error))
    violations += _judge_inner(facts, frames, outers, dissections, expected, wireshark)
    esp = [frame for frame, outer in zip(frames, outers, strict=True) if outer.kind is Kind.ESP]
    violations += find_repetitions(esp, ivs)
    facts.violation_count = len(violations)
    facts.violations = violations[:_SHOWN]
    verdict, reason = _conclude(facts, violations, wireshark, summary, any(frame.truncated for frame in captured))
    return CheckResult(name="wire", verdict=verdict, reason=reason, details=msgspec.to_builtins(facts))


def merge_segments(results: Mapping[str, CheckResult]) -> CheckResult:
    """One verdict on several segments: the worst one's, else the first one's; with that on each, and all SPIs seen."""
    first = next(iter(results.values()))
    worst = first
    for segment, result in results.items():
        if _RANKS[result.verdict] > _RANKS[worst.verdict]:
            reason = result.reason if result is first else f"at {segment}: {result.reason}"
            worst = msgspec.structs.replace(result, reason=reason)
    segments = {segment: {"verdict": result.verdict, "reason": result.reason} for segment, result in results.items()}
    spis = list(dict.fromkeys(spi for result in results.values() for spi in result.details.get("spis", [])))
    details = {**worst.details, "segments": segments, "spis": spis}
    return msgspec.structs.replace(worst, details=details)


_RANKS = {Verdict.PASSED: 0, Verdict.LAB_BROKEN: 1, Verdict.FAILED: 2}


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
    l2tp = f", {facts.l2tp} of them L2TP control messages" if facts.l2tp else ""
    return Verdict.PASSED, (
        f"{facts.esp_good} ESP packets, all authentic{l2tp}; {facts.frames.get(Kind.IKE, 0)} IKE messages, "
        f"{facts.ike_decrypted} decrypted; nothing in clear{sample}"
    )


def _judge_outer(frames: list[Frame], outers: list[Outer], expected: WireExpectation) -> tuple[WireFacts, list[str]]:
    facts = WireFacts(frames={str(kind): count for kind, count in Counter(outer.kind for outer in outers).items()})
    in_clear, violations = [], []
    for frame, outer in zip(frames, outers, strict=True):
        if outer.kind is Kind.FOREIGN:
            violations.append(f"frame {frame.number}: {outer.what}")
        if expected.pattern in frame.data:
            in_clear.append(f"frame {frame.number}: the plaintext pattern in clear ({outer.what})")
    violations = in_clear + violations
    if not facts.frames.get(Kind.ESP):
        violations.append("no ESP packet was on the wire")
    return facts, violations


def _judge_fragments(
    captured: list[Frame], frames: list[Frame], incomplete: list[Frame], facts: WireFacts, expected: WireExpectation
) -> list[str]:
    """Fragments as they were on the wire; the packets that they make are judged like others."""
    whole = {id(frame) for frame in frames}
    fragments = [frame for frame in captured if id(frame) not in whole]
    if fragments:
        facts.frames["fragment"] = len(fragments)
    violations = [f"frame {frame.number}: IP fragment of a packet that is not whole" for frame in incomplete]
    for frame in fragments:
        if expected.pattern in frame.data:
            violations.append(f"frame {frame.number}: the plaintext pattern in clear (IP fragment)")
    return violations


def _judge_inner(
    facts: WireFacts,
    frames: list[Frame],
    outers: list[Outer],
    dissections: dict[int, Dissection],
    expected: WireExpectation,
    wireshark: WiresharkProfile,
) -> list[str]:
    violations = []
    spis: dict[str, None] = {}
    cookies: dict[str, None] = {}
    known = wireshark.esp_spis
    for frame, outer in zip(frames, outers, strict=True):
        seen = dissections.get(frame.number)  # None: the repetition of an IKE datagram, judged with the first one
        problem = ""
        if outer.kind is Kind.ESP:
            if not wireshark.esp_keys:
                continue
            problem = _esp_problem(seen, outer, expected, known)
            facts.esp_good += not problem
            if seen is not None:
                facts.with_pattern += not problem and expected.pattern in seen.inner
                facts.l2tp += not problem and expected.mode == "transport" and _is_l2tp_control(seen)
                spis[seen.spi] = None
        elif outer.kind is Kind.IKE and seen is not None:
            cookies[seen.initiator_cookie] = None
            facts.ike_encrypted += seen.ike_encrypted
            facts.ike_decrypted += seen.ike_decrypted
            if seen.malformed:
                problem = "IKE message that tshark calls malformed"
            elif seen.ike_encrypted and not seen.ike_decrypted and seen.initiator_cookie in wireshark.ike_cookies:
                problem = f"IKE message that the key of its initiator cookie {seen.initiator_cookie} does not open"
        if problem:
            violations.append(f"frame {frame.number}: {problem} ({outer.what})")
    facts.spis = list(spis)
    facts.ike_cookies = list(cookies)
    return violations


def _esp_problem(seen: Dissection | None, outer: Outer, expected: WireExpectation, known: Collection[int]) -> str:
    """Why an ESP packet is not what it should be, or nothing. `known` are the SPIs whose keys were logged."""
    if seen is None or not seen.spi:
        return "ESP that tshark does not recognise"
    if bool(seen.marker) != (expected.encapsulation == "udp"):
        return "ESP whose marker tshark does not see"
    if seen.icv_bad:
        return f"ESP of SPI {seen.spi} with a wrong ICV"
    if int(seen.spi, 0) not in known:
        return f"ESP of SPI {seen.spi}, whose key nobody logged"
    if not seen.icv_good or not seen.inner:
        return f"ESP of SPI {seen.spi}, which its logged key does not open"
    if expected.mode == "transport":
        return _transport_problem(seen, in_udp=expected.encapsulation == "udp")
    return _inner_problem(seen, outer.from_server, expected.protected)


def _transport_problem(seen: Dissection, *, in_udp: bool) -> str:
    """The draft, 5: a checksum that covers addresses which a NAT changes says nothing, so UDP's is left out."""
    following = int(seen.next_header or "0", 0)
    if following not in (_ICMP, _TCP, _UDP):
        return f"ESP of SPI {seen.spi} whose next header is {following}, not TCP, UDP or ICMP as in transport mode"
    if following == _UDP:
        if len(seen.inner) < 8 or int.from_bytes(seen.inner[4:6], "big") != len(seen.inner):
            return f"ESP of SPI {seen.spi} whose inner UDP datagram is not whole"
        checksum = int.from_bytes(seen.inner[6:8], "big")
        if in_udp and checksum:
            return f"ESP of SPI {seen.spi} whose inner UDP checksum is {checksum:#06x}, not 0"
    return ""


def _is_l2tp_control(seen: Dissection) -> bool:
    inner = seen.inner
    if int(seen.next_header, 0) != _UDP or len(inner) < 10:
        return False
    ports = int.from_bytes(inner[:2], "big"), int.from_bytes(inner[2:4], "big")
    return _L2TP_PORT in ports and int.from_bytes(inner[8:10], "big") & _L2TP_MASK == _L2TP_CONTROL


def _inner_problem(seen: Dissection, from_server: bool, protected: tuple[tuple[str, str], ...]) -> str:
    inner = seen.inner
    if int(seen.next_header or "0", 0) != _IPIP:
        return f"ESP of SPI {seen.spi} whose next header is {seen.next_header}, not IPv4"
    if len(inner) < 20 or inner[0] >> 4 != 4 or int.from_bytes(inner[2:4], "big") != len(inner):
        return f"ESP of SPI {seen.spi} whose inner packet is no whole IPv4 packet"
    source, destination = dotted(inner[12:16]), dotted(inner[16:20])
    peer, server = (destination, source) if from_server else (source, destination)
    if not any(_within(peer, pair[0]) and _within(server, pair[1]) for pair in protected):
        return f"inner packet {source} > {destination} in ESP of SPI {seen.spi}, which no tunnel protects"
    return ""


@functools.cache
def _within(address: str, network: str) -> bool:
    return ipaddress.IPv4Address(address) in ipaddress.IPv4Network(network, strict=False)


def _dissect(
    capture: Path, captured: list[Frame], frames: list[Frame], outers: list[Outer], wireshark: WiresharkProfile
) -> dict[int, Dissection]:
    """Let tshark see each IKE datagram once, since a repetition would upset its chain of CBC initialisation vectors.

    Packets that came in fragments are given to it whole, for the same reason: a repeated one has other fragments.
    """
    kept = []
    seen: set[tuple[bool, bytes]] = set()
    for frame, outer in zip(frames, outers, strict=True):
        if outer.kind is Kind.IKE:
            if (outer.from_server, outer.payload) in seen:
                continue
            seen.add((outer.from_server, outer.payload))
        kept.append(frame)
    if len(kept) == len(captured):  # nothing was left out, nothing put together
        return wireshark.dissect(capture)
    shown = wireshark.directory / "without-repetitions.pcap"
    write_pcap(shown, kept)
    return {kept[number - 1].number: seen for number, seen in wireshark.dissect(shown).items()}
