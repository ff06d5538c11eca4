"""AES-GCM over a whole batch: a loop in C over kept memoryviews, in place (RFC 4106)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from operator import length_hint
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag

from .frames import Frames, Rows

if TYPE_CHECKING:
    from .transforms import Gcm

_SALT_OCTETS, _NONCE_OCTETS = 4, 12


class _Nonces:
    """Salt and IV of each packet, side by side. SAs share the room: a batch is done before the next begins."""

    def __init__(self) -> None:
        self._rows = 0
        self.salts: Rows
        self.ivs: Rows
        self.views: list[memoryview] = []
        self.salt: Rows | None = None  # whose it is at present

    def room(self, rows: int) -> None:
        """At least `rows` nonces."""
        if rows > self._rows:
            self.salt = None
            self._rows = rows
            array = np.empty((rows, _NONCE_OCTETS), np.uint8)
            self.salts, self.ivs = array[:, :_SALT_OCTETS], array[:, _SALT_OCTETS:]
            self.views = [row.data for row in array]


_nonces = _Nonces()


class BatchGcm:
    """The batches of one SA, with its key."""

    def __init__(self, gcm: Gcm) -> None:
        self._aead = gcm.aead
        self._salt = np.frombuffer(gcm.salt, np.uint8)

    def plaintext(self, frames: Frames) -> Rows:
        """Where to put plaintexts: they are encrypted where they lie."""
        return frames.bodies

    def seal(self, frames: Frames, count: int, sequences: npt.NDArray[np.uint32]) -> None:
        """Seal the first `count` rows. The IV is the sequence number, as in `Gcm`: it cannot repeat under one key."""
        frames.counters[:count] = sequences  # the other half stays zero, as it was made
        self._fill_nonces(frames, 0, count)
        deque(  # the shortest loop that Python has, and it keeps nothing
            map(
                self._aead.encrypt_into,
                _nonces.views[:count],
                frames.body_views[:count],
                frames.header_views,
                frames.sealed_views,
            ),
            maxlen=0,
        )

    def open(self, frames: Frames, begin: int, end: int) -> tuple[Rows, Sequence[int]]:
        """The plaintexts of the rows from `begin` to before `end`, and which of them (from 0) are not authentic."""
        count = end - begin
        self._fill_nonces(frames, begin, end)
        columns = (
            _nonces.views[:count],
            frames.sealed_views[begin:end],
            frames.header_views[begin:end],
            frames.body_views[begin:end],
        )
        forged = _run(self._aead.decrypt_into, columns, count)
        return frames.bodies[begin:end], forged

    def _fill_nonces(self, frames: Frames, begin: int, end: int) -> None:
        count = end - begin
        _nonces.room(max(count, frames.array.shape[0]))
        if _nonces.salt is not self._salt:
            _nonces.salt = self._salt
            _nonces.salts[:] = self._salt
        _nonces.ivs[:count] = frames.ivs[begin:end]


def _run(job: Callable[..., object], columns: Sequence[Sequence[memoryview]], count: int) -> list[int]:
    """Do the job for each row; the numbers of those whose ICV was wrong.

    An iterator that is left over after an exception tells how far `map` came: the loop goes on behind that row.
    """
    failed: list[int] = []
    iterators = [iter(column) for column in columns]
    while True:
        try:
            deque(map(job, *iterators), maxlen=0)
        except InvalidTag:
            failed.append(count - 1 - length_hint(iterators[0]))
        else:
            return failed
