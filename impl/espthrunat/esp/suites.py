"""Which ciphers and authenticators ESP knows, and what each costs on the wire. No cryptography happens here."""

from __future__ import annotations

import enum
from dataclasses import dataclass

HEADER_OCTETS = 8  # SPI and sequence number (RFC 2406, 2)
TRAILER_OCTETS = 2  # pad length and next header


class Mode(enum.Enum):
    """How a cipher is driven."""

    GCM = enum.auto()
    """Encrypts and authenticates at once (RFC 4106)."""
    CBC = enum.auto()
    """Encrypts blocks behind a random IV (RFC 2451, RFC 3602); authentication is another algorithm's work."""
    NULL = enum.auto()
    """Leaves the plaintext as it is (RFC 2410); only an authenticator protects it."""


@dataclass(frozen=True)
class Cipher:
    """An ESP transform of RFC 2407, 4.4.4; all sizes in octets."""

    mode: Mode
    transform_id: int
    wireshark: str  # its name in the table esp_sa
    iv_octets: int
    alignment: int  # the ciphertext's length is a multiple of this
    key_octets: int = 0  # of a cipher with keys of one size, which negotiates no length (RFC 2451)
    salt_octets: int = 0  # follows the key in KEYMAT
    icv_octets: int = 0  # of a cipher that authenticates by itself
    legacy: bool = False  # only for peers that have nothing better


@dataclass(frozen=True)
class Authenticator:
    """An authentication algorithm of RFC 2407, 4.5; all sizes in octets."""

    attribute: int  # value of the attribute "Authentication Algorithm"
    hash: str  # hashlib's name of the HMAC's hash
    wireshark: str  # its name in the table esp_sa
    key_octets: int
    icv_octets: int
    legacy: bool = False  # only for peers that have nothing better


AES_GCM_16 = Cipher(Mode.GCM, 20, "AES-GCM with 16 octet ICV [RFC4106]", 8, 4, salt_octets=4, icv_octets=16)
AES_CBC = Cipher(Mode.CBC, 12, "AES-CBC [RFC3602]", 16, 16)
TRIPLE_DES_CBC = Cipher(Mode.CBC, 3, "TripleDES-CBC [RFC2451]", 8, 8, key_octets=24, legacy=True)
NULL = Cipher(Mode.NULL, 11, "NULL", 0, 4, legacy=True)

HMAC_MD5_96 = Authenticator(1, "md5", "HMAC-MD5-96 [RFC2403]", 16, 12, legacy=True)
HMAC_SHA1_96 = Authenticator(2, "sha1", "HMAC-SHA-1-96 [RFC2404]", 20, 12, legacy=True)
HMAC_SHA2_256_128 = Authenticator(5, "sha256", "HMAC-SHA-256-128 [RFC4868]", 32, 16)
HMAC_SHA2_384_192 = Authenticator(6, "sha384", "HMAC-SHA-384-192 [RFC4868]", 48, 24)
HMAC_SHA2_512_256 = Authenticator(7, "sha512", "HMAC-SHA-512-256 [RFC4868]", 64, 32)


@dataclass(frozen=True)
class EspSuite:
    """How one SA encrypts and authenticates. `key_bits` is the value of the attribute "Key Length"; 0 for none.

    Raises ValueError if it would protect nothing: NULL without an authenticator (RFC 2406, 5).
    """

    name: str
    cipher: Cipher
    key_bits: int
    authenticator: Authenticator | None = None

    def __post_init__(self) -> None:
        if self.cipher.mode is Mode.NULL and self.authenticator is None:
            raise ValueError(f"{self.name} would neither encrypt nor authenticate")

    @property
    def legacy(self) -> bool:
        """Whether a part of it is too weak, or protects too little, to be used without need."""
        return self.cipher.legacy or (self.authenticator is not None and self.authenticator.legacy)

    @property
    def transform_id(self) -> int:
        """The ESP transform identifier that is negotiated (RFC 2407, 4.4.4)."""
        return self.cipher.transform_id

    @property
    def authentication(self) -> int | None:
        """The value of the attribute "Authentication Algorithm"; None where it must be left out (RFC 4106, 8.3)."""
        return self.authenticator.attribute if self.authenticator else None

    @property
    def iv_octets(self) -> int:
        """Octets of IV in front of each ciphertext."""
        return self.cipher.iv_octets

    @property
    def icv_octets(self) -> int:
        """Octets of ICV behind each ciphertext."""
        return self.authenticator.icv_octets if self.authenticator else self.cipher.icv_octets

    @property
    def keymat_octets(self) -> int:
        """Octets of KEYMAT for one direction (RFC 2409, 5.5): key, salt, authentication key."""
        return self._encryption_octets + (self.authenticator.key_octets if self.authenticator else 0)

    @property
    def wireshark_encryption(self) -> str:
        """The encryption's name in Wireshark's table esp_sa."""
        return self.cipher.wireshark

    @property
    def wireshark_authentication(self) -> str:
        """The authentication's name in Wireshark's table esp_sa."""
        return self.authenticator.wireshark if self.authenticator else "NULL"

    def split(self, keymat: bytes) -> tuple[bytes, bytes]:
        """KEYMAT as encryption key (its salt at the end, as Wireshark too wants it) and authentication key.

        Raises ValueError if it has the wrong length.
        """
        if len(keymat) != self.keymat_octets:
            raise ValueError(f"{self.name} needs {self.keymat_octets} octets of KEYMAT, not {len(keymat)}")
        return keymat[: self._encryption_octets], keymat[self._encryption_octets :]

    def largest_inner(self, room: int) -> int:
        """Octets of the largest packet whose ESP packet, from SPI to ICV, fits in `room` octets; 0 if none does."""
        ciphertext = room - HEADER_OCTETS - self.iv_octets - self.icv_octets
        return max(0, ciphertext - ciphertext % self.cipher.alignment - TRAILER_OCTETS)

    @property
    def _encryption_octets(self) -> int:
        return self.key_bits // 8 + self.cipher.key_octets + self.cipher.salt_octets


SUITES: dict[str, EspSuite] = {
    suite.name: suite
    for suite in (
        EspSuite("aes128gcm16", AES_GCM_16, 128),
        EspSuite("aes256gcm16", AES_GCM_16, 256),
        EspSuite("aes128-sha256", AES_CBC, 128, HMAC_SHA2_256_128),
        EspSuite("aes256-sha256", AES_CBC, 256, HMAC_SHA2_256_128),
        EspSuite("aes128-sha1", AES_CBC, 128, HMAC_SHA1_96),
        EspSuite("aes256-sha1", AES_CBC, 256, HMAC_SHA1_96),
        EspSuite("aes128-md5", AES_CBC, 128, HMAC_MD5_96),
        EspSuite("3des-sha1", TRIPLE_DES_CBC, 0, HMAC_SHA1_96),
        EspSuite("3des-md5", TRIPLE_DES_CBC, 0, HMAC_MD5_96),
        EspSuite("3des-sha256", TRIPLE_DES_CBC, 0, HMAC_SHA2_256_128),
        EspSuite("null-sha1", NULL, 0, HMAC_SHA1_96),
        EspSuite("null-md5", NULL, 0, HMAC_MD5_96),
        EspSuite("null-sha256", NULL, 0, HMAC_SHA2_256_128),
        EspSuite("aes256-sha384", AES_CBC, 256, HMAC_SHA2_384_192),
        EspSuite("aes256-sha512", AES_CBC, 256, HMAC_SHA2_512_256),
    )
}
