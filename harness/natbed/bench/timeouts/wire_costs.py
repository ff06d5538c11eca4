"""What this implementation's keepalives and its ESP in UDP cost, measured: counted in captures on the NATs' inside."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from natbed.capture import Capture
from natbed.judging import Judge
from natbed.lab import Lab, LabError
from natbed.nat import presets
from natbed.settings import Protection, host_settings
from natbed.stacks.base import Stack, StackError
from natbed.tunnels import connect, running

from .network import NatsSideBySide
from .options import QUIET
from .pace import Pace
from .record import KeepalivesSeen, Overhead
from .traffic import Listener, Talk
from .watch import ESP_IN_UDP, KEEPALIVE, PLAIN_ESP, Packet, of, packets

INTERVAL = 1.0  # seconds between keepalives, real
INTERVALS = 10  # that are watched
SIZES = (64, 128, 256, 512, 1024, 1400)  # octets of inner packets, IP header included
_INNER_HEADERS = 28  # octets: IP, UDP
IDLE, BUSY, ROUTED = "client1", "client2", "client3"


def measure_costs(
    pace: Pace, stack: Stack, folder: pathlib.Path, progress: Callable[[str], None]
) -> tuple[list[KeepalivesSeen], list[Overhead]]:
    """Two clients behind a NAT, one idle and one busy, and one behind a plain router.

    Raises LabError and StackError, and what the parts of a lab raise.
    """
    scenario = NatsSideBySide(nats=[presets.MASQUERADE, presets.ROUTED], clients=[2, 1])
    here = folder / "costs"
    progress("costs: building the network")
    with Lab(scenario) as lab:
        nats = Judge(lab, Protection(), 0).nats()
        if not nats.passed:
            raise LabError(f"NAT: {nats.reason}")
        timing = pace.timing(dataclasses.replace(QUIET, keepalive=pace.model(INTERVAL)))
        settings = host_settings(scenario, Protection(), timing)
        with running(stack, lab, settings, here) as daemons:
            connect(scenario.tunnels(), daemons)
            talk = {one.client: one for one in scenario.conversations("tunnel")}
            with contextlib.ExitStack() as opened:
                pcaps = [here / f"{nat.name}-inside.pcap" for nat in lab.nats]
                watching = opened.enter_context(contextlib.ExitStack())
                for nat, pcap in zip(lab.nats, pcaps, strict=True):
                    watching.enter_context(Capture(nat, nat.lan, pcap))
                listeners = {
                    name: opened.enter_context(
                        Listener(Talk(lab[name], one.client_address, lab["server"], one.server_address))
                    )
                    for name, one in talk.items()
                }
                for listener in listeners.values():
                    listener.knock()
                progress(f"costs: counting keepalives for {INTERVAL * INTERVALS:.0f} s")
                begin = time.time()
                _keep_busy(listeners[BUSY])
                end = time.time()
                progress("costs: sending packets of every size")
                with ThreadPoolExecutor(2) as pool:
                    list(pool.map(lambda name: _send_sizes(listeners[name]), (IDLE, ROUTED)))
    passed = [packet for pcap in pcaps for packet in packets(pcap)]
    mine = {
        name: [one for one in of(plan.address, passed) if one.source == plan.address]
        for name, plan in scenario.hosts_planned.items()
        if name in talk
    }
    seen = [
        count_keepalives(name, mine[name], begin, end, busy=name == BUSY, nat=name != ROUTED, pace=pace)
        for name in (IDLE, BUSY, ROUTED)
    ]
    return seen, overheads(
        [one for one in mine[ROUTED] if one.seconds >= end], [one for one in mine[IDLE] if one.seconds >= end]
    )


def _keep_busy(listener: Listener) -> None:
    """ESP in every interval of keepalives, for all that are watched."""
    until = time.monotonic() + INTERVAL * INTERVALS
    while (left := until - time.monotonic()) > 0:
        listener.knock()
        time.sleep(min(INTERVAL * 0.4, left))  # the traffic's own pace


def _send_sizes(listener: Listener) -> None:
    for size in SIZES:
        listener.knock(size - _INNER_HEADERS)


def count_keepalives(
    client: str, sent: Sequence[Packet], begin: float, end: float, *, busy: bool, nat: bool, pace: Pace
) -> KeepalivesSeen:
    """Of what a client sent, between two times in seconds since the epoch."""
    found = [one for one in sent if one.kind == KEEPALIVE and begin <= one.seconds < end]
    gaps = [later.seconds - earlier.seconds for earlier, later in itertools.pairwise(found)]
    return KeepalivesSeen(
        client=client,
        busy=busy,
        nat=nat,
        interval=pace.model(INTERVAL),
        watched=pace.model(end - begin),
        packets=len(found),
        octets=sum(one.octets for one in found),
        mean=pace.model(sum(gaps) / len(gaps)) if gaps else None,
        longest=pace.model(max(gaps)) if gaps else None,
    )


def overheads(plain: Sequence[Packet], in_udp: Sequence[Packet]) -> list[Overhead]:
    """From the ESP of both clients, each a packet of every size in order. Raises StackError where some are missing."""
    bare = [one for one in plain if one.kind == PLAIN_ESP]
    wrapped = [one for one in in_udp if one.kind == ESP_IN_UDP]
    if not len(bare) == len(wrapped) == len(SIZES):
        raise StackError(
            f"of {len(SIZES)} packets {len(bare)} went as ESP through the router and {len(wrapped)} in UDP "
            "through the NAT"
        )
    return [
        Overhead(inner=size, plain=one.octets, in_udp=other.octets, zeros=other.zeros)
        for size, one, other in zip(SIZES, bare, wrapped, strict=True)
    ]
