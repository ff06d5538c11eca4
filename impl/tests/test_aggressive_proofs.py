"""Proofs of Aggressive Mode: wrong ones get nobody anywhere, and looking at them costs a bounded amount of work."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from ike_world import World, intact
from test_aggressive_mode import METHODS, ends, message
from test_authenticity import flipped

from espthrunat.ike import aggressive_mode, aggressive_mode_responder, authentication, events, phase1_initiator
from espthrunat.ike.policy import Authentication, IkeSuite, Secret
from espthrunat.wire.isakmp import parse_header, parse_payloads
from espthrunat.wire.payloads import (
    Hash,
    Identification,
    KeyExchange,
    Nonce,
)


def nobody(world: World) -> bool:
    return not any(isinstance(e, events.SaEstablished) for e in world.client_events + world.server_events)


def test_a_wrong_pre_shared_key_is_noticed_by_the_initiator() -> None:
    client, server = ends(Authentication.PSK)
    world = World(replace(client, secret=Secret(b"another key")), server).connect(90.0)
    assert nobody(world)
    assert "HASH_R is wrong; most likely the pre-shared keys differ" in world.reasons(world.client_events)
    assert any(isinstance(e, events.AuthenticationFailed) for e in world.client_events)
    assert "no valid Aggressive Mode message 3" in world.reasons(world.server_events)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", ["initiator", "responder"])
def test_the_key_with_a_wrong_proof_gets_nowhere(
    side: str, method: Authentication, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what one side sends is spoilt: its own proof; what it expects of the other stays true."""

    def proof(*arguments: object, initiator: bool) -> bytes:
        digest = authentication.proof(*arguments, initiator=initiator)  # type: ignore[arg-type]
        return flipped(digest) if initiator == (side == "initiator") else digest

    spoilt = SimpleNamespace(**(vars(authentication) | {"proof": proof}))
    monkeypatch.setattr(aggressive_mode if side == "initiator" else aggressive_mode_responder, "authentication", spoilt)
    world = World(*ends(method)).connect()
    assert nobody(world)
    name = "HASH" if method == Authentication.PSK else "SIG"
    log, wrong = (world.server_events, "_I") if side == "initiator" else (world.client_events, "_R")
    assert f"{name}{wrong} is wrong" in world.reasons(log)
    assert any(isinstance(e, events.AuthenticationFailed) for e in log)


@pytest.mark.parametrize("method", METHODS)
def test_an_offer_that_was_changed_on_the_way_is_noticed(method: Authentication) -> None:
    both = tuple(IkeSuite.from_name(s) for s in ("aes256-sha256-ecp256", "aes128-sha256-ecp256"))

    def downgrade(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        if number == 0:
            data = data.replace(b"\x80\x0e\x01\x00", b"\x80\x0e\x00\x80")  # the key length 256 becomes 128
        return intact(number, data, to_server)

    client, server = (replace(c, ike_suites=both) for c in ends(method))
    world = World(client, server, fate=downgrade).connect()
    assert nobody(world)
    assert "_R is wrong" in world.reasons(world.client_events)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Nonce, KeyExchange, Identification])
@pytest.mark.parametrize("number", [1, 2])
def test_nothing_that_is_said_can_be_changed_on_the_way(number: int, kind: type, method: Authentication) -> None:
    def fate(n: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        if n == number - 1:
            chain = parse_payloads(parse_header(data).next_payload, data[28:])
            body = chain.bodies(kind)[0]
            other = body[:-1] + bytes([body[-1] ^ 1])
            data = data.replace(body, other)
        return intact(n, data, to_server) if n < 2 else []

    world = World(*ends(method), fate=fate).connect(20.0)
    assert nobody(world)
    assert not any(isinstance(e, events.IkeSaEstablished) for e in world.client_events + world.server_events)


def test_forged_answers_cost_a_bounded_amount_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(*ends(Authentication.PSK), fate=lambda n, d, s: intact(n, d, s) if s else [])
    world.connect(0.1)
    answer = world.wire[1][0]
    checks = []
    check = authentication.check

    def counted(*arguments: object, **named: object) -> object:
        checks.append(1)
        return check(*arguments, **named)  # type: ignore[arg-type]

    spoilt = SimpleNamespace(**(vars(authentication) | {"check": counted}))
    monkeypatch.setattr(phase1_initiator, "authentication", spoilt)
    proof = parse_payloads(1, answer[28:]).bodies(Hash)[0]
    for number in range(50):
        world.inject(answer.replace(proof, number.to_bytes(32, "big")), to_server=False)
    assert len(checks) == 8


def test_message_3_may_come_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 2409, 5 leaves it to the initiator; appendix B says how the vectors go on."""
    initiator = aggressive_mode.AggressiveModeInitiator
    repeat = initiator._repeat

    def encrypted(self: aggressive_mode.AggressiveModeInitiator, data: bytes, now: float) -> None:
        if not parse_header(data).encrypted:
            payloads = [i.payload for i in parse_payloads(parse_header(data).next_payload, data[28:])]
            data, self.sa.last_block = self.sa.seal(4, 0, self.sa.last_block, payloads)
        repeat(self, data, now)

    monkeypatch.setattr(initiator, "_repeat", encrypted)
    world = World(*ends(Authentication.PSK)).connect(5.0)
    assert parse_header(world.wire[2][0]).encrypted
    assert world.up


def test_a_repeated_message_3_is_nothing_to_complain_about() -> None:
    world = World(*ends(Authentication.PSK), fate=lambda n, d, s: intact(n, d, s) * (2 if n == 2 else 1)).connect(5.0)
    assert world.up
    assert not world.reasons(world.server_events)


def test_forged_proofs_of_an_initiator_are_looked_at_a_few_times_only() -> None:
    world = World(*ends(Authentication.PSK), fate=lambda n, d, s: intact(n, d, s) if n < 2 else [])
    world.connect(0.1)
    third = world.wire[2][0]
    proof = message(world, 3).one(Hash).data
    for number in range(50):
        world.inject(third.replace(proof, number.to_bytes(32, "big")), to_server=True)
    assert sum(isinstance(e, events.AuthenticationFailed) for e in world.server_events) == 8
    assert not any(sa.established for sa in world.server.ike_sas())


def test_a_message_3_that_claims_to_be_of_main_mode_is_refused() -> None:
    def fate(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        return [*([(0.001, data[:18] + b"\x02" + data[19:])] if number == 2 else []), *intact(number, data, to_server)]

    world = World(*ends(Authentication.PSK), fate=fate).connect(5.0)
    assert "a message of another exchange than Aggressive Mode" in world.reasons(world.server_events)
    assert world.up
