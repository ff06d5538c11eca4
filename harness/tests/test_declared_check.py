"""Behind a NAT that harms, a cell passes when each client fares as is declared, and only then."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from two_nodes import CLIENT, SERVER, Nodes

from natbed.checks import Verdict
from natbed.checks.declared import Outcome, Talk, check_as_declared, traffic
from natbed.checks.flows import End
from natbed.nat.passthrough_presets import PASSTHROUGH, Expected, Traffic
from natbed.nat.presets import PRESETS
from natbed.nat.profile import Quirk

WORKS = Outcome(client="client1", connected=True, traffic=Traffic.BOTH, said="server: NAT detected\n")
REFUSED = Outcome(client="client2", connected=False, traffic=Traffic.NONE, said="up\nno valid answer to message 1\n")
HARM = [Expected(), Expected(connects=False, traffic=Traffic.NONE, says="no valid answer")]


def judged(outcomes: Sequence[Outcome], expected: Sequence[Expected] = HARM) -> tuple[Verdict, str]:
    result = check_as_declared("bad-nat", expected, outcomes)
    assert result.name == "as declared"
    return result.verdict, result.reason


def test_the_harm_that_is_declared_passes_and_is_named() -> None:
    assert judged([WORKS, REFUSED]) == (
        Verdict.PASSED,
        "bad-nat: client1 connects, traffic both ways; client2 does not connect ('no valid answer')",
    )


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (
            {"connected": True, "traffic": Traffic.BOTH},
            "connected, and was not to, its last words: no valid answer to message 1",
        ),
        ({"said": "up\nwrong key\n"}, "never said 'no valid answer', its last words: wrong key"),
        ({"said": ""}, "never said 'no valid answer'"),
    ],
    ids=["better than declared", "for another reason", "without a word"],
)
def test_any_other_harm_fails(second: dict[str, object], complaint: str) -> None:
    outcome = msgspec.structs.replace(REFUSED, **second)
    assert judged([WORKS, outcome]) == (Verdict.FAILED, f"bad-nat: client2 {complaint}")


def test_a_client_that_was_to_work_and_does_not_fails() -> None:
    assert judged([REFUSED], [Expected()]) == (
        Verdict.FAILED,
        "bad-nat: client2 did not connect, and was to, its last words: no valid answer to message 1",
    )
    one_way = Outcome(client="client1", connected=True, traffic=Traffic.OUTBOUND, said="")
    assert judged([one_way], [Expected()]) == (
        Verdict.FAILED,
        "bad-nat: client1 has traffic only from the client, declared was both ways",
    )


def test_every_quirk_has_a_preset_with_a_name_of_its_own() -> None:
    assert {one.profile.quirk for one in PASSTHROUGH.values()} == set(Quirk)
    assert all(name.startswith("ipsec-passthrough-") for name in PASSTHROUGH)
    assert not set(PASSTHROUGH) & set(PRESETS)


def test_outcomes_are_declared_for_any_number_of_clients() -> None:
    last_owns = PASSTHROUGH["ipsec-passthrough-last-owns-500"]
    ways = [[one.traffic for one in last_owns.of(clients)] for clients in (1, 2, 4)]
    assert ways == [
        [Traffic.BOTH],
        [Traffic.OUTBOUND, Traffic.BOTH],
        [Traffic.OUTBOUND, Traffic.OUTBOUND, Traffic.OUTBOUND, Traffic.BOTH],
    ]


# on a real wire

DROPS = {
    Traffic.BOTH: (),
    Traffic.OUTBOUND: ("client",),
    Traffic.INBOUND: ("server",),
    Traffic.NONE: ("client", "server"),
}


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("way", Traffic, ids=str)
def test_traffic_is_found_to_pass_where_it_does(nodes: Nodes, way: Traffic) -> None:
    client, server = nodes
    for node, name in ((client, "client"), (server, "server")):
        if name in DROPS[way]:
            node.run(["iptables", "-A", "INPUT", "-p", "udp", "-j", "DROP"])
    assert traffic([Talk(End(client, CLIENT[1]), End(server, SERVER[1]))]) == [way]
