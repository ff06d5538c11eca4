"""Diffie-Hellman groups of IKE: what goes into a KE payload and the shared secret that comes out of two."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

# The cryptography package takes 10 to 20 milliseconds to load, so the functions below load it at first use.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import dh, ec

# RFC 2409, 6.1 and 6.2; RFC 3526, clauses 2 to 5. Safe primes: (p - 1) / 2 is prime too, and 2 generates the subgroup
# of that order.
_MODP_768 = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A63A3620FFFFFFFFFFFFFFFF",
    16,
)
_MODP_1024 = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE65381FFFFFFFFFFFFFFFF",
    16,
)
_MODP_1536 = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA237327FFFFFFFFFFFFFFFF",
    16,
)
_MODP_2048 = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)
_MODP_3072 = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7"
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C"
    "BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF",
    16,
)
_MODP_4096 = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7"
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C"
    "BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7"
    "88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8DBBBC2DB04DE8EF92E8EFC141FBECAA6"
    "287C59474E6BC05D99B2964FA090C3A2233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9"
    "93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF",
    16,
)
_GENERATOR = 2


class BadPublicValue(ValueError):  # noqa: N818 - names what is wrong with the peer's KE payload
    """The peer's public value is none that keeps the shared secret secret; the exchange must fail."""


@dataclass(frozen=True, slots=True)
class Group:
    """A Diffie-Hellman group: MODP (RFC 2409, RFC 3526) or ECP (RFC 5903)."""

    number: int  # the Group Description attribute's value (RFC 2409, appendix A)
    name: str
    public_octets: int  # of the KE payload's body: the padded number, or x | y
    shared_octets: int  # of g^xy: the padded number, or x alone
    prime: int = field(default=0, repr=False)  # MODP: the modulus p; ECP: 0
    curve: str = ""  # ECP: the curve's name in the cryptography package; MODP: empty
    exponent_bits: int = 0  # MODP: of private values that we draw ourselves; the higher estimate of RFC 3526, clause 8

    @property
    def legacy(self) -> bool:
        """Whether it is so small that it is only for peers that have nothing better (RFC 8247, 2.4)."""
        return 0 < self.prime.bit_length() < 2048


GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        # RFC 3526 has no estimate for 768 and 1024 bits: what is enough for 1536 is enough for them.
        Group(1, "modp768", 96, 96, prime=_MODP_768, exponent_bits=240),
        Group(2, "modp1024", 128, 128, prime=_MODP_1024, exponent_bits=240),
        Group(5, "modp1536", 192, 192, prime=_MODP_1536, exponent_bits=240),
        Group(14, "modp2048", 256, 256, prime=_MODP_2048, exponent_bits=320),
        Group(15, "modp3072", 384, 384, prime=_MODP_3072, exponent_bits=420),
        Group(16, "modp4096", 512, 512, prime=_MODP_4096, exponent_bits=480),
        Group(19, "ecp256", 64, 32, curve="SECP256R1"),
        Group(20, "ecp384", 96, 48, curve="SECP384R1"),
    )
}
# Those of RFC 2409. OpenSSL 4 refuses them when told q, and without q tests the prime at each exchange: 40 milliseconds
# of work for whoever sends a KE payload. Python's integers take one, and as a private value serves one exchange only,
# their timing helps nobody.
_UNKNOWN_TO_OPENSSL = (1, 2)
_BY_NUMBER = {group.number: group for group in GROUPS.values()}


class PrivateKey(Protocol):
    """One side's half of a Diffie-Hellman exchange. Its repr shows no secret."""

    @property
    def public(self) -> bytes:
        """The body of our KE payload, `Group.public_octets` long."""

    def exchange(self, peer_public: bytes) -> bytes:
        """g^xy, `Group.shared_octets` long, leading zeros kept (RFC 2409, 5); of a point only x (RFC 5903, 7).

        `peer_public` is the body of the peer's KE payload. Raises BadPublicValue when its length is not the group's,
        when it is 0, 1, p - 1 or not below p, or no point of the curve (the tests of RFC 6989, 2.1 and 2.3).
        """


def by_number(number: int) -> Group | None:
    """The group with this Group Description value, or None where we have no such group."""
    return _BY_NUMBER.get(number)


def generate(group: Group) -> PrivateKey:
    """A fresh private key, from the operating system's random numbers."""
    if group.curve:
        from cryptography.hazmat.primitives.asymmetric import ec

        return _EcpPrivateKey(group, ec.generate_private_key(_curve(group.curve)))
    library = _modp_library(group)
    if library is None:
        import secrets

        return _PlainModpPrivateKey(group, secrets.randbits(group.exponent_bits - 1) | 1 << group.exponent_bits - 1)
    return _ModpPrivateKey(group, library)


