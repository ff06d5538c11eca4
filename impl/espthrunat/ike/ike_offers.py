"""Phase 1's offers and choices: IKE suites as SA payloads, and the first acceptable one of a peer's."""

from __future__ import annotations

from collections.abc import Sequence

from ..wire.payloads import SecurityAssociation
from ..wire.proposal import Attribute, Phase1Attribute, Proposal, Protocol, Transform
from .lifetime import life, seconds_of
from .policy import IkeSuite

KEY_IKE = 1  # the only transform of phase 1 (RFC 2407, 4.4.2)
AES_CBC = 7
PRE_SHARED_KEY = 1


def offer_ike(suites: Sequence[IkeSuite], lifetime: int) -> SecurityAssociation:
    """Phase 1's SA payload: one proposal, one transform a suite; `lifetime` in seconds."""
    transforms = tuple(
        Transform(
            number,
            KEY_IKE,
            (
                Attribute(Phase1Attribute.ENCRYPTION, AES_CBC),
                Attribute(Phase1Attribute.KEY_LENGTH, suite.key_bits),
                Attribute(Phase1Attribute.HASH, suite.hash.value),
                Attribute(Phase1Attribute.GROUP, suite.group.number),
                Attribute(Phase1Attribute.AUTHENTICATION, PRE_SHARED_KEY),
                *life(Phase1Attribute.LIFE_TYPE, Phase1Attribute.LIFE_DURATION, lifetime),
            ),
        )
        for number, suite in enumerate(suites, 1)
    )
    return SecurityAssociation((Proposal(1, Protocol.ISAKMP, b"", transforms),))


def choose_ike(
    offered: SecurityAssociation, allowed: Sequence[IkeSuite]
) -> tuple[IkeSuite, int | None, SecurityAssociation] | None:
    """The initiator's first transform that is allowed: suite, lifetime in seconds if named, and the SA to answer."""
    for proposal in offered.proposals:
        if proposal.protocol != Protocol.ISAKMP:
            continue
        for transform in proposal.transforms:
            suite = _read_ike(transform, allowed)
            if suite is not None:
                answer = Proposal(proposal.number, Protocol.ISAKMP, proposal.spi, (transform,))
                seconds = seconds_of(transform, Phase1Attribute.LIFE_TYPE, Phase1Attribute.LIFE_DURATION)
                return suite, seconds, SecurityAssociation((answer,))
    return None


def _read_ike(transform: Transform, allowed: Sequence[IkeSuite]) -> IkeSuite | None:
    if (
        transform.transform_id != KEY_IKE
        or transform.attribute(Phase1Attribute.ENCRYPTION) != AES_CBC
        or transform.attribute(Phase1Attribute.AUTHENTICATION) != PRE_SHARED_KEY
    ):
        return None
    key_bits = transform.attribute(Phase1Attribute.KEY_LENGTH) or 128
    hash_ = transform.attribute(Phase1Attribute.HASH)
    group = transform.attribute(Phase1Attribute.GROUP)
    return next((s for s in allowed if (s.key_bits, s.hash.value, s.group.number) == (key_bits, hash_, group)), None)
