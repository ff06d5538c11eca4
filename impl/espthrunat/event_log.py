"""What the log says about what an endpoint tells. Anything that strangers can cause is limited in number."""

from __future__ import annotations

import logging

from .ike import events
from .ike.child_sa import ChildSa
from .junk_log import JunkLog
from .messages import Direction, Encapsulation, Mode, Path


class EventLog:
    """One line an event, or none."""

    def __init__(self, logger: logging.Logger) -> None:
        self._log = logger
        self._junk = JunkLog(logger)

    def note(self, event: events.Event) -> None:
        """Log what people want to know of an event."""
        match event:
            case events.NatDetected(name, path, nat, supported):
                found = "NAT detected" if nat else "no NAT" if supported else "peer does not know ESP in UDP"
                self._log.info("%s: %s, peer %s", name, found, _peer(path))
            case events.IkeSaEstablished(name, path, identity, suite, _, seconds, tries):
                found = f", found by trying {tries} pre-shared keys" if tries > 1 else ""
                milliseconds = seconds * 1000
                self._log.info(
                    "%s: phase 1 with %s at %s, %s, %.0f ms%s", name, identity, _peer(path), suite, milliseconds, found
                )
            case events.IkeSaDeleted(name, path, reason):
                self._log.info("%s: phase 1 with %s deleted: %s", name, _peer(path), reason)
            case events.SaEstablished(child, directions, seconds):
                if Direction.OUTBOUND in directions:
                    self._log.info("%s: ESP %s, %.0f ms", child.connection, _esp(child), seconds * 1000)
            case events.SaRetired(child):
                self._log.info(
                    "%s: SAs 0x%08x in, 0x%08x out replaced", child.connection, child.inbound_spi, child.outbound_spi
                )
            case events.SaDeleted(child, reason):
                self._log.info("%s: SAs deleted: %s", child.connection, reason)
            case events.PeerMoved(name, old, new):
                self._log.info("%s: peer %s is at %s now", name, _peer(old), _peer(new))
            case events.Warned(name, path, text):
                self._log.warning("%s: %s: %s", name, _peer(path), text)
            case events.AuthenticationFailed(name, path, reason):
                self._junk.note("authentication failed", f"{name}, {_peer(path)}: {reason}")
            case events.ExchangeFailed(name, path, reason):
                if name:
                    self._log.error("%s: failed: %s", name, reason)
                else:
                    self._junk.note("exchange failed", f"{_peer(path)}: {reason}")
            case events.DatagramRefused(kind, path, reason):
                self._junk.note(f"datagram {kind}", f"from {_peer(path)}: {reason}")


def _peer(path: Path) -> str:
    return f"{path.remote}:{path.remote_port}"


def _esp(child: ChildSa) -> str:
    way = "in UDP" if child.encapsulation == Encapsulation.UDP else "without UDP"
    mode = "transport mode, " if child.mode == Mode.TRANSPORT else ""
    mapped = f" as {child.mapped}" if child.mapped else ""
    return f"{way}, {child.suite.name}, {mode}{child.selector.local} <-> {child.selector.remote}{mapped}"
