"""A phase 1 SA: cookies, keys and who is at the other end; and the protection of its messages."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..messages import Path
from ..wire.errors import ParseError
from ..wire.isakmp import (
    FLAG_ENCRYPTED,
    HEADER_OCTETS,
    Chain,
    Header,
    encode_message,
    encode_payloads,
    parse_payloads,
)
from ..wire.payloads import Hash, Payload, PayloadType
from . import keying
from .child_sa import ChildSa
from .identity import Identity
from .keying import IkeCipher, Skeyids
from .nat_traversal import NatStatus
from .policy import Connection, IkeSuite


class NotAuthentic(Exception):  # noqa: N818 - a state of affairs, not a fault of the program
    """An encrypted message that was not made with this SA's keys."""


class Refused(Exception):  # noqa: N818 - a decision, not a fault of the program
    """A message that is in order but that policy or the state of the exchange refuses."""


@dataclass(slots=True, eq=False)
class IkeSa:
    """One phase 1 with one peer; `connection` is the responder's guess until the peer has named itself."""

    initiator: bool
    path: Path
    initiator_cookie: bytes
    responder_cookie: bytes
    connection: Connection
    started: float
    suite: IkeSuite | None = None
    keys: Skeyids | None = field(default=None, repr=False)
    cipher_key: bytes = field(default=b"", repr=False)
    last_block: bytes = b""  # of phase 1's last message: later exchanges' IVs begin there (RFC 2409, appendix B)
    identity: Identity | None = None
    nat: NatStatus = NatStatus.UNKNOWN
    established: bool = False
    expires: float = float("inf")
    children: list[ChildSa] = field(default_factory=list)
    candidates: tuple[Connection, ...] = ()  # what the proven identity and key may use, for a responder
    used_message_ids: set[int] = field(default_factory=set)
    peer_knows_dpd: bool = False  # the peer has sent the vendor ID of RFC 3706
    initial_contact: bool = False  # the peer has said, protected, that it has no other SAs with us
    heard: bool = False  # something that was encrypted with these keys has come from the peer

    @property
    def peer_knows_method(self) -> bool:
        """Whether both ends can do NAT traversal."""
        return self.nat != NatStatus.UNKNOWN

    @property
    def _cipher(self) -> IkeCipher:
        assert self.suite is not None
        return self.suite.cipher

    def header(self, exchange: int, message_id: int = 0, *, first: int = 0, encrypted: bool = False) -> Header:
        """A header with this SA's cookies."""
        flags = FLAG_ENCRYPTED if encrypted else 0
        return Header(self.initiator_cookie, self.responder_cookie, first, exchange, flags, message_id)

    def clear(self, exchange: int, payloads: Sequence[Payload]) -> bytes:
        """A message before phase 1 has keys."""
        return encode_message(self.header(exchange, first=payloads[0].type), encode_payloads(payloads))

    def seal(self, exchange: int, message_id: int, iv: bytes, payloads: Sequence[Payload]) -> tuple[bytes, bytes]:
        """An encrypted message and the IV of the next one; padding is zeros, as RFC 2409, appendix B has it."""
        cipher = self._cipher
        plain = encode_payloads(payloads)
        padded = plain + bytes(-len(plain) % cipher.block_octets)
        ciphertext = keying.encrypt(self.cipher_key, iv, padded, cipher)
        header = self.header(exchange, message_id, first=payloads[0].type, encrypted=True)
        return encode_message(header, ciphertext), ciphertext[-cipher.block_octets :]

    def open(self, header: Header, datagram: bytes, iv: bytes) -> tuple[Chain, bytes, bytes]:
        """The payloads of an encrypted message, the decrypted octets, and the IV of the next message.

        Raises NotAuthentic when it does not decrypt to a well-formed chain: nothing but a key that differs, or
        damage, makes that happen, and neither may have an effect.
        """
        cipher = self._cipher
        ciphertext = datagram[HEADER_OCTETS:]
        if not header.encrypted:
            raise NotAuthentic("not encrypted")
        if not ciphertext or len(ciphertext) % cipher.block_octets:
            raise NotAuthentic(f"{len(ciphertext)} octets of ciphertext are no whole blocks")
        plain = keying.decrypt(self.cipher_key, iv, ciphertext, cipher)
        try:
            chain = parse_payloads(header.next_payload, plain, padding=cipher.block_octets)
        except ParseError as error:
            raise NotAuthentic(f"it does not decrypt to payloads ({error})") from error
        self.heard = True
        return chain, plain, ciphertext[-cipher.block_octets :]

    def phase2_iv(self, message_id: int) -> bytes:
        """The first IV of an exchange after phase 1."""
        assert self.suite is not None
        return keying.phase2_iv(self.suite.hash, self.last_block, message_id)

    def seal_informational(self, exchange: int, message_id: int, payloads: Sequence[Payload]) -> bytes:
        """A protected Informational message (RFC 2409, 5.7)."""
        assert self.suite is not None
        assert self.keys is not None
        digest = keying.informational_hash(self.suite.hash, self.keys.a, message_id, encode_payloads(payloads))
        return self.seal(exchange, message_id, self.phase2_iv(message_id), [Hash(digest), *payloads])[0]


def open_clear(header: Header, datagram: bytes) -> Chain:
    """The payloads of a message from before phase 1 had keys. Raises ParseError, and Refused if it is encrypted."""
    if header.encrypted:
        raise Refused("encrypted before there are keys")
    return parse_payloads(header.next_payload, datagram[HEADER_OCTETS:])


def require_hash(chain: Chain, expected: bytes) -> None:
    """Raise NotAuthentic unless the chain opens with the HASH payload that is expected."""
    if not chain or chain[0].payload.type != PayloadType.HASH:
        raise NotAuthentic("the first payload is not HASH")
    if not hmac.compare_digest(chain[0].body, expected):
        raise NotAuthentic("HASH is wrong")


def covered(chain: Chain, plain: bytes) -> bytes:
    """The octets that a HASH payload at the front covers: all payloads behind it, without padding."""
    return plain[chain[0].end : chain[-1].end] if chain else b""
