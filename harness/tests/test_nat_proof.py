"""Every preset, declared, measured from outside as users do it, and in the words of coturn's client."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import msgspec
import pytest
from lab_world import home
from nat_survey import surveyed
from typer.testing import CliRunner

from natbed.cli import app
from natbed.nat import limits, presets
from natbed.nat.measured import unseen
from natbed.nat.passthrough_presets import PASSTHROUGH
from natbed.nat.profile import Filtering, Kind, Late, Mapping, NatProfile, Pooling, ZeroChecksum
from natbed.nat.profile_file import find, render
from natbed.nat_proof import proof, report, witness
from natbed.nat_proof.cli import all_presets
from natbed.nat_proof.network import Street
from natbed.nat_proof.proof import Proof, prove
from natbed.nat_proof.witness import WitnessError, Word
from natbed.passing_through import unsuitable
from natbed.settings import Protection

EI, APD = "endpoint-independent", "address-and-port-dependent"
PATIENCE = 0.5  # seconds
MISSING = witness.missing()
needs_coturn = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} of coturn")


def soon_forgetting(profile: NatProfile) -> NatProfile:
    """The same with timeouts that a test can wait for: the presets' are 30 to 350 s (`natbed nats --timeouts`)."""
    if profile.kind is not Kind.MASQUERADE:
        return profile
    replied = 2 if profile.udp_timeout == profile.udp_timeout_stream else 3
    return msgspec.structs.replace(profile, udp_timeout=2, udp_timeout_stream=replied)


# What no preset does, and a fingerprint sees too.
MORE = [
    msgspec.structs.replace(
        presets.FULL_CONE, name="rejecting-cone", late=Late.REJECTED, zero_checksum=ZeroChecksum.DROPPED
    )
]


@functools.cache  # for two tests; each could do it by itself
def proofs() -> Sequence[Proof]:
    nats = list(map(soon_forgetting, [*all_presets(), *MORE]))
    found = prove(nats, PATIENCE, timeouts=True, ask_witness=not MISSING, quirks=False)
    # A machine that stands still for half a second measures a wrong timeout; a NAT that has a wrong one has it twice.
    doubtful = [one.declared for one in found if any(what.startswith("udp_timeout") for what in one.differences)]
    again = prove(doubtful, PATIENCE, timeouts=True, ask_witness=not MISSING, quirks=False) if doubtful else []
    by_name = {one.declared.name: one for one in (*found, *again)}
    return list(by_name.values())


@pytest.mark.usefixtures("isolated")
def test_the_fingerprint_of_each_preset_is_that_preset_and_makes_the_same_nat_again(tmp_path: pathlib.Path) -> None:
    found = proofs()
    assert {one.declared.name for one in found} == {*presets.PRESETS, *PASSTHROUGH, "rejecting-cone"}
    files = []
    for one in found:
        for field in proof.seen(unseen(one.declared)):
            declared, measured = getattr(one.declared, field), getattr(one.measured, field)
            assert measured == declared, f"{one.declared.name}: {field}: declared {declared}, measured {measured}"
        file = tmp_path / f"{one.declared.name}.toml"
        file.write_text(render(one.measured))
        files.append(find(str(file)))
    assert [one.measured for one in found] == files
    assert not any(unsuitable(profile, Protection()) for profile in files), "natbed run takes them"
    again = prove(files, PATIENCE, ask_witness=False)
    assert [one.differences for one in again] == [[] for _ in files]
    for one in again:
        limits.check(one.measured)  # without timeouts too it is one that can be built


def test_what_no_fingerprint_sees_is_named_with_a_reason_and_is_nothing_else() -> None:
    always = {"name", "port_range", "refresh", "addresses", "fragments", "forwards", "quirk"}
    assert set(unseen(presets.MASQUERADE)) == always
    assert set(unseen(presets.MASQUERADE, timeouts=False)) == always | {"udp_timeout", "udp_timeout_stream"}
    assert set(unseen(presets.FULL_CONE)) == always
    for open_to_all in (presets.ONE_TO_ONE, presets.ROUTED):
        assert set(unseen(open_to_all)) == always | {"late", "udp_timeout", "udp_timeout_stream"}
    assert all(unseen(presets.ONE_TO_ONE).values())


@needs_coturn
@pytest.mark.usefixtures("isolated")
def test_coturns_client_says_the_same_of_each_preset() -> None:
    said = {one.declared.name: one.witness for one in proofs()}
    assert said == {profile.name: witness.expected(profile) for profile in [*all_presets(), *MORE]}
    assert len({str(word) for word in said.values()}) == 7, "as many as it can tell apart"


@pytest.mark.usefixtures("isolated")
def test_a_nat_that_is_not_as_declared_is_told_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    class Liar(Street):
        def build(self, nats: Sequence[NatProfile] = ()) -> None:
            super().build([presets.FULL_CONE for _ in nats])

    monkeypatch.setattr(proof, "Street", Liar)
    (found,) = prove([presets.MASQUERADE], PATIENCE, ask_witness=not MISSING)
    differences = [
        f"filtering: declared {APD}, measured {EI}",
        "hairpinning: declared none, measured external",
    ]
    if not MISSING:
        differences += [
            f"filtering: declared {APD}, turnutils_natdiscovery says {EI}",
            "hairpins: declared False, turnutils_natdiscovery says True",
        ]
    assert found.differences == differences
    assert report.row(found)[-1] == "DIFFERENT"
    assert not report.equal([found])


