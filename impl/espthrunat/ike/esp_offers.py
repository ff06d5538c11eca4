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
from .lifetime import Lifetime
from .nat_traversal import NatTraversal

ESP_SPI_OCTETS = 4
DEFAULT_KEY_BITS = 128  # of a cipher with keys of several lengths (RFC 3602, 2.2)


@dataclass(frozen=True, slots=True)
class EspOffer:
    """One way to protect traffic that a peer offered or that we do."""

    suite: EspSuite
    mode: Mode
    encapsulation: Encapsulation
    group: Group | None


@dataclass(frozen=True, slots=True)
class EspChoice:
    """What was chosen of a peer's SA payload: how, for how long as the peer has it, and the proposal to answer."""

    offer: EspOffer
    lifetime: Lifetime
    proposal: Proposal


def offer_esp(offers: Sequence[EspOffer], spi: bytes, lifetime: Lifetime, method: NatTraversal) -> SecurityAssociation:
    """Quick Mode's SA payload: one proposal with our inbound `spi`, one transform an offer."""
    transforms = []
    for number, offer in enumerate(offers, 1):
        attributes = [
            Attribute(Phase2Attribute.ENCAPSULATION_MODE, method.mode_attribute(offer.mode, offer.encapsulation)),
            *lifetime.attributes,
        ]
        if offer.suite.key_bits:
            attributes.append(Attribute(Phase2Attribute.KEY_LENGTH, offer.suite.key_bits))
        if offer.suite.authentication is not None:
            attributes.append(Attribute(Phase2Attribute.AUTHENTICATION, offer.suite.authentication))
        if offer.group is not None:
            attributes.append(Attribute(Phase2Attribute.GROUP, offer.group.number))
        transforms.append(Transform(number, offer.suite.transform_id, tuple(attributes)))
    return SecurityAssociation((Proposal(1, Protocol.ESP, spi, tuple(transforms)),))


def offered_modes(offered: SecurityAssociation, method: NatTraversal) -> set[Mode]:
    """The modes of all transforms that can be read."""
    values = (t.attribute(Phase2Attribute.ENCAPSULATION_MODE) for p in offered.proposals for t in p.transforms)
    return {read[0] for value in values if (read := method.read_mode(value)) is not None}


def choose_esp(
    offered: SecurityAssociation,
    suites: Sequence[EspSuite],
    method: NatTraversal,
    acceptable: Callable[[EspOffer], str],
) -> EspChoice | str:
    """The first of a peer's transforms that is acceptable.

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
            answer = Proposal(proposal.number, Protocol.ESP, proposal.spi, (transform,))
            return EspChoice(offer, Lifetime.read(transform.attributes), answer)
    return reason


def _read_esp(transform: Transform, suites: Sequence[EspSuite], method: NatTraversal) -> EspOffer | None:
    mode = method.read_mode(transform.attribute(Phase2Attribute.ENCAPSULATION_MODE))
    if mode is None:
        return None
    number = transform.attribute(Phase2Attribute.GROUP)
    group = groups.by_number(number) if number is not None else None
    if number is not None and group is None:
        return None
    key_bits = transform.attribute(Phase2Attribute.KEY_LENGTH) or 0
    authentication = transform.attribute(Phase2Attribute.AUTHENTICATION)
    for suite in suites:
        same = (suite.transform_id, suite.authentication) == (transform.transform_id, authentication)
        if same and suite.key_bits in (key_bits, key_bits or DEFAULT_KEY_BITS):
            return EspOffer(suite, *mode, group)
    return None
