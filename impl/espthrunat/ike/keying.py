"""Keys, hashes and initialisation vectors of IKEv1 (RFC 2409, clause 5 and appendix B), as pure functions.

`ni_b` and the like are the bodies of payloads, without the generic header, as RFC 2409 writes them (3.2). Cookies
are 8 octets. Message IDs are integers here and 4 octets on the wire.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.modes import CBC


class IkeCipher(enum.IntEnum):
    """The cipher of phase 1. Values are the Encryption Algorithm attribute's (RFC 2409, A; RFC 3602)."""

    TRIPLE_DES_CBC = 5
    AES_CBC = 7

    @property
    def text(self) -> str:
        """How suite names begin."""
        return "aes" if self is IkeCipher.AES_CBC else "3des"

    @property
    def legacy(self) -> bool:
        """Whether it is only for peers that have nothing better."""
        return self is IkeCipher.TRIPLE_DES_CBC

    @property
    def block_octets(self) -> int:
        """Of a block, and so of an IV."""
        return 16 if self is IkeCipher.AES_CBC else 8

    def key_octets(self, key_bits: int) -> int:
        """Of the key; 3DES has one size (RFC 2451)."""
        return key_bits // 8 if self is IkeCipher.AES_CBC else 24


class HashAlgorithm(enum.IntEnum):
    """The negotiated hash; the prf is its HMAC. Values are the Hash Algorithm attribute's (RFC 2409, A; RFC 4868)."""

    MD5 = 1
    SHA1 = 2
    SHA256 = 4
    SHA384 = 5
    SHA512 = 6

    @property
    def text(self) -> str:
        """The name in configuration and logs, which is hashlib's too: "sha256"."""
        return self.name.lower()

    @property
    def legacy(self) -> bool:
        """Whether it is only for peers that have nothing better."""
        return self in (HashAlgorithm.MD5, HashAlgorithm.SHA1)

    @property
    def octets(self) -> int:
        """The length of a digest, and so of SKEYID and of every HASH payload's body, in octets."""
        return _DIGEST_OCTETS[self]


_DIGEST_OCTETS = {
    HashAlgorithm.MD5: 16,
    HashAlgorithm.SHA1: 20,
    HashAlgorithm.SHA256: 32,
    HashAlgorithm.SHA384: 48,
    HashAlgorithm.SHA512: 64,
}
HASHES: dict[str, HashAlgorithm] = {algorithm.text: algorithm for algorithm in HashAlgorithm}
_NAMES = {algorithm: algorithm.text for algorithm in HashAlgorithm}


@dataclass(frozen=True, slots=True)
class Skeyids:
    """What an ISAKMP SA derives from SKEYID (RFC 2409, 5). The repr shows no value."""

    d: bytes = field(repr=False)  # SKEYID_d: makes the keys of other SAs
    a: bytes = field(repr=False)  # SKEYID_a: authenticates messages after phase 1
    e: bytes = field(repr=False)  # SKEYID_e: makes the ISAKMP SA's own cipher key


def prf(algorithm: HashAlgorithm, key: bytes, data: bytes) -> bytes:
    """HMAC (RFC 2104) with the negotiated hash: the prf of RFC 2409, 4, where no other was negotiated."""
    return hmac.digest(key, data, _NAMES[algorithm])


def skeyid_psk(algorithm: HashAlgorithm, psk: bytes, ni_b: bytes, nr_b: bytes) -> bytes:
    """SKEYID for authentication with a pre-shared key: prf(pre-shared-key, Ni_b | Nr_b) (RFC 2409, 5)."""
    return prf(algorithm, psk, ni_b + nr_b)


def derive(algorithm: HashAlgorithm, skeyid: bytes, g_xy: bytes, cky_i: bytes, cky_r: bytes) -> Skeyids:
    """SKEYID_d, SKEYID_a and SKEYID_e (RFC 2409, 5). `g_xy` keeps its leading zeros."""
    seed = g_xy + cky_i + cky_r
    d = prf(algorithm, skeyid, seed + b"\0")
    a = prf(algorithm, skeyid, d + seed + b"\1")
    e = prf(algorithm, skeyid, a + seed + b"\2")
    return Skeyids(d, a, e)


def cipher_key(algorithm: HashAlgorithm, skeyid_e: bytes, octets: int) -> bytes:
    """The ISAKMP SA's cipher key of `octets` (RFC 2409, appendix B).

    The leading octets of SKEYID_e; where it is too short, those of K1 | K2 | ..., K1 = prf(SKEYID_e, 0) and
    Kn = prf(SKEYID_e, Kn-1). No key is both: a longer one does not begin with SKEYID_e.
    """
    if octets <= len(skeyid_e):
        return skeyid_e[:octets]
    block = prf(algorithm, skeyid_e, b"\0")
    key = block
    while len(key) < octets:
        block = prf(algorithm, skeyid_e, block)
        key += block
    return key[:octets]


def phase1_iv(algorithm: HashAlgorithm, g_xi: bytes, g_xr: bytes, block: int = 16) -> bytes:
    """The IV of phase 1's first encrypted message: hash(g^xi | g^xr), cut to the cipher's block (appendix B)."""
    return hashlib.new(_NAMES[algorithm], g_xi + g_xr).digest()[:block]


