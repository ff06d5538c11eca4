"""CBC with an HMAC, and NULL with an HMAC, over a whole batch (RFC 2406, 2.7; RFC 2451, RFC 3602, RFC 2410)."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.constant_time import bytes_eq

from .frames import Frames, Items, Rows

if TYPE_CHECKING:
    from .transforms import CbcHmac, Integrity, NullHmac


@functools.lru_cache(maxsize=16)
def _truncated(octets: int, icv_octets: int) -> np.dtype[np.void]:
    """A digest of which only the first octets count; as one item, since numpy copies one faster than a few octets."""
    return np.dtype({"names": ["icv"], "formats": [f"V{icv_octets}"], "offsets": [0], "itemsize": octets})


class _BatchIntegrity:
    """Makes and checks the ICVs of a batch: a copy of the keyed HMAC a packet is the cheapest way there is."""

    def __init__(self, integrity: Integrity) -> None:
        if integrity.hmac is None:
            raise ValueError("a batch needs an authenticator")
        self._copy = integrity.hmac.copy
        self._octets = integrity.hmac.algorithm.digest_size

    def icvs(self, frames: Frames, begin: int, end: int) -> Items:
        """What belongs behind the ciphertext of these rows, calculated."""
        copy = self._copy
        digests: list[bytes] = []
        # A context that is gone before the next is made leaves it its memory: this beats loops in C over all of them.
        for covered in frames.covered_views[begin:end]:
            context = copy()
            context.update(covered)
            digests.append(context.finalize())
        icvs: Items = np.frombuffer(b"".join(digests), _truncated(self._octets, frames.suite.icv_octets))["icv"]
        return icvs

    def forged(self, frames: Frames, begin: int, end: int) -> list[int]:
        """The rows (from 0) whose ICV is wrong. All octets of all rows are looked at, whatever the first ones say."""
        calculated, received = self.icvs(frames, begin, end).tobytes(), frames.icvs[begin:end].tobytes()
        if bytes_eq(calculated, received):
            return []
        octets = frames.suite.icv_octets
        rows = range(0, len(received), octets)
        return [
            number
            for number, at in enumerate(rows)
            if not bytes_eq(calculated[at : at + octets], received[at : at + octets])
        ]


class BatchCbc:
    """The batches of one SA. The running cipher of its `CbcHmac` does each batch in one call, in place."""

    def __init__(self, transform: CbcHmac) -> None:
        # Into memory that is there already: each batch is spared two pieces of 60 kB that nobody keeps.
        self._encrypt = transform.encryptor.update_into
        self._decrypt = transform.decryptor.update_into
        self._integrity = _BatchIntegrity(transform.integrity)

    def plaintext(self, frames: Frames) -> Rows:
        """Where to put plaintexts: each behind the block for its IV."""
        return frames.chain[:, frames.suite.iv_octets :]

    def seal(self, frames: Frames, count: int) -> None:
        """Seal the first `count` rows.

        Each IV is the ciphertext of a fresh random block, as in `CbcHmac`, so nobody can predict it (RFC 3602, 3).
        """
        blocks = frames.chain_blocks
        chain = frames.chain[:count]
        blocks[:count] = np.frombuffer(os.urandom(count * frames.suite.iv_octets), blocks.dtype)
        self._encrypt(chain.data, frames.chain_memory)
        frames.bodies_with_iv[:count] = chain
        frames.icvs[:count] = self._integrity.icvs(frames, 0, count)

    def open(self, frames: Frames, begin: int, end: int) -> tuple[Rows, Sequence[int]]:
        """The plaintexts of the rows from `begin` to before `end`, and which of them (from 0) are not authentic.

        Forged rows are deciphered with the others, which are at no risk by it, and given to nobody.
        """
        forged = self._integrity.forged(frames, begin, end)
        chain = frames.chain[: end - begin]
        chain[:] = frames.bodies_with_iv[begin:end]
        self._decrypt(chain.data, frames.chain_memory)
        return chain[:, frames.suite.iv_octets :], forged


class BatchNull:
    """The batches of one SA that does not encrypt."""

    def __init__(self, transform: NullHmac) -> None:
        self._integrity = _BatchIntegrity(transform.integrity)

    def plaintext(self, frames: Frames) -> Rows:
        """Where to put plaintexts: where they stay."""
        return frames.bodies

    def seal(self, frames: Frames, count: int) -> None:
        """Put the ICV behind the first `count` rows."""
        frames.icvs[:count] = self._integrity.icvs(frames, 0, count)

    def open(self, frames: Frames, begin: int, end: int) -> tuple[Rows, Sequence[int]]:
        """The plaintexts of the rows from `begin` to before `end`, and which of them (from 0) are not authentic."""
        return frames.bodies[begin:end], self._integrity.forged(frames, begin, end)
