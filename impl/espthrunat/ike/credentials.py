"""What proves who we are with RSA signatures, and who vouches for peers (RFC 2409, 5.1; RFC 4945)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """Certificates as DER. `chain` begins with our own and goes up; `authorities` are whom we trust."""

    chain: tuple[bytes, ...]
    private_key: bytes = field(repr=False)  # PKCS #8, DER, unencrypted
    authorities: tuple[bytes, ...]
