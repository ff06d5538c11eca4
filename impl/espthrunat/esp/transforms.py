"""Turns plaintext into the protected part of an ESP packet and back, one class for each way of doing it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq

from .suites import AES_CBC, HEADER_OCTETS, TRIPLE_DES_CBC, Authenticator, EspSuite, Mode

_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "md5": hashes.MD5,
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_BLOCK_CIPHERS: dict[int, Callable[[bytes], algorithms.AES | TripleDES]] = {
    AES_CBC.transform_id: algorithms.AES,
    TRIPLE_DES_CBC.transform_id: TripleDES,
}


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
        self.aead = AESGCM(key)
        self.salt = salt

    def seed(self, sequence: int) -> bytes:
        """The 8 octets of the sequence number."""
        return sequence.to_bytes(8, "big")

    def seal(self, header: bytes, seed: bytes, plaintext: bytes) -> bytes:
        """See `Transform.seal`; `seed` is the IV itself."""
        return header + seed + self.aead.encrypt(self.salt + seed, plaintext, header)

    def open(self, packet: bytes) -> bytes | None:
        """See `Transform.open`."""
        try:
            return self.aead.decrypt(self.salt + packet[8:16], packet[16:], packet[:8])
        except InvalidTag:
            return None


class Integrity:
    """An HMAC over all of an ESP packet before its ICV (RFC 2406, 2.7), or nothing."""

    def __init__(self, authenticator: Authenticator | None, key: bytes) -> None:
        self._icv_octets = authenticator.icv_octets if authenticator else 0
        self.hmac = hmac.HMAC(key, _HASHES[authenticator.hash]()) if authenticator else None

    def icv(self, covered: bytes) -> bytes:
        """What goes behind `covered`, the packet from its SPI on."""
        if self.hmac is None:
            return b""
        context = self.hmac.copy()
        context.update(covered)
        return context.finalize()[: self._icv_octets]

    def checked(self, packet: bytes) -> bytes | None:
        """The packet without its ICV; None if that is wrong."""
        end = len(packet) - self._icv_octets
        covered = packet[:end]
        return covered if bytes_eq(self.icv(covered), packet[end:]) else None


class CbcHmac:
    """A block cipher in CBC mode (RFC 2451, RFC 3602), and an HMAC or nothing.

    Making a cipher costs more than using it, so one runs on through all packets. Before a packet's plaintext it
    is fed a block of fresh randomness, whose ciphertext then is the packet's IV: as unpredictable as the block was.
    """

    def __init__(self, suite: EspSuite, key: bytes, integrity: Integrity) -> None:
        self._block_octets = suite.iv_octets
        # The initial IV only reaches the ciphertext of the random block, which nobody decrypts.
        cipher = Cipher(_BLOCK_CIPHERS[suite.transform_id](key), modes.CBC(bytes(self._block_octets)))
        self.encryptor = cipher.encryptor()
        self.decryptor = cipher.decryptor()
        self.integrity = integrity

    def seed(self, sequence: int) -> bytes:
        """A block of the system's randomness."""
        return os.urandom(self._block_octets)

    def seal(self, header: bytes, seed: bytes, plaintext: bytes) -> bytes:
        """See `Transform.seal`; the IV is the encrypted `seed`."""
        covered = header + self.encryptor.update(seed + plaintext)
        return covered + self.integrity.icv(covered)

    def open(self, packet: bytes) -> bytes | None:
        """See `Transform.open`."""
        covered = self.integrity.checked(packet)
        return None if covered is None else self.decryptor.update(covered[HEADER_OCTETS:])[self._block_octets :]


class NullHmac:
    """No encryption and no IV (RFC 2410), and an HMAC."""

    def __init__(self, integrity: Integrity) -> None:
        self.integrity = integrity

    def seed(self, sequence: int) -> bytes:
        """Nothing."""
        return b""

    def seal(self, header: bytes, seed: bytes, plaintext: bytes) -> bytes:
        """See `Transform.seal`."""
        covered = header + plaintext
        return covered + self.integrity.icv(covered)

    def open(self, packet: bytes) -> bytes | None:
        """See `Transform.open`."""
        covered = self.integrity.checked(packet)
        return None if covered is None else covered[HEADER_OCTETS:]


def make_transform(suite: EspSuite, keymat: bytes) -> Transform:
    """The keyed transform of `suite`. Raises ValueError if `keymat` has the wrong length."""
    encryption, authentication = suite.split(keymat)
    if suite.cipher.mode is Mode.GCM:
        salt = len(encryption) - suite.cipher.salt_octets
        return Gcm(encryption[:salt], encryption[salt:])
    integrity = Integrity(suite.authenticator, authentication)
    if suite.cipher.mode is Mode.NULL:
        return NullHmac(integrity)
    return CbcHmac(suite, encryption, integrity)
