"""Puts together what a plane counts: thousands of SAs do not fit into one message."""

from __future__ import annotations

import msgspec

from . import messages


class StatsParts:
    """The parts of answers that are not complete yet; those of one query follow each other."""

    def __init__(self) -> None:
        self._query = 0
        self._sas: list[messages.SaStats] = []

    def add(self, part: messages.Stats) -> messages.Stats | None:
        """The whole answer once `part` is its last one. What a plane left unfinished when it ended is forgotten."""
        if part.query != self._query:
            self._query, self._sas = part.query, []
        self._sas += part.sas
        if part.more:
            return None
        whole, self._sas = msgspec.structs.replace(part, sas=self._sas), []
        return whole
