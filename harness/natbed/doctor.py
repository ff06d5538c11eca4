"""What this machine has and lacks for natbed, found by trying each thing, never by version numbers.

Every probe runs in a thread of its own with private network, mount and UTS namespaces, `/run` a fresh tmpfs: what a
probe makes vanishes with its thread. Probes run side by side and each has a deadline. A user other than root becomes
root of a user namespace before, as for a lab.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from natbed.capture import Capture, Frame, read_pcap, write_pcap
from natbed.conntrack import ConntrackEvents, udp_mappings
from natbed.dissection import WiresharkProfile
from natbed.isolation import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_PRIVATE,
    MS_REC,
    IsolationError,
    become_root,
    outside_user,
    unshare,
)

T = TypeVar("T")

_PROBE_SECONDS = 5.0
_RUN = Path("/run")  # inside the private mount namespace


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that natbed can use: whether it works here (`ok`), what was seen, and what to do when it is missing.

    Without a `needed` one scenarios do not run; without another some cells or tests are skipped, or slower ways used.
    """

    name: str
    ok: bool
    needed: bool
    detail: str
    remedy: str


class ProbeError(Exception):
    """A probe found that something does not work; the text says what was seen."""


@dataclass(frozen=True, slots=True)
class _Probe:
    name: str
    try_it: Callable[[], str]  # returns the detail; raises when it does not work
    needed: bool
    remedy: str
    isolated: bool = True
    programs: tuple[str, ...] = ()  # what it runs: looked for where it cannot be tried


class _Here:
    """The probe's own namespaces, as a node."""

    name = "doctor"

    def call(self, function: Callable[[], T]) -> T:
        return function()

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        # Tied to the probe's thread, so that nothing outlives a probe that came too late.
        tie = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        return subprocess.Popen([*tie, *argv], **kwargs)

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout: float = _PROBE_SECONDS, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(argv, input=input, timeout=timeout, capture_output=True, text=True, check=False)
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ProbeError(f"{' '.join(argv)}: {said[0] if said else f'exit code {done.returncode}'}")
        return done


_HERE = _Here()


def run_doctor() -> list[Finding]:
    """Try everything at once; the findings come in a fixed order, needed things first. Takes a few seconds at most.

    A user other than root is to call it in a process without other threads; it is root of a user namespace after that.
    """
    slots: list[list[Finding]] = [[] for _ in PROBES]
    threads = []
    refused = ""
    try:
        become_root()
    except IsolationError as error:
        refused = str(error)
    for probe, slot in zip(PROBES, slots, strict=True):
        thread = threading.Thread(
            target=_examine, args=(probe, slot, refused), name=f"doctor {probe.name}", daemon=True
        )
        thread.start()
        threads.append(thread)
    until = time.monotonic() + _PROBE_SECONDS
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    late = f"no answer within {_PROBE_SECONDS:.0f} s"
    return [slot[0] if slot else _finding(probe, False, late) for probe, slot in zip(PROBES, slots, strict=True)]


def _finding(probe: _Probe, ok: bool, detail: str) -> Finding:
    return Finding(name=probe.name, ok=ok, needed=probe.needed, detail=detail, remedy="" if ok else probe.remedy)


def _examine(probe: _Probe, slot: list[Finding], refused: str) -> None:
    """`refused` says why this process may make no namespaces; "" if it may."""
    try:
        if refused and probe.try_it in (_root, _namespaces):
            raise ProbeError(refused)
        if refused and probe.isolated:
            slot.append(_untried(probe))
            return
        if probe.isolated:
            _isolate_this_thread()
        slot.append(_finding(probe, True, probe.try_it()))
    except FileNotFoundError as error:
        slot.append(_finding(probe, False, f"{error.filename or error}: not found"))
    except Exception as error:
        slot.append(_finding(probe, False, str(error) or repr(error)))


def _untried(probe: _Probe) -> Finding:
    missing = [program for program in probe.programs if shutil.which(program) is None]
    if missing:
        return _finding(probe, False, f"{', '.join(missing)}: not found")
    return msgspec.structs.replace(_finding(probe, False, "not tried without namespaces"), remedy=_ROOT)


def _isolate_this_thread() -> None:
    unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS)
    libc = ctypes.CDLL(None, use_errno=True)
    private = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    if libc.mount(b"none", b"/", b"", private, None) or libc.mount(b"none", b"/run", b"tmpfs", ctypes.c_ulong(0), None):
        raise ProbeError(f"no private mounts: {os.strerror(ctypes.get_errno())}")


def _commands(*lines: str) -> None:
    for line in lines:
        _HERE.run(line.split())


def _root() -> str:
    user = outside_user()
    return f"user {user}" if user == os.geteuid() else f"user {user}, root in a user namespace"


def _python() -> str:
    from .mininet_modules import net

    return f"Python {platform.python_version()}, Mininet {net.VERSION}"


