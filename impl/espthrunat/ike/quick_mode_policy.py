"""What policy lets Quick Mode make: what may be offered, and which of a peer's offers is taken (the draft, 4.3, 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..messages import Encapsulation, Mode, Selector
from ..wire.payloads import Identification, NotifyType, SecurityAssociation
from ..wire.proposal import Proposal, Protocol
from .esp_offers import EspOffer, choose_esp, offered_modes
from .ike_sa import IkeSa, Refused
from .lifetime import Lifetime
from .nat_traversal import NatStatus, NatTraversal
from .policy import Connection, EncapsulationPolicy
from .traffic import allowed_selector, by_fit, describe


class PolicyRefusal(Refused):
    """A Quick Mode that policy refuses; `notify` is what the peer is told."""

    def __init__(self, reason: str, notify: NotifyType, spi: bytes = b"") -> None:
        super().__init__(reason)
        self.notify = notify
        self.spi = spi


@dataclass(frozen=True, slots=True)
class Choice:
    """What a responder agrees to, as the peer has offered it."""

    connection: Connection
    selector: Selector
    offer: EspOffer
    lifetime: Lifetime
    proposal: Proposal


def wanted_encapsulation(sa: IkeSa, connection: Connection) -> Encapsulation:
    """What to offer (the draft, 1: only when necessary, and only if both ends can); PolicyRefusal if nothing fits."""
    policy = connection.encapsulation
    if policy == EncapsulationPolicy.NEVER and sa.nat == NatStatus.DETECTED:
        raise PolicyRefusal(
            'a NAT lies between, and encapsulation = "never" forbids ESP in UDP', NotifyType.NO_PROPOSAL_CHOSEN
        )
    if policy == EncapsulationPolicy.ALWAYS and not sa.peer_knows_method:
        raise PolicyRefusal(
            'encapsulation = "always", but the peer has not announced ESP in UDP',
            NotifyType.NO_PROPOSAL_CHOSEN,
        )
    if policy == EncapsulationPolicy.ALWAYS or sa.nat == NatStatus.DETECTED:
        return Encapsulation.UDP
    return Encapsulation.NONE


def choose(
    sa: IkeSa,
    connections: Sequence[Connection],
    offered: SecurityAssociation,
    asked: Sequence[Identification],
    method: NatTraversal,
) -> Choice:
    """The connection, and the first of the peer's offers that it allows, by mode, identities and suites in this order.

    Raises PolicyRefusal. Nothing but what static policy has is allowed (the draft, 7).
    """
    spi = next((p.spi for p in offered.proposals if p.protocol == Protocol.ESP), b"")
    if len(asked) not in (0, 2):
        raise PolicyRefusal(
            f"Quick Mode has {len(asked)} identities: two are needed, or none in transport mode",
            NotifyType.INVALID_ID_INFORMATION,
            spi,
        )
    modes = offered_modes(offered, method)
    fitting = [c for c in by_fit(connections, asked) if not modes or c.mode in modes]
    if not fitting:
        theirs, ours = (" and ".join(sorted(found)) for found in (modes, {c.mode for c in connections}))
        raise PolicyRefusal(
            f"Quick Mode refused: it offers {theirs} mode, the policy has {ours} mode",
            NotifyType.NO_PROPOSAL_CHOSEN,
            spi,
        )
    reason = ""
    for connection in fitting:
        selector = allowed_selector(sa, connection, asked)
        if selector is None:
            continue
        chosen = choose_esp(offered, connection.esp_suites, method, partial(refusal, sa, connection))
        if not isinstance(chosen, str):
            return Choice(connection, selector, chosen.offer, chosen.lifetime, chosen.proposal)
        reason = reason or chosen
    if reason:
        raise PolicyRefusal(f"Quick Mode refused: {reason}", NotifyType.NO_PROPOSAL_CHOSEN, spi)
    if not asked and Mode.TRANSPORT not in {c.mode for c in fitting}:
        wrong = "Quick Mode in tunnel mode needs two identities"
    elif not asked:
        wrong = "no connection of this peer protects all traffic between the two hosts"
    else:
        wrong = f"no connection of this peer protects {describe(asked)}"
    raise PolicyRefusal(wrong, NotifyType.INVALID_ID_INFORMATION, spi)


def refusal(sa: IkeSa, connection: Connection, offer: EspOffer) -> str:
    """Why policy refuses an offer; empty when it does not."""
    if offer.mode != connection.mode:
        return f"it offers {offer.mode} mode, the policy has {connection.mode} mode"
    if offer.group != connection.pfs:
        wanted = connection.pfs.name if connection.pfs else "none"
        return f"it offers {offer.group.name if offer.group else 'no'} group for PFS, the policy has {wanted}"
    policy = connection.encapsulation
    if offer.encapsulation == Encapsulation.UDP:
        if policy == EncapsulationPolicy.NEVER:
            return 'it offers ESP in UDP, which encapsulation = "never" forbids'
        if not sa.peer_knows_method:
            return "it offers ESP in UDP without having announced it in phase 1"
        return ""
    if policy == EncapsulationPolicy.ALWAYS:
        return 'it offers ESP without UDP, which encapsulation = "always" forbids'
    if sa.nat == NatStatus.DETECTED:
        return "it offers ESP without UDP, which the NAT between would not let through"
    return ""
