"""AES-GCM over a whole batch: a loop in C over kept memoryviews, in place (RFC 4106)."""

from __future__ import annotations

import sys
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

_NONCE = np.dtype({"names": ["salt", "iv"], "formats": ["=u4", "=u8"], "offsets": [0, 4], "itemsize": 12})
"""Salt and IV, side by side (RFC 4106, 4); as numbers, since numpy copies one faster than a few octets."""


class _Nonces:
    """The nonces of one batch. SAs share the room: a batch is done before the next begins."""

    def __init__(self) -> None:
        self._rows = 0
        self.views: list[memoryview] = []
        self._salts: npt.NDArray[np.uint32]
        self._ivs: npt.NDArray[np.uint64]
        self._salt = 0  # whose it is at present, in the first rows
        self._salted = 0

    def fill(self, salt: int, ivs: npt.NDArray[np.uint64]) -> None:
        """Make the first nonces those of `ivs`."""
        count = len(ivs)
        if count > self._rows:
            self._rows = count
            nonces = np.zeros(count, _NONCE)
            self._salts, self._ivs = nonces["salt"], nonces["iv"]
            self.views = [row.data for row in nonces.view(np.uint8).reshape(count, _NONCE.itemsize)]
            self._salted = 0
        if salt != self._salt or count > self._salted:
            self._salts[:count] = salt
            self._salt, self._salted = salt, count
        self._ivs[:count] = ivs


_nonces = _Nonces()


class BatchGcm:
    """The batches of one SA, with its key."""

    def __init__(self, gcm: Gcm) -> None:
        self._aead = gcm.aead
        self._salt = int.from_bytes(gcm.salt, sys.byteorder)

    def plaintext(self, frames: Frames) -> Rows:
        """Where to put plaintexts: they are encrypted where they lie."""
        return frames.bodies

    def seal(self, frames: Frames, count: int) -> None:
        """Seal the first `count` rows. The IV is the sequence number, as in `Gcm`: it cannot repeat under one key."""
        frames.counters[:count] = frames.sequences[:count]  # the other half stays zero, as it was made
        _nonces.fill(self._salt, frames.iv_numbers[:count])
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
        _nonces.fill(self._salt, frames.iv_numbers[begin:end])
        columns = (
            _nonces.views[:count],
            frames.sealed_views[begin:end],
            frames.header_views[begin:end],
            frames.body_views[begin:end],
        )
        forged = _run(self._aead.decrypt_into, columns, count)
        return frames.bodies[begin:end], forged


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