def _namespaces() -> str:
    interfaces = [name for _, name in socket.if_nameindex()]
    if interfaces != ["lo"]:
        raise ProbeError(f"a new network namespace holds {interfaces}")
    return "network, mount and UTS namespaces"


def _veth() -> str:
    _commands("ip link add probe0 type veth peer name probe1", "ip link set probe0 up", "ip link set probe1 up")
    return "a pair came up"


def _bridge() -> str:
    _commands("ip link add probe0 type bridge", "ip link set probe0 up")
    return "a bridge came up"


def _tun() -> str:
    import fcntl

    file = Path("/dev/net/tun")
    try:
        with file.open("r+b", buffering=0) as device:
            fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"probe0", 0x0001 | 0x1000))  # TUNSETIFF, TUN, NO_PI
            _commands("ip link set probe0 up")
    except PermissionError as error:
        raise ProbeError(f"{file} has mode {file.stat().st_mode & 0o7777:04o}: {error.strerror}") from error
    return "a device came up"


def _masquerade() -> str:
    _commands("ip link set lo up", "iptables -t nat -A POSTROUTING -o lo -p udp -j MASQUERADE")
    _commands("iptables -A INPUT -p udp -m conntrack --ctstate NEW -j ACCEPT")
    if "-j MASQUERADE" not in _HERE.run(["iptables", "-t", "nat", "-S", "POSTROUTING"]).stdout:
        raise ProbeError("the rule was accepted, but is not there")
    return _HERE.run(["iptables", "--version"]).stdout.strip()


def _nftables() -> str:
    table = (
        "table ip probe { map learned { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; }\n"
        "chain learn { type filter hook postrouting priority 110;\n"
        "update @learned { udp sport timeout 1s : ct original ip saddr . ct original proto-src } } }"
    )
    _HERE.run(["nft", "-f", "-"], input=table)
    return _HERE.run(["nft", "--version"]).stdout.strip()


def _conntrack() -> str:
    for name, value in (("udp_timeout", "7"), ("udp_timeout_stream", "9"), ("events", "1"), ("timestamp", "1")):
        setting = Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}")
        setting.write_text(value)
        if setting.read_text().strip() != value:
            raise ProbeError(f"{setting.name} cannot be set")
    _commands(
        "ip link set lo up", "iptables -t nat -A POSTROUTING -o lo -p udp -j SNAT --to-source 127.0.0.9:4000-4009"
    )
    with ConntrackEvents(_HERE, _RUN / "events") as events:
        _send_datagram()
        mappings = udp_mappings(_HERE)
    if [mapping.public[0] for mapping in mappings] != ["127.0.0.9"] or events.count < 1:
        raise ProbeError(f"{len(mappings)} mappings and {events.count} events after one translated datagram")
    if mappings[0].seconds > 7:
        raise ProbeError(f"a mapping lives {mappings[0].seconds} s although its timeout was set to 7 s")
    return "translation, events and timeouts"


def _send_datagram() -> None:
    kind = socket.AF_INET, socket.SOCK_DGRAM
    with socket.socket(*kind) as sender, socket.socket(*kind) as receiver:  # else an ICMP error quotes the datagram
        sender.bind(("127.0.0.1", 0))
        receiver.bind(("127.0.0.2", 4500))
        sender.sendto(b"doctor", receiver.getsockname())


def _capture() -> str:
    _commands("ip link set lo up")
    with Capture(_HERE, "lo", _RUN / "probe.pcap") as capture:
        _send_datagram()
    frames = [frame for frame in read_pcap(_RUN / "probe.pcap") if b"doctor" in frame.data]
    if len(frames) != 1 or not capture.summary.complete:
        raise ProbeError(f"one datagram was captured {len(frames)} times, {capture.summary.dropped} dropped")
    return "AF_PACKET with time stamps"


def _tshark() -> str:
    esp = bytes(8) + struct.pack("!II", 0x1234, 1) + bytes(32)
    udp = struct.pack("!HHHH", 40000, 500, 8 + len(esp), 0) + esp
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\x7f\0\0\1", b"\x7f\0\0\2") + udp
    write_pcap(_RUN / "probe.pcap", [Frame(1, 0, ip, False)], link_type=101)
    row = WiresharkProfile(_RUN / "wireshark", []).dissect(_RUN / "probe.pcap", timeout=_PROBE_SECONDS)[1]
    if not row.marker or int(row.spi, 0) != 0x1234:
        raise ProbeError("the dissector does not find ESP behind its marker")
    version = _HERE.run(["tshark", "--version"]).stdout.splitlines()[0]
    return (
        f"{version.split(' (')[0]} {version.split(') ')[-1].split(' (')[0].rstrip('.')}, its Lua and natbed's dissector"
    )


