"""`python -m espthrunat.plane --fd N`: runs the data plane for the daemon at the other end of socket N."""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys

import msgspec

from ..messages import Configure, Ready
from .channel import Channel, DaemonGoneError
from .counters import Counters
from .devices import StartError, open_devices
from .loop import Plane, ProtocolError, initial_mtu
from .tun import TunGoneError

_log = logging.getLogger("espthrunat.plane")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GARBAGE = 100_000  # objects; batches make and free hundreds, and none of them in cycles, which is all that gc can find


def main(arguments: list[str]) -> int:
    """Run until the daemon ends; the answer is the exit status."""
    if len(arguments) != 2 or arguments[0] != "--fd" or not arguments[1].isdigit():
        sys.stderr.write("usage: python -m espthrunat.plane --fd N   (started by the daemon, not by hand)\n")
        return 2
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's: no matrix is multiplied here, so no thread need wait for one
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which says goodbye to its peers first
    sigterm = _sigterm()
    # However the daemon dies, its sockets and keys must not live on here, nor its rules in the kernel. If it died
    # before this line, its socket is at its end already.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    try:
        with socket.socket(fileno=int(arguments[1])) as sock:
            return _serve(sock, sigterm)
    except (ProtocolError, msgspec.MsgspecError) as error:
        _log.error("the daemon's message makes no sense: %s", error)
    except TunGoneError as error:
        _log.error("%s", error)
    except OSError as error:
        _log.error("socket %s to the daemon: %s", arguments[1], error)
    return 1


def _sigterm() -> int:
    """A file descriptor that can be read once SIGTERM has come.

    A handler that raised would tear whatever it interrupts. A daemon that is killed ends its plane twice, by the end of
    its socket and by SIGTERM right after it: what closes the devices would be torn, and their rules stay in the kernel.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return readable


def _serve(sock: socket.socket, sigterm: int) -> int:
    counters = Counters()
    channel = Channel(sock, counters)
    if sigterm in select.select([sock.fileno(), sigterm], [], [])[0]:
        return 0
    try:
        configure = channel.receive(1)[0]
    except DaemonGoneError:
        return 0
    if not isinstance(configure, Configure):
        raise ProtocolError(f"{type(configure).__name__} came before Configure")
    try:
        devices = open_devices(configure, initial_mtu(configure.mtu), counters)
    except StartError as error:
        _log.error("%s", error)
        channel.send(Ready(str(error)))
        return 1
    plane: Plane | None = None
    try:
        plane = Plane(configure, devices, channel, counters)
        channel.send(Ready())
        importlib.import_module("espthrunat.esp.transforms")  # while IKE negotiates, not when the first SA comes
        gc.freeze()  # what exists by now stays; no collection needs to look at it again
        gc.set_threshold(_GARBAGE)
        plane.run(sigterm)
    finally:
        if plane is not None:
            plane.close()
        devices.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
