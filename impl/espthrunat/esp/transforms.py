"""Turns plaintext into the protected part of an ESP packet and back, one class for each way of doing it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq

from .suites import AES_CBC, HEADER_OCTETS, EspSuite, Mode

_HASHES: dict[str, type[hashes.HashAlgorithm]] = {"sha256": hashes.SHA256}
_BLOCK_CIPHERS: dict[int, Callable[[bytes], algorithms.AES]] = {AES_CBC.transform_id: algorithms.AES}


class Transform(Protocol):
    """One SA's cipher and authenticator, keyed. Not for two directions at once: some keep a running state."""

    def seed(self, sequence: int) -> bytes:
        """What makes the IV of the packet with this sequence number; never the same twice under one key."""
        ...

    def seal(self, header: bytes, seed: bytes, plaintext: bytes) -> bytes:
        """The ESP packet: `header` (SPI, sequence number), IV, ciphertext, ICV. `plaintext` is padded already."""
        ...

    def open(self, packet: bytes) -> bytes | None:
        """The plaintext of an ESP packet, trailer included; None if its ICV is wrong.

        The packet is at least header, IV, one unit of ciphertext and ICV long, its ciphertext aligned.
        """
        ...


class Gcm:
    """AES-GCM (RFC 4106): the IV is the sequence number, so it cannot repeat under one key."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        self._aead = AESGCM(key)
        self._salt = salt

    def seed(self, sequence: int) -> bytes:
        """The 8 octets of the sequence number."""
        return sequence.to_bytes(8, "big")

    def seal(self, header: bytes, seed: bytes, plaintext: bytes) -> bytes:
        """See `Transform.seal`; `seed` is the IV itself."""
        return header + seed + self._aead.encrypt(self._salt + seed, plaintext, header)

    def open(self, packet: bytes) -> bytes | None:
        """See `Transform.open`."""
        try:
            return self._aead.decrypt(self._salt + packet[8:16], packet[16:], packet[:8])
        except InvalidTag:
            return None


class CbcHmac:
    """A block cipher in CBC mode (RFC 2451, RFC 3602), and an HMAC over all before the ICV (RFC 2406, 2.7) or nothing.

    Making a cipher costs more than using it, so one runs on through all packets. Before a packet's plaintext it
    is fed a block of fresh randomness, whose ciphertext then is the packet's IV: as unpredictable as the block was.
    """

    def __init__(self, suite: EspSuite, key: bytes, authentication_key: bytes) -> None:
        authenticator = suite.authenticator
        self._block_octets = suite.iv_octets
        # The initial IV only reaches the ciphertext of the random block, which nobody decrypts.
        cipher = Cipher(_BLOCK_CIPHERS[suite.transform_id](key), modes.CBC(bytes(self._block_octets)))
        self._encrypt = cipher.encryptor().update
        self._decrypt = cipher.decryptor().update
        self._icv_octets = authenticator.icv_octets if authenticator else 0
        self._hmac = hmac.HMAC(authentication_key, _HASHES[authenticator.hash]()) if authenticator else None

    def seed(self, sequence: int) -> bytes:
        """A block of the system's randomness."""
        return os.urandom(self._block_octets)

    def seal(self, header: bytes, seed: bytes, plaintext: bytes) -> bytes:
        """See `Transform.seal`; the IV is the encrypted `seed`."""
        covered = header + self._encrypt(seed + plaintext)
        return covered + self._icv(covered)

    def open(self, packet: bytes) -> bytes | None:
        """See `Transform.open`."""
        end = len(packet) - self._icv_octets
        if not bytes_eq(self._icv(packet[:end]), packet[end:]):
            return None
        return self._decrypt(packet[HEADER_OCTETS:end])[self._block_octets :]

    def _icv(self, covered: bytes) -> bytes:
        if self._hmac is None:
            return b""
        context = self._hmac.copy()
        context.update(covered)
        return context.finalize()[: self._icv_octets]


def make_transform(suite: EspSuite, keymat: bytes) -> Transform:
    """The keyed transform of `suite`. Raises ValueError if `keymat` has the wrong length."""
    encryption, authentication = suite.split(keymat)
    if suite.cipher.mode is Mode.GCM:
        salt = len(encryption) - suite.cipher.salt_octets
        return Gcm(encryption[:salt], encryption[salt:])
    return CbcHmac(suite, encryption, authentication)