@pytest.mark.usefixtures("isolated")
def test_users_see_the_table_and_who_could_not_be_asked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "missing", lambda: ["turnserver"])
    file = tmp_path / "table.md"
    done = CliRunner().invoke(
        app, ["nats", "routed", "ipsec-passthrough-pin-500", "--patience", "0.2", "--markdown", str(file)]
    )
    assert done.exit_code == 0, done.output
    assert "missing   turnserver (Debian: coturn), so nobody else was asked" in done.stdout
    assert "not measured: quirk: it is about IKE and ESP on port 500" in done.stdout
    text = file.read_text()
    assert "| `routed` | no NAT, no filter | no NAT, no filter | not asked | equal |" in text
    assert "| not asked | equal; quirk pin-500 proved |" in text
    assert "Verdict: equal" in text


def test_something_that_differs_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    different = Proof(declared=presets.MASQUERADE, measured=presets.SYMMETRIC, unseen=unseen(presets.MASQUERADE))
    monkeypatch.setattr("natbed.nat_proof.proof.prove", lambda *_args, **_options: [different])
    monkeypatch.setattr("natbed.isolation.isolate", lambda: None)
    done = CliRunner().invoke(app, ["nats", "masquerade"])
    assert done.exit_code == 1
    assert f"masquerade: mapping: declared {EI}, measured {APD}" in done.stdout
    assert "verdict   different" in done.stdout


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("nats no-such", "natbed: 'no-such'; there are masquerade, one-to-one"),
        ("nats masquerade --markdown /no/such/file.md", "natbed: --markdown /no/such/file.md: there is no folder"),
        (f"nats {' '.join(['routed'] * 41)}", "natbed: 41 NATs; 40 fit into one network"),
    ],
)
def test_a_wrong_command_is_one_line(command: str, line: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_the_command_explains_itself() -> None:
    shown = " ".join(CliRunner().invoke(app, ["nats", "--help"]).stdout.split())
    assert "Exit code 0: all is as declared, 1: something is not" in shown


# pools


@pytest.mark.usefixtures("isolated")
def test_a_pool_that_does_not_pair_is_seen_and_refused_in_one_line(tmp_path: pathlib.Path) -> None:
    pooled = msgspec.structs.replace(presets.CARRIER_GRADE, name="pooled", addresses=3, pooling=Pooling.ARBITRARY)
    with home(tmp_path, 2, pooled) as world, surveyed(world) as (surveyor, _):
        profile = surveyor.measure().profile("pooled")
    assert (profile.pooling, profile.addresses) == (Pooling.ARBITRARY, 3)
    file = tmp_path / "pooled.toml"
    file.write_text(render(profile))
    done = CliRunner().invoke(app, ["run", "A", "--nat", str(file)], env={"COLUMNS": "400"})
    assert done.exit_code == 2
    shown = " ".join(done.stderr.replace("│", " ").split())
    reason = "pooled gives each flow any of 3 outside addresses (pooling arbitrary), so no check can say beforehand"
    assert reason in shown
    assert "Traceback" not in shown


# what the witness prints, in coturn 4.6.1's words

TIMES_OUT = "\n-= Filtering Behavior Discovery =-\n\nRFC 5780 response 1\nSTUN receive timeout..\n"
ASKED = "\n-= Hairpinning Behavior Discovery =-\n\n====\nRFC 5780 response 1\nNo ALG: Mapped == XOR-Mapped\n"


def found(what: str) -> str:
    return f"\nRFC 5780 response 2\n\n========\nNAT with {what}!\n========\n"


def test_the_witness_is_understood() -> None:
    said = witness.read(
        found("Address Dependent Mapping"),
        TIMES_OUT + found("Address and Port Dependent Filtering"),
        ASKED + "STUN receive timeout..\nSTUN receive timeout..\n",
    )
    assert said == Word(Mapping.ADDRESS_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT, False)
    none = "\n====\nNo NAT! (Endpoint Independent Mapping)\n====\n"
    request = "Received a request (maybe a successful hairpinning)\n"
    open_to_all = found("Endpoint Independent Filtering")
    without = witness.read(none + found("Endpoint Independent Mapping"), none + open_to_all, ASKED + request)
    assert without == Word(Mapping.NONE, Filtering.NONE, None)
    assert witness.read(found("Endpoint Independent Mapping"), open_to_all, ASKED + request).hairpins is True


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (("STUN receive timeout..\n", found("Address Dependent Filtering"), ASKED), "-m says nothing of mapping: STUN"),
        ((found("Address Dependent Mapping"), "", ASKED), "-f says nothing of filtering: it said nothing"),
        (
            (found("Address Dependent Mapping"), found("Address Dependent Filtering"), "STUN receive timeout..\n"),
            "-H was not answered by its server: STUN receive timeout",
        ),
    ],
)
def test_a_witness_that_says_nothing_is_an_error(outputs: tuple[str, str, str], message: str) -> None:
    with pytest.raises(WitnessError, match=message):
        witness.read(*outputs)