def phase2_iv(algorithm: HashAlgorithm, last_phase1_block: bytes, message_id: int) -> bytes:
    """The IV of a later exchange's first message: hash(last CBC block of phase 1 | M-ID) (appendix B).

    It is as long as `last_phase1_block`. OverflowError where `message_id` does not fit into 32 bits.
    """
    digest = hashlib.new(_NAMES[algorithm], last_phase1_block + message_id.to_bytes(4)).digest()
    return digest[: len(last_phase1_block)]


def hash_i(
    algorithm: HashAlgorithm,
    skeyid: bytes,
    g_xi: bytes,
    g_xr: bytes,
    cky_i: bytes,
    cky_r: bytes,
    sai_b: bytes,
    idii_b: bytes,
) -> bytes:
    """HASH_I, by which the initiator authenticates phase 1 (RFC 2409, 5). `sai_b` is the SA payload it offered."""
    return prf(algorithm, skeyid, g_xi + g_xr + cky_i + cky_r + sai_b + idii_b)


def hash_r(
    algorithm: HashAlgorithm,
    skeyid: bytes,
    g_xi: bytes,
    g_xr: bytes,
    cky_i: bytes,
    cky_r: bytes,
    sai_b: bytes,
    idir_b: bytes,
) -> bytes:
    """HASH_R, by which the responder authenticates phase 1 (RFC 2409, 5). `sai_b` is still the initiator's offer.

    Arguments come in the order of hash_i; the order inside, which differs, is this function's affair.
    """
    return prf(algorithm, skeyid, g_xr + g_xi + cky_r + cky_i + sai_b + idir_b)


def quick_hash1(algorithm: HashAlgorithm, skeyid_a: bytes, message_id: int, rest: bytes) -> bytes:
    """HASH(1) of Quick Mode: prf(SKEYID_a, M-ID | rest) (RFC 2409, 5.5).

    `rest` is all that follows the HASH payload, with generic headers, without padding.
    """
    return prf(algorithm, skeyid_a, message_id.to_bytes(4) + rest)


def quick_hash2(algorithm: HashAlgorithm, skeyid_a: bytes, message_id: int, ni_b: bytes, rest: bytes) -> bytes:
    """HASH(2) of Quick Mode: prf(SKEYID_a, M-ID | Ni_b | rest) (RFC 2409, 5.5), `rest` as in quick_hash1."""
    return prf(algorithm, skeyid_a, message_id.to_bytes(4) + ni_b + rest)


def quick_hash3(algorithm: HashAlgorithm, skeyid_a: bytes, message_id: int, ni_b: bytes, nr_b: bytes) -> bytes:
    """HASH(3) of Quick Mode: prf(SKEYID_a, 0 | M-ID | Ni_b | Nr_b) (RFC 2409, 5.5); the 0 is one octet."""
    return prf(algorithm, skeyid_a, b"\0" + message_id.to_bytes(4) + ni_b + nr_b)


def informational_hash(algorithm: HashAlgorithm, skeyid_a: bytes, message_id: int, rest: bytes) -> bytes:
    """HASH(1) of an Informational exchange: prf(SKEYID_a, M-ID | N/D) (RFC 2409, 5.7)."""
    return quick_hash1(algorithm, skeyid_a, message_id, rest)


def keymat(
    algorithm: HashAlgorithm,
    skeyid_d: bytes,
    protocol: int,
    spi: bytes,
    ni_b: bytes,
    nr_b: bytes,
    octets: int,
    g_xy_qm: bytes = b"",
) -> bytes:
    """KEYMAT of one SA, K1 | K2 | ..., cut to `octets` (RFC 2409, 5.5).

    `protocol` and `spi` (4 octets for ESP) are those of the SA's proposal, so each direction has its own.
    `g_xy_qm` is Quick Mode's shared secret with perfect forward secrecy, and empty without.
    """
    seed = g_xy_qm + protocol.to_bytes(1) + spi + ni_b + nr_b
    block = material = prf(algorithm, skeyid_d, seed)
    while len(material) < octets:
        block = prf(algorithm, skeyid_d, block + seed)
        material += block
    return material[:octets]


def encrypt(key: bytes, iv: bytes, padded: bytes, cipher: IkeCipher = IkeCipher.AES_CBC) -> bytes:
    """CBC (RFC 2451, RFC 3602) of whole blocks. Padding, and the next IV (the result's last block), are the caller's.

    Raises ValueError when `key`, `iv` or `padded` has a length that the cipher cannot have.
    """
    context = _cbc(cipher, key, iv).encryptor()
    return context.update(padded) + context.finalize()


def decrypt(key: bytes, iv: bytes, ciphertext: bytes, cipher: IkeCipher = IkeCipher.AES_CBC) -> bytes:
    """The inverse of encrypt; the padding stays on. The next IV is the last block of `ciphertext`.

    Raises ValueError as encrypt does, so a `ciphertext` of broken blocks, which anyone may send, is one.
    """
    context = _cbc(cipher, key, iv).decryptor()
    return context.update(ciphertext) + context.finalize()


def _cbc(cipher: IkeCipher, key: bytes, iv: bytes) -> Cipher[CBC]:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # late: takes 10 ms

    if cipher is IkeCipher.AES_CBC:
        return Cipher(algorithms.AES(key), modes.CBC(iv))
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES

    if len(key) != cipher.key_octets(0):  # the library would take DES keys too, and repeat them
        raise ValueError(f"a 3DES key has {cipher.key_octets(0)} octets, not {len(key)}")
    return Cipher(TripleDES(key), modes.CBC(iv))
