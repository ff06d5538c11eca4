"""Which NAT mappings must be kept alive, and how long after the last SA is gone (the draft, 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

from ..messages import Path
from .context import Context
from .events import KeepaliveWanted
from .policy import Connection


@dataclass(slots=True)
class _Mapping:
    interval: float
    tail: float
    ending: bool = False


class KeepaliveKeeper:
    """One stream of keepalives a path, whatever runs over it: IKE and ESP share the mapping (3.2).

    Only the side that began the relation sends them: it is the one that a NAT or a stateful firewall may hide.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._mappings: dict[Path, _Mapping] = {}

    def __len__(self) -> int:
        return len(self._mappings)

    def start(self, path: Path, connection: Connection) -> None:
        """Phase 1 that was begun here has found out that the path needs them."""
        if not connection.keepalive_interval:
            return
        known = self._mappings.get(path)
        self._mappings[path] = _Mapping(connection.keepalive_interval, connection.keepalive_tail)
        self._context.timers.cancel(("keepalive", path))
        if known is None or known.interval != connection.keepalive_interval:
            self._context.emit(KeepaliveWanted(path, connection.keepalive_interval))

    def in_use(self, path: Path) -> None:
        """SAs run over the path: no end is in sight."""
        mapping = self._mappings.get(path)
        if mapping is not None and mapping.ending:
            mapping.ending = False
            self._context.timers.cancel(("keepalive", path))

    def unused(self, path: Path, now: float) -> None:
        """No SA is left on the path: go on for the tail, so that the peer can still begin a rekey (4.3)."""
        mapping = self._mappings.get(path)
        if mapping is not None and not mapping.ending:
            mapping.ending = True
            self._context.timers.set(("keepalive", path), now + mapping.tail, lambda _: self.stop(path))

    def stop(self, path: Path) -> None:
        """End them at once."""
        if self._mappings.pop(path, None) is not None:
            self._context.timers.cancel(("keepalive", path))
            self._context.emit(KeepaliveWanted(path, 0.0))

    def moved(self, old: Path, new: Path) -> None:
        """The peer is elsewhere now."""
        mapping = self._mappings.get(old)
        if mapping is not None:
            self.stop(old)
            self._mappings[new] = _Mapping(mapping.interval, mapping.tail)
            self._context.emit(KeepaliveWanted(new, mapping.interval))
