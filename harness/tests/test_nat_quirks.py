"""What IPsec-aware NATs do to port 500: seen from both sides by plain sockets, with two clients and one server."""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec
import pytest
from lab_world import CLIENTS, NAT, SERVER, Home

from natbed.checks import CheckResult, Verdict
from natbed.lab import Lab
from natbed.nat import presets, quirk_check, quirks
from natbed.nat.profile import Kind, Quirk
from natbed.nat.quirk_check import MARKER, Sights, check_quirk, cookie_of, observe, observe_spis, observe_turns

real = pytest.mark.usefixtures("isolated")
PORTS = ("IKE", "ESP")
UDP_SEGMENT = 103  # linux/udp.h
SO_NO_CHECK = 11  # asm-generic/socket.h


@contextmanager
def behind(quirk: Quirk | None, clients: int = 2) -> Iterator[Lab]:
    with Lab(Home(clients=clients, nat=msgspec.structs.replace(presets.MASQUERADE, quirk=quirk))) as lab:
        yield lab


def seen(quirk: Quirk | None) -> Sights:
    with behind(quirk) as lab:
        return observe([(lab["client1"], CLIENTS[0]), (lab["client2"], CLIENTS[1])], lab["server"], SERVER)


def port(sights: Sights, client: str, kind: str) -> int | None:
    source = sights[client, kind].source
    assert source is None or source[0] == NAT
    return source and source[1]


def answered(sights: Sights, kind: str) -> list[str]:
    return [sights[client, kind].answered for client in ("client1", "client2")]


def unharmed(sights: Sights) -> bool:
    cookies = {("client1", kind): cookie_of(0, kind) for kind in PORTS} | {
        ("client2", kind): cookie_of(1, kind) for kind in PORTS
    }
    return all(
        (sights[key].cookie, sights[key].answer) == (cookie, cookie)
        for key, cookie in cookies.items()
        if sights[key].answered
    )


@real
def test_without_a_quirk_each_client_has_a_port_and_its_answers() -> None:
    found = seen(None)
    for kind in PORTS:
        assert port(found, "client1", kind) == 500
        assert port(found, "client2", kind) not in (None, 500)
        assert answered(found, kind) == ["client1", "client2"]
    assert unharmed(found)


@real
def test_a_pinned_port_500_loses_the_second_client_where_the_first_is() -> None:
    found = seen(Quirk.PIN_500)
    for kind in PORTS:
        assert [port(found, name, kind) for name in ("client1", "client2")] == [500, None]
        assert answered(found, kind) == ["client1", ""]
    assert port(found, "client2", "elsewhere") == 500
    assert answered(found, "elsewhere") == ["client1", "client2"]


@real
def test_one_client_at_a_time_shuts_others_out_wherever_they_send() -> None:
    found = seen(Quirk.ONE_CLIENT)
    for kind in (*PORTS, "elsewhere"):
        assert [port(found, name, kind) for name in ("client1", "client2")] == [500, None]
        assert answered(found, kind) == ["client1", ""]


@real
@pytest.mark.parametrize(
    ("quirk", "owner"), [(Quirk.FIRST_OWNS_500, "client1"), (Quirk.LAST_OWNS_500, "client2")], ids=str
)
def test_whoever_owns_port_500_gets_everybodys_answers(quirk: Quirk, owner: str) -> None:
    found = seen(quirk)
    for kind in PORTS:
        assert [port(found, name, kind) for name in ("client1", "client2")] == [500, 500]
        assert answered(found, kind) == [owner, owner]
    assert unharmed(found)


@real
def test_the_last_of_three_owns_port_500_however_often_it_changes() -> None:
    with behind(Quirk.LAST_OWNS_500, clients=3) as lab, contextlib.ExitStack() as stack:
        ear = stack.enter_context(lab["server"].call(lambda: _udp(SERVER)))
        mouths = [stack.enter_context(made) for made in _on_clients(lab, _udp)]
        for turn, number in itertools.product(range(100), range(3)):
            question = b"%d of client%d" % (turn, number + 1)
            mouths[number].sendto(question, (SERVER, 500))
            data, source = ear.recvfrom(64)
            assert (data, source) == (question, (NAT, 500))
            ear.sendto(b"answer to " + question, source)
            assert mouths[number].recv(64) == b"answer to " + question


@real
def test_port_500_always_has_an_owner_while_three_send_at_once() -> None:
    with behind(Quirk.LAST_OWNS_500, clients=3) as lab, contextlib.ExitStack() as stack:
        ear = stack.enter_context(lab["server"].call(lambda: _udp(SERVER)))
        mouths = [stack.enter_context(made) for made in _on_clients(lab, _udp)]
        mouths[0].sendto(b"first", (SERVER, 500))
        _, source = ear.recvfrom(64)
        ended, sent = threading.Event(), [0] * len(mouths)

        def send(which: int) -> None:
            while not ended.is_set():
                mouths[which].sendto(b"owner", (SERVER, 500))
                sent[which] += 1

        with ThreadPoolExecutor(3) as pool:
            sending = [pool.submit(send, which) for which in range(len(mouths))]
            try:
                until, number = time.monotonic() + 30, 0
                while number < 500 or min(sent) <= 20:  # each takes the port from the others often
                    assert time.monotonic() < until, sent
                    ear.sendto(b"%d" % number, source)
                    readable, _, _ = select.select(mouths, [], [], 2)
                    assert [mouth.recv(64) for mouth in readable] == [b"%d" % number]
                    number += 1
            finally:
                ended.set()
        for one in sending:
            one.result()


