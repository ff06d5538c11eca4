"""A pair of endpoints in a long life: honest steps and hostile ones in any order, and a connection at the end."""

from __future__ import annotations

from contextlib import suppress

from fuzz_world import HONEST, STRANGE, Edit, Gate, edited, edits, fuzz, half_open, hit, real_messages, recovers
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from ike_world import INITIATOR, RESPONDER, World
from test_fuzz_authentic import about, give, message_ids, sealed

from espthrunat.ike import events
from espthrunat.ike.endpoint import Endpoint
from espthrunat.messages import Direction
from espthrunat.wire.isakmp import ExchangeType, encode_payloads

SIDES = st.booleans()
indices = st.integers(0, 0xFFFF)
STRANGERS = [data for _, data in real_messages()]


class Life(RuleBasedStateMachine):
    """A client, a server, and a wire with enemies on it and beside it."""

    @initialize()
    def begin(self) -> None:
        self.gate = Gate(1_000_000)
        self.world = World(INITIATOR, RESPONDER, fate=self.gate)
        self.first_messages = 0  # that strangers and forgers may have sent
        self.world.connect(1.0)

    def end(self, to_server: bool) -> Endpoint:
        return self.world.server if to_server else self.world.client

    # what honest people do

    @rule(seconds=st.sampled_from([0.005, 0.02, 0.3, 2.0, 30.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(left=st.integers(0, 4))
    def lose_all_but(self, left: int) -> None:
        self.gate.left = left

    @rule()
    def lose_no_more(self) -> None:
        self.gate.open()

    @rule(server=SIDES, phase1=st.booleans())
    def rekey(self, server: bool, phase1: bool) -> None:
        with suppress(ValueError):  # it is not up
            self.end(server).rekey("client1" if server else "server", self.world.now, phase1=phase1)

    @rule(server=SIDES)
    def take_down(self, server: bool) -> None:
        self.end(server).terminate("client1" if server else "server", self.world.now)

    @rule()
    def bring_up(self) -> None:
        self.world.client.initiate("server", self.world.now)

    @rule(server=SIDES)
    def lose_the_plane(self, server: bool) -> None:
        self.end(server).plane_lost(self.world.now)

    @rule(server=SIDES, hard=st.booleans(), direction=st.sampled_from(list(Direction)), other=st.integers(0, 2**32 - 1))
    def use_up(self, server: bool, hard: bool, direction: Direction, other: int) -> None:
        for child in self.end(server).children():
            spi = child.inbound_spi if direction == Direction.INBOUND else child.outbound_spi
            self.end(server).sa_used(child.inbound_spi, self.world.now)
            self.end(server).sa_expires(spi, direction, hard, self.world.now)
        self.end(server).sa_used(other, self.world.now)
        self.end(server).sa_expires(other, direction, hard, self.world.now)

    @rule(name=st.sampled_from(["server", "server@203.0.113.18", "server@1.2.3.4"]))
    def want(self, name: str) -> None:
        self.world.client.acquire(name, self.world.now)
        self.world.server.acquire(name.replace("server", "client1"), self.world.now)

    # what others do

    @rule(which=indices, changes=edits, to_server=SIDES)
    def send_from_elsewhere(self, which: int, changes: list[Edit], to_server: bool) -> None:
        sent = [data for data, _ in self.world.wire] or STRANGERS
        self.first_messages += 1
        hit(self.world, edited(sent[which % len(sent)], changes), STRANGE[to_server], to_server=to_server)

    @rule(which=indices, changes=edits, to_server=SIDES)
    def forge(self, which: int, changes: list[Edit], to_server: bool) -> None:
        sent = [*(data for data, _ in self.world.wire), *STRANGERS]
        self.first_messages += 1
        hit(self.world, edited(sent[which % len(sent)], changes), HONEST[to_server], to_server=to_server)

    @rule(which=indices, to_server=SIDES)
    def replay(self, which: int, to_server: bool) -> None:
        self.first_messages += 1
        give(self.world, self.world.wire[which % len(self.world.wire)][0], to_server=to_server)

    @rule(data=st.data(), message_id=message_ids, to_server=SIDES)
    def talk_nonsense(self, data: st.DataObject, message_id: int, to_server: bool) -> None:
        """Under the keys of the peer."""
        chain = data.draw(st.lists(about(self.world), min_size=1, max_size=3))
        exchange = data.draw(st.sampled_from([ExchangeType.INFORMATIONAL, ExchangeType.QUICK]))
        for sa in self.end(not to_server).ike_sas():
            if sa.established and sa.keys:
                octets = encode_payloads(chain)
                give(self.world, sealed(sa, exchange, message_id, chain[0].type, octets), to_server=to_server)

    # what must always be

    @invariant()
    def state_is_bounded(self) -> None:
        own = 8  # half-open exchanges of the two honest ends: rekeys and new beginnings whose answers were lost
        for endpoint in (self.world.client, self.world.server):
            assert half_open(endpoint) <= own + self.first_messages
            assert len(endpoint.children()) <= 40

    def teardown(self) -> None:
        if hasattr(self, "world"):
            for log in (self.world.client_events, self.world.server_events):
                deleted = [event.child.inbound_spi for event in log if isinstance(event, events.SaDeleted)]
                assert len(deleted) == len(set(deleted)), "a pair ends once"
            self.gate.open()
            assert recovers(self.world), (
                f"{self.world.reasons(self.world.client_events)} / {self.world.reasons(self.world.server_events)}"
            )


TestLife = Life.TestCase
TestLife.settings = fuzz(25)
