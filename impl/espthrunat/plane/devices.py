"""Opens what a plane needs, and says in one line what is missing when it cannot."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ..messages import Configure
from . import netconfig
from .counters import Counters
from .steering import MARK, Steering
from .tun import Tun
from .udp_socket import UdpSocket, segments_in_a_train


class StartError(Exception):
    """The plane cannot start; the text names what failed and what to do."""


@dataclass(frozen=True)
class Devices:
    """The UDP socket and the TUN device of a plane, and what leads traffic there."""

    udp: UdpSocket
    tun: Tun
    steering: Steering

    def close(self) -> None:
        """Close all. Traffic goes as if there had never been a policy."""
        self.steering.close()
        self.udp.close()
        self.tun.close()


_UDP_ADVICE = {
    errno.EADDRINUSE: "another program has this port: stop it (`ss -lunp` names it) or configure another port",
    errno.EADDRNOTAVAIL: "no interface here has this address: configure one of `ip address`",
    errno.EPERM: "marking packets needs CAP_NET_ADMIN: run as root, or in a user namespace with its own network",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE: run as root or choose a higher port",
}
_TUN_ADVICE = {
    errno.ENOENT: "there is no /dev/net/tun: load the kernel's module tun, or give the container the device",
    errno.ENODEV: "the kernel has no TUN driver: load its module tun",
    errno.EACCES: "/dev/net/tun may not be opened: run as root or widen its mode to 0666",
    errno.EPERM: "making network devices needs CAP_NET_ADMIN: run as root, or in a user namespace with its own network",
    errno.EBUSY: "another program has a device of this name: stop it or configure another name",
    errno.EINVAL: "a device of this name exists and is no TUN device: configure another name",
}
_STEERING_ADVICE = {
    errno.EPERM: "routing rules need CAP_NET_ADMIN: run as root, or in a user namespace with its own network",
    errno.EOPNOTSUPP: "the kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES)",
    errno.EAFNOSUPPORT: "the kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES)",
}


def open_devices(configure: Configure, mtu: int, counters: Counters) -> Devices:
    """Open UDP port and TUN device, the latter up with `mtu` octets, and make ready for policies. Raises StartError."""
    where = f"UDP {configure.address}:{configure.port}"
    try:
        udp = UdpSocket(configure.address, configure.port, counters, MARK, trains=configure.batches)
    except (OSError, OverflowError) as error:
        raise StartError(_explain(where, error, _UDP_ADVICE)) from error
    try:
        tun = _open_tun(configure, mtu, counters)
    except StartError:
        udp.close()
        raise
    try:
        steering = Steering(configure.tun, configure.address, configure.port, counters)
    except OSError as error:
        udp.close()
        tun.close()
        hint = _STEERING_ADVICE.get(error.errno or 0)
        raise StartError(f"routing rules cannot be made: {hint or error}") from error
    return Devices(udp, tun, steering)


def _open_tun(configure: Configure, mtu: int, counters: Counters) -> Tun:
    name = configure.tun
    try:
        tun = Tun(name, counters) if configure.batches else Tun(name, counters, ())
    except (OSError, ValueError) as error:
        raise StartError(_explain(f"TUN device {name}", error, _TUN_ADVICE)) from error
    try:
        netconfig.bring_up(name, mtu)
    except OSError as error:
        tun.close()
        raise StartError(_explain(f"TUN device {name} (MTU {mtu})", error, _TUN_ADVICE)) from error
    tun.set_segments(segments_in_a_train(configure.mtu))
    return tun


def _explain(what: str, error: Exception, advice: dict[int, str]) -> str:
    hint = advice.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{what} cannot be opened: {hint or error}"