@real
def test_trains_fragments_and_packets_without_checksum_reach_the_last_owner() -> None:
    """The addresses of what passes are written twice each way, and its checksums with them."""
    train = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 100))]
    with behind(Quirk.LAST_OWNS_500, clients=3) as lab, contextlib.ExitStack() as stack:
        ear = stack.enter_context(lab["server"].call(lambda: _udp(SERVER)))
        for mouth in [stack.enter_context(made) for made in _on_clients(lab, _udp)]:
            for sender, receiver, to in ((mouth, ear, SERVER), (ear, mouth, NAT)):
                sender.sendmsg([bytes(300)], train, 0, (to, 500))
                sender.sendto(bytes(4000), (to, 500))
                sender.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
                sender.sendto(b"no checksum", (to, 500))
                sender.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 0)
                assert [len(receiver.recv(5000)) for _ in range(5)] == [100, 100, 100, 4000, 11]


@real
def test_cookies_tell_ike_apart_and_all_esp_is_for_the_first() -> None:
    found = seen(Quirk.IKE_COOKIES)
    for kind in PORTS:
        assert [port(found, name, kind) for name in ("client1", "client2")] == [500, 500]
    assert answered(found, "IKE") == ["client1", "client2"]
    assert answered(found, "ESP") == ["client1", "client1"]


@real
def test_a_zero_marker_is_damaged_both_ways_and_nothing_else() -> None:
    found = seen(Quirk.DAMAGES_MARKER)
    for client in ("client1", "client2"):
        ike, esp = found[client, "IKE"], found[client, "ESP"]
        assert ike.source == esp.source
        assert ike.answered == esp.answered == client, "it arrives: its UDP checksum is right"
        assert (esp.cookie, esp.answer) == (quirks.DAMAGE, quirks.DAMAGE)
        assert quirks.DAMAGE != MARKER
        assert ike.cookie == ike.answer == cookie_of(int(client[-1]) - 1, "IKE")


@real
def test_each_packet_of_a_train_is_damaged() -> None:
    """A veth carries what was sent with UDP_SEGMENT as one packet, with only the first marker where one looks."""
    marked = [MARKER + bytes([number]) * 92 for number in range(3)]
    with behind(Quirk.DAMAGES_MARKER) as lab:
        ear = lab["server"].call(lambda: _udp(SERVER))
        mouth = lab["client1"].call(lambda: _udp(CLIENTS[0]))
        with ear, mouth:
            mouth.sendmsg(
                [b"".join(marked)], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 100))], 0, (SERVER, 500)
            )
            found = [ear.recv(200) for _ in marked]
    assert found == [quirks.DAMAGE + one[8:] for one in marked]


def _on_clients(lab: Lab, make: Callable[[str], socket.socket]) -> Iterator[socket.socket]:
    for host in (lab.host(f"client{number}") for number in (1, 2, 3)):
        yield host.call(functools.partial(make, host.address))


def _esp(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW, 50)
    made.bind((address, 0))
    made.settimeout(2)
    return made


def _udp(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 500))
    made.settimeout(2)
    return made


@real
def test_split_mappings_have_different_ports_that_both_lead_back() -> None:
    found = seen(Quirk.SPLITS_MAPPINGS)
    ports = [port(found, client, kind) for client in ("client1", "client2") for kind in PORTS]
    assert None not in ports
    assert len(set(ports)) == 4
    for kind in (*PORTS, "elsewhere"):
        assert answered(found, kind) == ["client1", "client2"]


@real
def test_spis_are_guessed_to_be_the_last_senders_and_stay_so() -> None:
    with behind(Quirk.ESP_SPIS) as lab:
        clients = [(lab["client1"], CLIENTS[0]), (lab["client2"], CLIENTS[1])]
        assert observe_spis(clients, lab["server"], SERVER) == [("client1", "client1"), ("client2", "client2")]


@real
def test_new_spis_are_the_last_of_threes_however_often_it_changes_and_old_ones_stay() -> None:
    with behind(Quirk.ESP_SPIS, clients=3) as lab, contextlib.ExitStack() as stack:
        ear = stack.enter_context(lab["server"].call(lambda: _esp(SERVER)))
        mouths = [stack.enter_context(made) for made in _on_clients(lab, _esp)]

        def answered(spi: int, number: int) -> bool:
            data = struct.pack("!IQ", spi, 0)
            ear.sendto(data, (NAT, 0))
            return mouths[number].recv(64)[20:] == data

        for turn, number in itertools.product(range(30), range(3)):
            mouths[number].sendto(struct.pack("!IQ", 0x4000 + number, turn), (SERVER, 0))
            assert ear.recvfrom(64)[1][0] == NAT
            assert answered(0x5000 + 3 * turn + number, number)
        assert all(answered(0x5000 + spi, spi % 3) for spi in range(90))


