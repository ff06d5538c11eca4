"""Counts what happens to packets, and says the noteworthy of it in the log at most once a second for each kind."""

from __future__ import annotations

import enum
import errno
import logging
import time
from collections import Counter
from collections.abc import Callable

from ..junk_log import JunkLog


class Count(enum.StrEnum):
    """The names of counters, as `messages.Stats` carries them. Drops begin with "drop_".

    ESP packets that an SA refused are "drop_esp_" and the value of an `esp.sa.Drop`; failed system calls are "error_",
    what was tried, and errno's name; "fallback_" and a feature is what the kernel lacks. All come into being when they
    first happen.
    """

    UDP_IN = "udp_in"
    UDP_OUT = "udp_out"
    RAW_IN = "raw_in"
    RAW_OUT = "raw_out"
    TUN_IN = "tun_in"
    TUN_OUT = "tun_out"
    IKE_IN = "ike_in"
    IKE_OUT = "ike_out"
    KEEPALIVE_IN = "keepalive_in"
    KEEPALIVE_OUT = "keepalive_out"
    REBOUND = "rebound"
    """An SA moved to where its peer is now."""

    DROP_JUNK = "drop_junk"
    """A datagram that is neither ESP nor IKE nor keepalive."""
    DROP_IKE_OVERLOAD = "drop_ike_overload"
    """An IKE datagram that the daemon was too slow for."""
    DROP_UNKNOWN_SPI = "drop_unknown_spi"
    DROP_WRONG_PATH = "drop_wrong_path"
    """The SPI is known, but not from this address and port (the draft, 4.4)."""
    DROP_INNER_MALFORMED = "drop_inner_malformed"
    """An authentic ESP packet held something that is no IPv4 packet, or too long for one."""
    DROP_INNER_SELECTOR = "drop_inner_selector"
    """An authentic inner packet that its SA must not carry (RFC 2401, 5.2.1)."""
    DROP_NOT_IPV4 = "drop_not_ipv4"
    DROP_NO_POLICY = "drop_no_policy"
    DROP_NO_SA = "drop_no_sa"
    DROP_FLOW_PORTS = "drop_flow_ports"
    """Several clients behind one address use the same ports, and no other port is free to tell them apart."""
    DROP_TRANSPORT_FRAGMENT = "drop_transport_fragment"
    """Fragments that never became a whole datagram, which alone transport mode can protect (RFC 2406, 3.3.2)."""
    DROP_TUN_QUEUE = "drop_tun_queue"
    """Inner packets that the kernel had no room for while we were busy."""
    DROP_SOCKET_QUEUE = "drop_socket_queue"
    """The same for what came from the wire."""
    DROP_TOO_LONG = "drop_too_long"
    """An inner packet that the path to its peer does not carry in one piece; its sender is told how much it does."""
    DROP_LOOP = "drop_loop"
    """Our own datagrams, routed back into the TUN device."""


class Counters:
    """All counters of a plane. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.values: Counter[str] = Counter()
        self._log = logging.getLogger("espthrunat.plane")
        self._junk = JunkLog(self._log, clock)

    def add(self, count: str, number: int = 1) -> None:
        """Count something that happens in peace."""
        self.values[count] += number

    def drop(self, count: str, detail: str, number: int = 1) -> None:
        """Count something that somebody may wonder about; log `detail`, at most once a second for each `count`."""
        self.values[count] += number
        self._junk.note(count, detail, number)

    def fall_back(self, feature: str, detail: str) -> None:
        """The kernel lacks `feature`, so the plane goes on without it: counted, and logged the first time."""
        name = f"fallback_{feature}"
        if not self.values[name]:
            self._log.warning("%s: the kernel cannot do this, which costs throughput: %s", name, detail)
        self.values[name] += 1

    def failed(self, action: str, error: OSError, number: int = 1) -> None:
        """Count a system call that failed; `action` is a word such as "udp_send"."""
        name = errno.errorcode.get(error.errno or 0, "unknown")
        self.drop(f"error_{action}_{name}", str(error), number)
