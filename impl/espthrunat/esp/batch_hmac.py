"""CBC with an HMAC, and NULL with an HMAC, over a whole batch (RFC 2406, 2.7; RFC 2451, RFC 3602, RFC 2410)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .frames import Frames, Rows

if TYPE_CHECKING:
    from .transforms import CbcHmac, Integrity, NullHmac


class _BatchIntegrity:
    """Makes and checks the ICVs of a batch: a copy of the keyed HMAC a packet is the cheapest way there is."""

    def __init__(self, integrity: Integrity) -> None:
        if integrity.hmac is None:
            raise ValueError("a batch needs an authenticator")
        self._copy = integrity.hmac.copy
        self._update = type(integrity.hmac).update
        self._finalize = type(integrity.hmac).finalize
        self._octets = integrity.hmac.algorithm.digest_size

    def icvs(self, frames: Frames, begin: int, end: int) -> Rows:
        """What belongs behind the ciphertext of these rows, calculated."""
        contexts = [self._copy() for _ in range(begin, end)]
        deque(map(self._update, contexts, frames.covered_views[begin:end]), maxlen=0)
        digests = np.frombuffer(b"".join(map(self._finalize, contexts)), np.uint8)
        return digests.reshape(end - begin, self._octets)[:, : frames.icvs.shape[1]]

    def forged(self, frames: Frames, begin: int, end: int) -> list[int]:
        """The rows (from 0) whose ICV is wrong. All octets of all rows are looked at, whatever the first ones say."""
        difference: Rows = np.bitwise_or.reduce(self.icvs(frames, begin, end) ^ frames.icvs[begin:end], axis=1)
        wrong: list[int] = np.flatnonzero(difference).tolist()
        return wrong


class BatchCbc:
    """The batches of one SA. The running cipher of its `CbcHmac` does each batch in one call."""

    def __init__(self, transform: CbcHmac) -> None:
        self._encrypt = transform.encrypt
        self._decrypt = transform.decrypt
        self._integrity = _BatchIntegrity(transform.integrity)

    def plaintext(self, frames: Frames) -> Rows:
        """Where to put plaintexts: each behind the block for its IV."""
        return frames.chain[:, frames.suite.iv_octets :]

    def seal(self, frames: Frames, count: int, sequences: npt.NDArray[np.uint32]) -> None:
        """Seal the first `count` rows.

        Each IV is the ciphertext of a fresh random block, as in `CbcHmac`, so nobody can predict it (RFC 3602, 3).
        """
        block = frames.suite.iv_octets
        chain = frames.chain[:count]
        chain[:, :block] = np.frombuffer(os.urandom(count * block), np.uint8).reshape(count, block)
        sealed = np.frombuffer(self._encrypt(chain.data), np.uint8)
        frames.bodies_with_iv[:count] = sealed.reshape(chain.shape)
        frames.icvs[:count] = self._integrity.icvs(frames, 0, count)

    def open(self, frames: Frames, begin: int, end: int) -> tuple[Rows, Sequence[int]]:
        """The plaintexts of the rows from `begin` to before `end`, and which of them (from 0) are not authentic.

        Forged rows are deciphered with the others, which are at no risk by it, and given to nobody.
        """
        forged = self._integrity.forged(frames, begin, end)
        chain = np.ascontiguousarray(frames.bodies_with_iv[begin:end])
        opened = frames.chain[: end - begin]
        # A view on the cipher's answer would be read-only, and what opens is worked on in place.
        opened[:] = np.frombuffer(self._decrypt(chain.data), np.uint8).reshape(chain.shape)
        return opened[:, frames.suite.iv_octets :], forged


class BatchNull:
    """The batches of one SA that does not encrypt."""

    def __init__(self, transform: NullHmac) -> None:
        self._integrity = _BatchIntegrity(transform.integrity)

    def plaintext(self, frames: Frames) -> Rows:
        """Where to put plaintexts: where they stay."""
        return frames.bodies

    def seal(self, frames: Frames, count: int, sequences: npt.NDArray[np.uint32]) -> None:
        """Put the ICV behind the first `count` rows."""
        frames.icvs[:count] = self._integrity.icvs(frames, 0, count)

    def open(self, frames: Frames, begin: int, end: int) -> tuple[Rows, Sequence[int]]:
        """The plaintexts of the rows from `begin` to before `end`, and which of them (from 0) are not authentic."""
        return frames.bodies[begin:end], self._integrity.forged(frames, begin, end)
