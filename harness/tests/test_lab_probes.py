"""What others than the peer send: packets damaged on the way, and ike-scan and psk-crack as independent witnesses."""

from __future__ import annotations

import pathlib
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence

import pytest
from lab_flows import Pings, ping, send_raw
from lab_wire import MARKER
from lab_world import CLIENTS, INNER, NAT, SERVER, World, home, server_side, steady

from natbed.node import Node

pytestmark = pytest.mark.usefixtures("isolated")

VENDOR_ID = "50760f624c63e5c53eea386c685ca083"  # MD5("ESPThruNAT"), the draft, 4.1
UDP_HEADERS = 28  # octets: IP and UDP
EACH = 100


def damaged(packet: bytes, position: int, dice: random.Random) -> bytes:
    """The packet with another octet at this position of its marker, and no UDP checksum, so that it arrives."""
    changed = bytearray(packet)
    changed[26:28] = bytes(2)
    changed[UDP_HEADERS + position] = dice.randint(1, 255)
    return bytes(changed)


@pytest.mark.draft("WIRE-4", "WIRE-3")
def test_a_damaged_marker_does_no_harm(tmp_path: pathlib.Path) -> None:
    dice = random.Random(4)
    with home(tmp_path) as world:
        client, server = world.start_pair({"dpd": 0, "keepalive": 0}, {"dpd": 0})
        client.up()
        node = world.lab["client1"]
        with Pings(node, INNER, CLIENTS[0]) as pings:
            with world.wire("nat", world.nat.lan) as before:
                pings.answer_after(time.time(), more=5)
            sample = [p.ip for p in before.of("esp", CLIENTS[0])]
            assert all(packet[UDP_HEADERS : UDP_HEADERS + 8] == MARKER for packet in sample)
            packets = [damaged(sample[n % len(sample)], n % 8, dice) for n in range(8 * EACH)]
            quiet, ike_in = [steady(daemon.status) for daemon in (client, server)], server.count("ike_in")
            logged, begin = len(server.log), time.time()
            with world.wire() as wire:
                send_raw(node, packets)
                server.wait(
                    lambda stats: (
                        stats["counters"]["ike_in"] + stats["counters"].get("drop_ike_overload", 0)
                        >= ike_in + len(packets)
                    ),
                    "stats",
                )
                pings.answer_after(time.time(), more=5)
            seconds = time.time() - begin
            assert [steady(daemon.status) for daemon in (client, server)] == quiet, "no state"
        assert pings.sent - pings.received <= 3, "the SA is undisturbed; the last may have been under way"
        lines = server.log[logged:].splitlines()
    assert len(wire.of("ike", NAT)) >= len(packets), "they came through the NAT"
    assert not wire.of("ike", SERVER), "no reply"
    kinds = Counter(re.sub(r"^[\d,:\- ]*(\S+ \S+ \w+).*", r"\1", line) for line in lines)
    assert kinds, "somebody who looks for the reason finds it"
    assert max(kinds.values()) <= seconds + 1, f"{kinds} in {seconds:.1f} s"


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def ike_scan(node: Node, *options: str) -> str:
    """What ike-scan says of the server."""
    return node.run(["ike-scan", "--multiline", "--retry=2", *options, SERVER]).stdout


def offered(world: World, suites: Sequence[str], **changes: object) -> Node:
    """The server takes these suites; a host that is not its client."""
    world.start("server", server_side(ike=suites, **changes))
    return world.lab["stranger"]


@needs("ike-scan")
@pytest.mark.draft("VID-1", "VID-2")
@pytest.mark.parametrize(
    ("suite", "transform", "shown"),
    [
        ("aes128-sha256-modp2048", "7/128,4,1,14", ("Enc=AES", "KeyLength=128", "Hash=SHA2-256", "Group=14:modp2048")),
        ("3des-md5-modp1024", "5,1,1,2", ("Enc=3DES", "Hash=MD5", "Group=2:modp1024")),
    ],
)
def test_ike_scan_knows_us_by_name_in_main_mode(
    tmp_path: pathlib.Path, suite: str, transform: str, shown: Sequence[str]
) -> None:
    with home(tmp_path) as world:
        stranger = offered(world, [suite])
        answer = ike_scan(stranger, f"--trans={transform}", f"--vendor={VENDOR_ID}")
        assert "Main Mode Handshake returned" in answer
        for part in (*shown, "Auth=PSK"):
            assert part in answer, answer
        assert f"VID={VENDOR_ID} (ESPThruNAT)" in answer
        without = ike_scan(stranger, f"--trans={transform}")
        assert "Main Mode Handshake returned" in without, "who does not know the method is served as always"
        refused = ike_scan(stranger, "--trans=7/256,5,1,16")
        assert "Handshake returned" not in refused, "nothing but what is configured"


@needs("ike-scan", "psk-crack")
@pytest.mark.draft("AM-2", "VID-1")
@pytest.mark.parametrize(
    ("suite", "transform"), [("3des-sha1-modp1024", "5,2,1,2"), ("3des-md5-modp1024", "5,1,1,2")], ids=["sha1", "md5"]
)
def test_psk_crack_finds_the_key_of_aggressive_mode(tmp_path: pathlib.Path, suite: str, transform: str) -> None:
    """Another program computes HASH_R from what we sent, and it is ours with our key only (RFC 2409, 5.4)."""
    secret, hashes, words = "wool-and-iron", tmp_path / "hashes", tmp_path / "words"
    words.write_text(f"password\n{secret}x\n{secret}\n{secret.upper()}\n")
    with home(tmp_path) as world:
        stranger = offered(world, [suite], exchange="aggressive", psk=secret)
        who = ("--id=client1.example", "--idtype=2", "--dhgroup=2")
        answer = ike_scan(stranger, "-A", f"--trans={transform}", f"--vendor={VENDOR_ID}", *who, f"--pskcrack={hashes}")
        assert "Aggressive Mode Handshake returned" in answer
        assert f"VID={VENDOR_ID} (ESPThruNAT)" in answer
        assert "Value=server.example" in answer
    cracked = psk_crack(words, hashes)
    assert f'key "{secret}" matches' in cracked
    words.write_text(f"password\n{secret}x\n")
    assert "matches" not in psk_crack(words, hashes)


def psk_crack(words: pathlib.Path, hashes: pathlib.Path) -> str:
    """psk-crack's findings; it needs no network."""

    done = subprocess.run(
        ["psk-crack", "-d", str(words), str(hashes)], capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout


@needs("ike-scan")
@pytest.mark.draft("SEC-4")
def test_a_scan_is_no_hindrance_for_clients(tmp_path: pathlib.Path) -> None:
    with home(tmp_path) as world:
        client, server = world.start_pair()
        for _ in range(3):
            ike_scan(world.lab["stranger"], "--trans=7/256,4,1,14", f"--vendor={VENDOR_ID}")
        assert 1 <= len(server.status["ike_sas"]) <= 3, "one half-open SA a cookie, whatever is repeated"
        client.up()
        ping(world.lab["client1"], INNER, CLIENTS[0])
