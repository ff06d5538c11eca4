"""What works on whole batches needs numpy, which takes a tenth of a second to load: packets never wait for that.

Until it is there they go one by one. A plane that never gets an SA never loads it.
"""

from __future__ import annotations

import importlib
import sys
import threading

_ROOMS = ("bulk_in", "bulk_out", "completion", "recvmmsg")
_SWITCH_SECONDS = 0.0001

_ready = threading.Event()
_lock = threading.Lock()
_thread: threading.Thread | None = None


def is_ready() -> bool:
    """Whether the rooms of batches may be used. The first question has them loaded, by a thread of its own."""
    global _thread
    if _ready.is_set():
        return True
    if _thread is None:
        with _lock:
            if _thread is None:
                _thread = threading.Thread(target=load, name="load", daemon=True)
                _thread.start()
    return False


def load() -> None:
    """Load them now, and wait for it."""
    # Each of a packet's system calls gives the interpreter away, and gets it back after this time.
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        for room in _ROOMS:
            importlib.import_module(f"espthrunat.plane.{room}")
    finally:
        sys.setswitchinterval(usual)
    _ready.set()