def _iperf3() -> str:
    from natbed.checks.iperf import IperfPath, measure_direction

    _commands("ip link set lo up")
    rate = measure_direction(IperfPath(_HERE, _HERE, "127.0.0.1", "127.0.0.1"), duration=1)
    return f"{rate.megabits_per_second:.0f} Mbit/s on loopback"


def _setpriv() -> str:
    _commands("setpriv --pdeathsig KILL -- true")
    return "--pdeathsig"


def _ping() -> str:
    _commands("ip link set lo up", "ping -n -q -c 1 -W 1 -p 00 127.0.0.1")
    return "answered on loopback"


def _netem() -> str:
    _commands("ip link set lo up", "tc qdisc add dev lo root netem delay 1ms")
    return "delay, loss, reordering by the kernel"


def _xfrm() -> str:
    state = "ip xfrm state add src 127.0.0.1 dst 127.0.0.2 proto esp spi 0x1234 mode tunnel"
    _HERE.run([*state.split(), "enc", "ecb(cipher_null)", "", "auth", "digest_null", ""])
    return "the kernel has ESP"


def _nfqueue() -> str:
    _commands("iptables -t raw -A PREROUTING -p udp -j NFQUEUE --queue-num 1")
    return "by iptables"


def _strongswan() -> str:
    from natbed.stacks.base import StackError
    from natbed.stacks.strongswan import folder

    try:
        folder()
    except StackError as error:
        raise ProbeError(str(error)) from error
    return "charon and the plugins that it needs"


def _ethtool() -> str:
    _commands("ip link add probe0 type veth peer name probe1", "ethtool -K probe0 tx-udp-segmentation off")
    return "offloads of a veth can be switched"


def _xl2tpd() -> str:
    done = _HERE.run(["xl2tpd", "--version"], check=False)  # ends with exit code 1, whatever it says
    found = re.search(r"version:\s+xl2tpd-(\S+)", done.stdout)
    if not found:
        raise ProbeError(f"xl2tpd --version says {done.stdout.strip() or done.stderr.strip() or 'nothing'}")
    return f"xl2tpd {found[1]}"


_ROOT = "run as root, or let users make user namespaces"
_PACKAGES = "make setup, or install the package that has the program"
_KERNEL = "use a kernel that has it; nothing in natbed can stand in for it"
_TUN = "modprobe tun; mode 0666, which most distributions give it, if not root; in a container --device /dev/net/tun"
_NOT_NEEDED = "not needed: impairments are made by iptables and NFQUEUE without it"
_L2TP = "with xl2tpd, which make witnesses installs, scenario A carries L2TP in transport mode"
PROBES = (
    _Probe("root", _root, True, _ROOT, isolated=False),
    _Probe("python", _python, True, "make setup", isolated=False),
    _Probe("namespaces", _namespaces, True, f"{_ROOT} (a container needs --privileged)"),
    _Probe("veth", _veth, True, _KERNEL, programs=("ip",)),
    _Probe("bridge", _bridge, True, _KERNEL, programs=("ip",)),
    _Probe("tun", _tun, True, _TUN, programs=("ip",)),
    _Probe(
        "iptables MASQUERADE",
        _masquerade,
        True,
        "install iptables; modprobe iptable_nat or nf_tables, nft_compat",
        programs=("ip", "iptables"),
    ),
    _Probe(
        "conntrack",
        _conntrack,
        True,
        "install conntrack; modprobe nf_conntrack_netlink",
        programs=("ip", "iptables", "conntrack"),
    ),
    _Probe("packet capture", _capture, True, "run with CAP_NET_RAW, which root has"),
    _Probe("tshark", _tshark, True, "install tshark, built with Lua", programs=("tshark",)),
    _Probe("iperf3", _iperf3, True, _PACKAGES, programs=("iperf3",)),
    _Probe("ping", _ping, True, _PACKAGES, programs=("ping",)),
    _Probe("setpriv --pdeathsig", _setpriv, True, "install util-linux 2.33 or later", programs=("setpriv",)),
    _Probe(
        "nftables maps",
        _nftables,
        False,
        "install nftables; modprobe nf_tables, nft_nat; without it most presets of NATs cannot be made",
        programs=("nft",),
    ),
    _Probe("ethtool", _ethtool, False, "install ethtool to measure packets that travel singly", programs=("ethtool",)),
    _Probe("strongSwan", _strongswan, False, "make peers, to measure beside it", isolated=False),
    _Probe("netem", _netem, False, _NOT_NEEDED),
    _Probe("kernel ESP", _xfrm, False, "not needed: the bundled implementation brings its own data plane"),
    _Probe("NFQUEUE", _nfqueue, False, "without it delay, jitter and reordering are skipped where netem lacks too"),
    _Probe("L2TP", _xl2tpd, False, f"not needed: {_L2TP}", programs=("xl2tpd",)),
)
"""Everything that is tried, in the order of the findings."""
