"""Offers and choices: IKE and ESP suites as SA payloads, and the first acceptable one of a peer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..esp.suites import EspSuite
from ..messages import Encapsulation
from ..wire.payloads import SecurityAssociation
from ..wire.proposal import Attribute, Phase1Attribute, Phase2Attribute, Proposal, Protocol, Transform
from . import groups
from .groups import Group
from .nat_traversal import Mode, NatTraversal
from .policy import IkeSuite

KEY_IKE = 1  # the only transform of phase 1 (RFC 2407, 4.4.2)
AES_CBC = 7
PRE_SHARED_KEY = 1
LIFE_SECONDS = 1
ESP_SPI_OCTETS = 4


@dataclass(frozen=True, slots=True)
class EspOffer:
    """One way to protect traffic that a peer offered or that we do."""

    suite: EspSuite
    mode: Mode
    encapsulation: Encapsulation
    group: Group | None


def _life(life_type: int, life_duration: int, seconds: int) -> tuple[Attribute, Attribute]:
    value: int | bytes = seconds if seconds < 0x10000 else seconds.to_bytes(4, "big")
    return Attribute(life_type, LIFE_SECONDS), Attribute(life_duration, value)


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
                *_life(Phase1Attribute.LIFE_TYPE, Phase1Attribute.LIFE_DURATION, lifetime),
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
                seconds = _seconds(transform, Phase1Attribute.LIFE_TYPE, Phase1Attribute.LIFE_DURATION)
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


def offer_esp(offers: Sequence[EspOffer], spi: bytes, lifetime: int, method: NatTraversal) -> SecurityAssociation:
    """Quick Mode's SA payload: one proposal with our inbound `spi`, one transform an offer; `lifetime` in seconds."""
    transforms = []
    for number, offer in enumerate(offers, 1):
        attributes = [
            Attribute(Phase2Attribute.ENCAPSULATION_MODE, method.mode_attribute(offer.mode, offer.encapsulation)),
            *_life(Phase2Attribute.LIFE_TYPE, Phase2Attribute.LIFE_DURATION, lifetime),
            Attribute(Phase2Attribute.KEY_LENGTH, offer.suite.key_bits),
        ]
        if offer.suite.authentication is not None:
            attributes.append(Attribute(Phase2Attribute.AUTHENTICATION, offer.suite.authentication))
        if offer.group is not None:
            attributes.append(Attribute(Phase2Attribute.GROUP, offer.group.number))
        transforms.append(Transform(number, offer.suite.transform_id, tuple(attributes)))
    return SecurityAssociation((Proposal(1, Protocol.ESP, spi, tuple(transforms)),))


def choose_esp(
    offered: SecurityAssociation,
    suites: Sequence[EspSuite],
    method: NatTraversal,
    acceptable: Callable[[EspOffer], str],
) -> tuple[EspOffer, int | None, Proposal] | str:
    """The first of a peer's transforms that is acceptable: the offer, its lifetime in seconds, the proposal to answer.

    `acceptable` gives "" or the reason why policy refuses an offer. When none is acceptable, the answer is the
    reason of the last one that could at least be read.
    """
    reason = "it offers no ESP suite that is allowed here"
    for proposal in offered.proposals:
        if sum(other.number == proposal.number for other in offered.proposals) > 1:
            reason = "it offers bundles of SAs, which are not supported"
            continue
        if proposal.protocol == Protocol.AH:
            reason = "it offers AH, which no NAT lets through"
            continue
        if proposal.protocol != Protocol.ESP or len(proposal.spi) != ESP_SPI_OCTETS:
            continue
        for transform in proposal.transforms:
            offer = _read_esp(transform, suites, method)
            if offer is None:
                continue
            refusal = acceptable(offer)
            if refusal:
                reason = refusal
                continue
            seconds = _seconds(transform, Phase2Attribute.LIFE_TYPE, Phase2Attribute.LIFE_DURATION)
            return offer, seconds, Proposal(proposal.number, Protocol.ESP, proposal.spi, (transform,))
    return reason


def _read_esp(transform: Transform, suites: Sequence[EspSuite], method: NatTraversal) -> EspOffer | None:
    mode = method.read_mode(transform.attribute(Phase2Attribute.ENCAPSULATION_MODE))
    if mode is None:
        return None
    number = transform.attribute(Phase2Attribute.GROUP)
    group = groups.by_number(number) if number is not None else None
    if number is not None and group is None:
        return None
    key_bits = transform.attribute(Phase2Attribute.KEY_LENGTH) or 128
    authentication = transform.attribute(Phase2Attribute.AUTHENTICATION)
    for suite in suites:
        if (suite.transform_id, suite.key_bits, suite.authentication) == (
            transform.transform_id,
            key_bits,
            authentication,
        ):
            return EspOffer(suite, *mode, group)
    return None


def _seconds(transform: Transform, life_type: int, life_duration: int) -> int | None:
    """The first duration that is in seconds: life types and durations come in pairs, in order."""
    kind = None
    for attribute in transform.attributes:
        if attribute.type == life_type:
            kind = attribute.number
        elif attribute.type == life_duration and kind == LIFE_SECONDS:
            return attribute.number
    return None