def from_private_value(group: Group, value: int) -> PrivateKey:
    """The private key of this value: for test vectors and reproducible runs, where timing tells nobody a secret.

    Raises ValueError outside of 1 .. order of the group - 1.
    """
    problem = f"no private value of {group.name}: below 1, or not below the group's order"
    if value < 1:
        raise ValueError(problem)
    if group.curve:
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            key = ec.derive_private_key(value, _curve(group.curve))
        except ValueError as error:
            raise ValueError(problem) from error
        return _EcpPrivateKey(group, key)
    if value >= group.prime // 2:
        raise ValueError(problem)
    return _PlainModpPrivateKey(group, value)


def prepare(group: Group) -> None:
    """Load now what the first use of `group` would load: saves some 10 ms in the first exchange. Never needed."""
    generate(group)


class _ModpPrivateKey:
    """MODP by the cryptography package, in constant time."""

    __slots__ = ("_group", "_key", "_library", "public")

    def __init__(self, group: Group, library: _ModpLibrary) -> None:
        self._group = group
        self._library = library
        self._key = library.parameters.generate_private_key()
        self.public = self._key.public_key().public_numbers().y.to_bytes(group.public_octets)

    def exchange(self, peer_public: bytes) -> bytes:
        numbers = self._library.public_numbers(_modp_element(self._group, peer_public), self._library.numbers)
        try:
            shared = self._key.exchange(numbers.public_key())
        except ValueError as error:
            raise _bad(self._group, "refused by the library") from error
        return shared.rjust(self._group.shared_octets, b"\0")


class _PlainModpPrivateKey:
    """MODP by Python's integers: for private values from outside, and groups that the cryptography package lacks."""

    __slots__ = ("_group", "_value", "public")

    def __init__(self, group: Group, value: int) -> None:
        self._group = group
        self._value = value
        self.public = pow(_GENERATOR, value, group.prime).to_bytes(group.public_octets)

    def exchange(self, peer_public: bytes) -> bytes:
        y = _modp_element(self._group, peer_public)
        return pow(y, self._value, self._group.prime).to_bytes(self._group.shared_octets)


class _EcpPrivateKey:
    """ECP by the cryptography package."""

    __slots__ = ("_group", "_key", "public")

    def __init__(self, group: Group, key: ec.EllipticCurvePrivateKey) -> None:
        self._group = group
        self._key = key
        numbers = key.public_key().public_numbers()
        self.public = numbers.x.to_bytes(group.shared_octets) + numbers.y.to_bytes(group.shared_octets)

    def exchange(self, peer_public: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric import ec

        _check_length(self._group, peer_public)
        try:
            # The loader refuses coordinates off the curve. The point at infinity has none, and the order is prime,
            # so no further check is left (RFC 5903, 9).
            point = ec.EllipticCurvePublicKey.from_encoded_point(self._key.curve, b"\x04" + peer_public)
        except ValueError as error:
            raise _bad(self._group, "no point of the curve") from error
        return self._key.exchange(ec.ECDH(), point)


def _bad(group: Group, problem: str) -> BadPublicValue:
    return BadPublicValue(f"the peer's public value of {group.name} is bad: {problem}")


def _check_length(group: Group, public: bytes) -> None:
    if len(public) != group.public_octets:
        raise _bad(group, f"{len(public)} octets, not {group.public_octets}")


def _modp_element(group: Group, public: bytes) -> int:
    _check_length(group, public)
    y = int.from_bytes(public)
    if not 1 < y < group.prime - 1:
        raise _bad(group, "0, 1, p - 1 or not below p")
    return y


def _curve(name: str) -> ec.EllipticCurve:
    from cryptography.hazmat.primitives.asymmetric import ec

    curves: dict[str, type[ec.EllipticCurve]] = {"SECP256R1": ec.SECP256R1, "SECP384R1": ec.SECP384R1}
    return curves[name]()


class _ModpLibrary(NamedTuple):
    """What the cryptography package has for one MODP group."""

    parameters: dh.DHParameters
    numbers: dh.DHParameterNumbers
    public_numbers: type[dh.DHPublicNumbers]


@functools.cache
def _modp_library(group: Group) -> _ModpLibrary | None:
    """The library's part of the group, or None where the cryptography package has none, or no MODP any more."""
    if group.number in _UNKNOWN_TO_OPENSSL:
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.utils import CryptographyDeprecationWarning

    # Since release 50 it warns, as the names are looked up, that MODP will go. IKEv1 needs it while it is there, and
    # what comes after is ready: _PlainModpPrivateKey.
    with warnings.catch_warnings(action="ignore", category=CryptographyDeprecationWarning):
        try:
            from cryptography.hazmat.primitives.asymmetric import dh

            # With q, OpenSSL knows the group at once and spares itself its test for primality.
            numbers = dh.DHParameterNumbers(group.prime, _GENERATOR, (group.prime - 1) // 2)
            return _ModpLibrary(numbers.parameters(), numbers, dh.DHPublicNumbers)
        except (ImportError, AttributeError, UnsupportedAlgorithm):
            return None
