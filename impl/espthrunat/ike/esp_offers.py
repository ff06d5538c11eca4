"""Quick Mode's offers and choices: ESP suites as SA payloads, and the first acceptable one of a peer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..esp.suites import EspSuite
from ..messages import Encapsulation, Mode
from ..wire.payloads import SecurityAssociation
from ..wire.proposal import Attribute, Phase2Attribute, Proposal, Protocol, Transform
from . import groups
from .groups import Group
from .lifetime import life, seconds_of
from .nat_traversal import NatTraversal

ESP_SPI_OCTETS = 4


@dataclass(frozen=True, slots=True)
class EspOffer:
    """One way to protect traffic that a peer offered or that we do."""

    suite: EspSuite
    mode: Mode
    encapsulation: Encapsulation
    group: Group | None


def offer_esp(offers: Sequence[EspOffer], spi: bytes, lifetime: int, method: NatTraversal) -> SecurityAssociation:
    """Quick Mode's SA payload: one proposal with our inbound `spi`, one transform an offer; `lifetime` in seconds."""
    transforms = []
    for number, offer in enumerate(offers, 1):
        attributes = [
            Attribute(Phase2Attribute.ENCAPSULATION_MODE, method.mode_attribute(offer.mode, offer.encapsulation)),
            *life(Phase2Attribute.LIFE_TYPE, Phase2Attribute.LIFE_DURATION, lifetime),
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
            seconds = seconds_of(transform, Phase2Attribute.LIFE_TYPE, Phase2Attribute.LIFE_DURATION)
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