def proof(says: Quirk, does: Quirk | None) -> CheckResult:
    with behind(does) as lab:
        nat = lab.nat("nat")

        def forget() -> None:
            nat.run(["conntrack", "-F"])
            quirks.apply(nat, nat.profile, nat.wan, nat.lan)

        clients = [(lab["client1"], CLIENTS[0]), (lab["client2"], CLIENTS[1])]
        return check_quirk(says, clients, lab["server"], SERVER, NAT, forget)


@real
@pytest.mark.parametrize("quirk", Quirk, ids=str)
def test_a_nat_proves_its_quirk(quirk: Quirk) -> None:
    found = proof(quirk, quirk)
    assert (found.verdict, found.reason) == (Verdict.PASSED, f"it does what {quirk} says")


@real
@pytest.mark.parametrize("quirk", Quirk, ids=str)
def test_a_nat_without_its_quirk_is_a_broken_lab(quirk: Quirk) -> None:
    assert proof(quirk, None).verdict is Verdict.LAB_BROKEN


@real
@pytest.mark.parametrize(
    ("says", "does"),
    [
        (Quirk.PIN_500, Quirk.ONE_CLIENT),
        (Quirk.ONE_CLIENT, Quirk.PIN_500),
        (Quirk.FIRST_OWNS_500, Quirk.LAST_OWNS_500),
        (Quirk.FIRST_OWNS_500, Quirk.IKE_COOKIES),
    ],
    ids=str,
)
def test_a_nat_with_another_quirk_is_a_broken_lab(says: Quirk, does: Quirk) -> None:
    assert proof(says, does).verdict is Verdict.LAB_BROKEN


@real
def test_turns_end_with_the_first_answer_that_another_has_got() -> None:
    with behind(Quirk.FIRST_OWNS_500) as lab:
        clients = [(lab["client1"], CLIENTS[0]), (lab["client2"], CLIENTS[1])]
        assert observe_turns(clients, lab["server"], SERVER) == [("client1", "client1"), ("client2", "client1")]


@real
def test_a_nat_that_loses_the_last_owner_is_a_broken_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quirk_check, "observe_turns", lambda *_: [("client1", "client1"), ("client2", "")])
    found = proof(Quirk.LAST_OWNS_500, Quirk.LAST_OWNS_500)
    assert found.verdict is Verdict.LAB_BROKEN
    assert found.reason == "last-owns-500: client2 sent last, in turn 2, and the answer went to nobody"


# as text


def text(quirk: Quirk) -> str:
    return quirks.render(msgspec.structs.replace(presets.MASQUERADE, quirk=quirk), "w", "l")


def test_without_a_quirk_there_is_no_text() -> None:
    assert quirks.render(presets.MASQUERADE, "w", "l") == ""


def test_a_pinned_port_is_this_table() -> None:
    assert text(Quirk.PIN_500) == (
        "add table ip natbed_quirk\n"
        "delete table ip natbed_quirk\n"
        "table ip natbed_quirk {\n"
        "\tchain keep {\n"
        "\t\ttype nat hook postrouting priority 99; policy accept;\n"
        '\t\toifname "w" udp sport 500 masquerade to :500\n'
        "\t}\n"
        "}\n"
    )


def test_what_is_learned_lasts_as_long_as_a_mapping() -> None:
    for quirk in (Quirk.ONE_CLIENT, Quirk.FIRST_OWNS_500, Quirk.LAST_OWNS_500, Quirk.IKE_COOKIES, Quirk.ESP_SPIS):
        assert "timeout 120s" in text(quirk)


def test_the_damage_keeps_the_checksum_right() -> None:
    words = [int.from_bytes(quirks.DAMAGE[at : at + 2], "big") for at in range(0, 8, 2)]
    assert sum(words) % 0xFFFF == 0
    assert all(words)


@pytest.mark.parametrize("changes", [{"kind": Kind.ONE_TO_ONE}, {"addresses": 2}], ids=str)
def test_only_a_masquerade_with_one_address_has_a_quirk(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the quirk pin-500 is of a masquerade with one address"):
        quirks.render(msgspec.structs.replace(presets.MASQUERADE, quirk=Quirk.PIN_500, **changes), "w", "l")


def test_the_ports_of_split_mappings_are_none_that_a_socket_inside_gets_by_itself() -> None:
    """What comes back to one is taken for ESP: a client with that source port would never get an answer."""
    first, last = map(int, pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert quirks.SPLIT_PORTS[0] > last or quirks.SPLIT_PORTS[1] < first
