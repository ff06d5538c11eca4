"""Phase 1's offers and choices: IKE suites as SA payloads, and the first acceptable one of a peer's."""

from __future__ import annotations

from collections.abc import Sequence

from ..wire.payloads import SecurityAssociation
from ..wire.proposal import Attribute, Phase1Attribute, Proposal, Protocol, Transform
from .keying import IkeCipher
from .lifetime import life, seconds_of
from .policy import Authentication, IkeSuite

KEY_IKE = 1  # the only transform of phase 1 (RFC 2407, 4.4.2)
METHODS = {Authentication.PSK: 1, Authentication.RSA: 3}  # RFC 2409, appendix A


def offer_ike(suites: Sequence[IkeSuite], authentication: Authentication, lifetime: int) -> SecurityAssociation:
    """Phase 1's SA payload: one proposal, one transform a suite; `lifetime` in seconds."""
    transforms = tuple(
        Transform(
            number,
            KEY_IKE,
            (
                *_encryption(suite),
                Attribute(Phase1Attribute.HASH, suite.hash.value),
                Attribute(Phase1Attribute.GROUP, suite.group.number),
                Attribute(Phase1Attribute.AUTHENTICATION, METHODS[authentication]),
                *life(Phase1Attribute.LIFE_TYPE, Phase1Attribute.LIFE_DURATION, lifetime),
            ),
        )
        for number, suite in enumerate(suites, 1)
    )
    return SecurityAssociation((Proposal(1, Protocol.ISAKMP, b"", transforms),))


def choose_ike(
    offered: SecurityAssociation, allowed: Sequence[IkeSuite], authentication: Authentication
) -> tuple[IkeSuite, int | None, SecurityAssociation] | None:
    """The initiator's first transform that is allowed: suite, lifetime in seconds if named, and the SA to answer."""
    for proposal in offered.proposals:
        if proposal.protocol != Protocol.ISAKMP:
            continue
        for transform in proposal.transforms:
            suite = _read_ike(transform, allowed, authentication)
            if suite is not None:
                answer = Proposal(proposal.number, Protocol.ISAKMP, proposal.spi, (transform,))
                seconds = seconds_of(transform, Phase1Attribute.LIFE_TYPE, Phase1Attribute.LIFE_DURATION)
                return suite, seconds, SecurityAssociation((answer,))
    return None


def require_one_group(suites: Sequence[IkeSuite]) -> None:
    """Raise ValueError unless all suites have one group: Aggressive Mode cannot negotiate it (RFC 2409, 5)."""
    names = sorted({suite.group.name for suite in suites})
    if len(names) != 1:
        raise ValueError(f"Aggressive Mode offers one group only, and the suites have {', '.join(names)}")


def offers_one_group(offered: SecurityAssociation) -> bool:
    """Whether all of a peer's transforms have the same group."""
    transforms = [transform for proposal in offered.proposals for transform in proposal.transforms]
    return len({transform.attribute(Phase1Attribute.GROUP) for transform in transforms}) == 1


def _encryption(suite: IkeSuite) -> tuple[Attribute, ...]:
    cipher = Attribute(Phase1Attribute.ENCRYPTION, suite.cipher.value)
    if suite.cipher == IkeCipher.AES_CBC:
        return cipher, Attribute(Phase1Attribute.KEY_LENGTH, suite.key_bits)
    return (cipher,)  # a key length must not be named where the cipher has only one (RFC 2409, appendix A)


def _read_ike(transform: Transform, allowed: Sequence[IkeSuite], authentication: Authentication) -> IkeSuite | None:
    if (
        transform.transform_id != KEY_IKE
        or transform.attribute(Phase1Attribute.AUTHENTICATION) != METHODS[authentication]
    ):
        return None
    cipher = transform.attribute(Phase1Attribute.ENCRYPTION)
    key_bits = transform.attribute(Phase1Attribute.KEY_LENGTH) or (128 if cipher == IkeCipher.AES_CBC else 0)
    hash_ = transform.attribute(Phase1Attribute.HASH)
    group = transform.attribute(Phase1Attribute.GROUP)
    wanted = (cipher, key_bits, hash_, group)
    return next((s for s in allowed if (s.cipher.value, s.key_bits, s.hash.value, s.group.number) == wanted), None)
