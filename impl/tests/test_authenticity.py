"""What authenticates an exchange is really looked at: right keys with a wrong proof get nobody anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ike_world import INITIATOR, RESPONDER, SERVER, World, intact
from test_hostile import mutations

from espthrunat.ike import authentication, events, keying, main_mode_responder, quick_mode
from espthrunat.ike.policy import IkeSuite
from espthrunat.messages import Encapsulation, Path
from espthrunat.wire.isakmp import ExchangeType, parse_header
from espthrunat.wire.payloads import Delete, Hash
from espthrunat.wire.proposal import Protocol


def flipped(digest: bytes) -> bytes:
    return bytes([digest[0] ^ 1]) + digest[1:]


def established(world: World) -> int:
    return sum(isinstance(e, events.SaEstablished) for e in world.client_events + world.server_events)


def test_an_offer_that_was_changed_on_the_way_is_noticed_by_hash_i() -> None:
    """Someone on the path strips the stronger suite: keys still agree, only HASH_I covers what was offered."""
    both = tuple(IkeSuite.from_name(s) for s in ("aes256-sha512-ecp384", "aes128-sha256-ecp256"))
    short = World(replace(INITIATOR, ike_suites=both[1:]))
    short.client.initiate("server", 0.0)
    weak_offer = short.client.datagrams_to_send()[0][0][8:]

    def downgrade(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        return intact(number, data[:8] + weak_offer if number == 0 else data, to_server)

    world = World(replace(INITIATOR, ike_suites=both), replace(RESPONDER, ike_suites=both), fate=downgrade).connect()
    assert not any(sa.established for sa in world.server.ike_sas())
    assert "HASH_I is wrong" in world.reasons(world.server_events)
    assert not established(world)


def test_a_responder_with_the_key_and_a_wrong_hash_r_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def proof(*arguments: object, initiator: bool) -> bytes:
        digest = authentication.proof(*arguments, initiator=initiator)  # type: ignore[arg-type]
        return digest if initiator else flipped(digest)

    spoilt = SimpleNamespace(**(vars(authentication) | {"proof": proof}))
    monkeypatch.setattr(main_mode_responder, "authentication", spoilt)
    world = World().connect()
    assert not any(isinstance(e, events.IkeSaEstablished) for e in world.client_events)
    assert "HASH_R is wrong" in world.reasons(world.client_events)
    assert not established(world)


def spoil_first(function: Callable[..., bytes], applies: Callable[..., bool]) -> Callable[..., bytes]:
    """The sender asks first, the receiver later: only the sender gets a wrong digest."""
    spoilt = False

    def wrapped(*arguments: object) -> bytes:
        nonlocal spoilt
        digest = function(*arguments)
        if spoilt or not applies(*arguments):
            return digest
        spoilt = True
        return flipped(digest)

    return wrapped


@pytest.mark.parametrize("message", [1, 2, 3])
def test_a_quick_mode_message_with_a_wrong_hash_gets_nowhere(message: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if message == 3:
        monkeypatch.setattr(keying, "quick_hash3", spoil_first(keying.quick_hash3, lambda *_: True))
    else:
        first = message == 1  # HASH(1) is HASH(2) without a nonce
        applies = spoil_first(keying.quick_hash2, lambda _h, _k, _m, nonce, _r: (nonce == b"") == first)
        monkeypatch.setattr(keying, "quick_hash2", applies)
    world = World().connect()
    receiver, log = (world.client, world.client_events) if message == 2 else (world.server, world.server_events)
    assert not receiver.usable_children()
    assert "HASH is wrong" in world.reasons(log)


def test_a_delete_with_a_wrong_hash_deletes_nothing() -> None:
    world = World().connect()
    (sa,) = world.client.ike_sas()
    delete = Delete(Protocol.ESP, (world.client_sa().inbound_spi.to_bytes(4, "big"),))
    iv = sa.phase2_iv(77)
    forged, _ = sa.seal(ExchangeType.INFORMATIONAL, 77, iv, [Hash(bytes(32)), delete])
    world.inject(forged, to_server=True)
    assert world.up
    assert "HASH is wrong" in world.reasons(world.server_events)
    world.inject(sa.seal_informational(ExchangeType.INFORMATIONAL, 78, [delete]), to_server=True)
    assert not world.server.children(), "the same Delete with its true HASH is obeyed"


@pytest.mark.parametrize("step", range(9))
def test_a_repeated_message_is_never_a_new_exchange(step: int) -> None:
    """Long after the exchange has been forgotten, so that nothing but the message ID speaks against it."""
    world = World().connect(100.0)
    before, sent = established(world), len(world.wire)
    data, to_server = world.wire[step]
    world.inject(data, to_server=to_server)
    assert established(world) == before
    if parse_header(data).exchange == ExchangeType.QUICK:
        assert len(world.wire) == sent, "and not even answered"


@pytest.mark.draft("SEC-4")
def test_even_an_authentic_message_counts_only_on_its_own_path() -> None:
    world = World().connect()
    world.client.shut_down(world.now)
    for data, _ in world.client.datagrams_to_send():
        world.server.receive_datagram(data, Path(SERVER, 500, "203.0.113.2", 4000), world.now)
    assert world.server.children()
    assert all(sa.path.remote_port == 1024 for sa in world.server.ike_sas())


@pytest.mark.parametrize("step", range(4, 9))
def test_damaged_copies_before_an_encrypted_message_do_not_spoil_it(step: int) -> None:
    def fate(number: int, data: bytes, to_server: bool) -> list[tuple[float, bytes]]:
        early = [d for d in mutations(data, step) if len(d) == len(data)][:5] if number == step else []
        return [*((0.001 + i / 10_000, d) for i, d in enumerate(early)), *intact(number, data, to_server)]

    assert World(fate=fate).connect().up


def test_a_quick_mode_3_of_right_form_with_a_wrong_hash_does_not_spoil_the_true_one() -> None:
    world = World(fate=lambda n, d, s: [] if n == 8 else intact(n, d, s))
    world.connect(0.2)
    (sa,) = world.client.ike_sas()
    true = world.wire[8][0]
    header = parse_header(true)
    forged_iv = world.wire[7][0][-16:]  # the last block of message 2, which anyone on the path has
    forged, _ = sa.seal(ExchangeType.QUICK, header.message_id, forged_iv, [Hash(bytes(32))])
    world.inject(forged, to_server=True)
    assert not world.server.usable_children()
    world.inject(true, to_server=True)
    assert world.server.usable_children()


@pytest.mark.draft("QM-3")
def test_a_responder_behind_a_nat_refuses_esp_that_could_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_mode, "wanted_encapsulation", lambda _sa, _connection: Encapsulation.NONE)
    world = World().connect()
    assert not world.server.children()
    assert "the NAT between would not let through" in world.reasons(world.server_events)
