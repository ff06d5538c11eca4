"""Which policies the data plane has: those of the configuration, and in transport mode one for each peer's address.

Where inner addresses are translated there is one for each network that a peer's appears as.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .ike.child_sa import ChildSa
from .ike.policy import Connection
from .messages import AddPolicy, DeletePolicy, Mode, Selector


class PlanePolicies:
    """What to tell the plane when SAs come and go.

    A transport mode connection with any peer has no policy before its first SA: nothing else says whose traffic is to
    be protected. Nothing for the networks of `pool` goes out in clear, whether they are somebody's at present or not.
    """

    def __init__(self, connections: Sequence[Connection], pool: str = "") -> None:
        self._fixed = [
            AddPolicy(
                _name(connection),
                connection.selector,
                connection.source,
                connection.mode,
                on_demand=connection.remote is not None,
            )
            for connection in connections
            if not connection.translate and (connection.mode == Mode.TUNNEL or connection.remote is not None)
        ]
        for connection in connections:
            selector = msgspec.structs.replace(connection.selector, remote=pool)
            if connection.translate and all(policy.selector != selector for policy in self._fixed):
                self._fixed.append(AddPolicy(connection.name, selector, connection.source, fallback=True))
        self._selectors: dict[str, Selector] = {}
        self._users: dict[str, set[int]] = {}  # inbound SPIs of a policy's pairs
        self._policy_of: dict[int, str] = {}  # as it was when the pair came: peers may move
        self.all_again()

    def all_again(self) -> list[AddPolicy]:
        """What a plane that knows nothing must be told; it has no SAs either."""
        self._selectors = {policy.policy: policy.selector for policy in self._fixed}
        self._users.clear()
        self._policy_of.clear()
        return list(self._fixed)

    def before(self, child: ChildSa) -> AddPolicy | None:
        """What must be said before this pair is added, if anything."""
        if child.inbound_spi in self._policy_of:
            return None
        name = child.policy
        self._users.setdefault(name, set()).add(child.inbound_spi)
        self._policy_of[child.inbound_spi] = name
        known = self._selectors.get(name)
        if known is None and child.mapped:
            self._selectors[name] = selector = msgspec.structs.replace(child.selector, remote=child.mapped)
            return AddPolicy(name, selector, steer=False, on_demand=False)
        if known is not None and (child.mode == Mode.TUNNEL or not _wider(child.selector, known)):
            return None
        self._selectors[name] = child.selector
        return AddPolicy(name, child.selector, mode=child.mode, on_demand=self._is_fixed(name))

    def _is_fixed(self, name: str) -> bool:
        return any(policy.policy == name for policy in self._fixed)

    def after(self, child: ChildSa) -> DeletePolicy | None:
        """What must be said when this pair is gone, if anything."""
        name = self._policy_of.pop(child.inbound_spi, None)
        if name is None:
            return None
        self._users[name].discard(child.inbound_spi)
        if self._users[name] or self._is_fixed(name):
            return None
        del self._users[name], self._selectors[name]
        return DeletePolicy(name)


def _name(connection: Connection) -> str:
    return connection.name if connection.mode == Mode.TUNNEL else f"{connection.name}@{connection.remote}"


def _wider(selector: Selector, known: Selector) -> bool:
    """Whether a pair covers ports that the policy does not: a NAT may have made the peer's port unknown."""
    return selector.remote_port == 0 and known.remote_port != 0
