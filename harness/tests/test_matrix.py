"""The matrix without running it: which cells there are, which are left out and why, and which are chosen."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterable

import msgspec
import pytest

from natbed import matrix
from natbed.matrix import Axes, Cell, Extent, Matrix, MatrixError, load_axes, pairwise, scenarios_in
from natbed.matrix_cells import NO_FAULT, UNIMPAIRED
from natbed.matrix_select import Choice, select
from natbed.nat import presets
from natbed.nat.passthrough_presets import PASSTHROUGH
from natbed.nat.presets import PRESETS
from natbed.nat.profile import NatProfile
from natbed.scenario import Scenario
from natbed.settings import Protection
from natbed.topology_files import load_scenarios, topologies_directory

AXES = Axes(
    mode=("tunnel", "transport"),
    esp=("aes128gcm16", "aes128-sha256", "3des-sha1"),
    phase1=("main-psk", "main-rsa"),
    clients=(2, 1, 3),
    nat=("masquerade", "routed"),
    rekey=("both", "initiator"),
)

IMPAIRMENTS = ("unimpaired", "loss-1%")


class Varied(Scenario):
    letter = "V"
    nats = ("masquerade", "routed")

    def build(self, clients: int = 2, nat: NatProfile = presets.MASQUERADE) -> None:
        """Never built here."""


class TunnelOnly(Varied):
    letter = "V1"
    modes = ("tunnel",)
    not_supported = {"transport": "gateways forward"}  # noqa: RUF012 - as scenarios write it
    client_counts = (1, 2)


class Drawn(Scenario):
    letter = "W"

    def build(self) -> None:
        """Nothing varies."""


@pytest.fixture
def small() -> Matrix:
    return Matrix([Varied, TunnelOnly, Drawn], AXES)


def pairs(cells: Iterable[Cell]) -> set[tuple[tuple[int, str], ...]]:
    return {pair for cell in cells for pair in itertools.combinations(enumerate(cell.values), 2)}


# what there is


def test_the_product_has_each_possible_cell_once_and_nothing_else(small: Matrix) -> None:
    suites_and_the_like = 3 * 2 * 2  # esp, phase 1, rekey
    by_letter = {letter: [cell for cell in small.cells if cell.scenario == letter] for letter in ("V", "V1", "W")}
    assert {letter: len(cells) for letter, cells in by_letter.items()} == {
        "V": 2 * 3 * 2 * suites_and_the_like,
        "V1": 1 * 2 * 2 * suites_and_the_like,
        "W": 2 * 1 * 1 * suites_and_the_like,
    }
    assert len(set(small.cells)) == len(small.cells)
    assert {cell.mode for cell in by_letter["V1"]} == {"tunnel"}
    assert {cell.clients for cell in by_letter["V1"]} == {1, 2}
    assert {(cell.clients, cell.nat) for cell in by_letter["W"]} == {(1, "masquerade")}, "its build has no such axes"


def test_everything_left_out_is_counted_with_its_reason(small: Matrix) -> None:
    reasons = {exclusion.what: exclusion.reason for exclusion in small.left_out}
    assert reasons == {
        "V1, transport": "gateways forward",
        "V1, clients: 3": "it is made for 1 or 2 clients",
        "W, clients: 2": "the number of its clients does not vary",
        "W, clients: 3": "the number of its clients does not vary",
        "W, NAT: routed": "what its NATs do does not vary",
    }
    everything = 3 * 2 * 3 * 2 * 3 * 2 * 2
    assert len(small.cells) + sum(small.left_out.values()) == everything


def test_a_scenario_of_which_nothing_is_left_is_an_error() -> None:
    class Crowd(Varied):
        client_counts = (14,)

    with pytest.raises(MatrixError, match=r"^V: the matrix has no cell for it"):
        Matrix([Crowd], AXES)
    with pytest.raises(MatrixError, match="same letter"):
        Matrix([Varied, Varied], AXES)


def test_a_scenario_that_cannot_be_built_keeps_its_ordinary_cells_and_stops_nothing() -> None:
    class Unbuilt(Drawn):
        def build(self) -> None:
            raise RuntimeError("no idea")

    matrix = Matrix([Unbuilt], msgspec.structs.replace(AXES, fault=("no-fault", "reboot"), impairment=IMPAIRMENTS))
    assert {(cell.fault, cell.impairment) for cell in matrix.cells} == {("no-fault", "unimpaired")}
    assert matrix.cells == matrix.usual
    reasons = {exclusion.what: exclusion.reason for exclusion in matrix.left_out}
    assert reasons["W, fault: reboot"] == "the scenario cannot be built: no idea"
    assert reasons["W, impairment: loss-1%"] == "the scenario cannot be built: no idea"


# ids


def test_ids_are_unique_stable_and_lead_back(small: Matrix) -> None:
    ids = [cell.id for cell in small.cells]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "V-tunnel-aes128gcm16-main-psk-2-masquerade-both"
    assert [cell.id for cell in small.named(reversed(ids))] == ids[::-1]
    with pytest.raises(MatrixError, match=r"^no cell 'V-tunnel'"):
        small.named(["V-tunnel"])


def test_a_cell_says_how_to_run(tmp_path: pathlib.Path) -> None:
    cell = Cell("V", "transport", "3des-sha1", "aggressive-psk", 3, "routed", "responder")
    options = cell.options(4, tmp_path)
    assert (options.clients, options.nat, options.seconds) == (3, presets.ROUTED, 4)
    assert (options.results, options.rekey) == (tmp_path, "responder")
    assert options.protection == Protection(
        mode="transport", esp_suite="3des-sha1", exchange="aggressive", authentication="psk"
    )


# extents


def test_smoke_is_every_scenario_and_mode_once_with_the_first_values(small: Matrix) -> None:
    rest = "aes128gcm16-main-psk"
    assert [cell.id for cell in small.take(Extent.SMOKE)] == [
        f"V-tunnel-{rest}-2-masquerade-both",
        f"V-transport-{rest}-2-masquerade-both",
        f"V1-tunnel-{rest}-2-masquerade-both",
        f"W-tunnel-{rest}-1-masquerade-both",
        f"W-transport-{rest}-1-masquerade-both",
    ]


def test_default_has_every_possible_pair_in_few_possible_cells(small: Matrix) -> None:
    chosen = small.take(Extent.DEFAULT)
    assert set(chosen) <= set(small.cells)
    assert pairs(chosen) == pairs(small.cells)
    assert len(chosen) == len(set(chosen)) <= 20, "the two largest axes alone need 9"
    assert chosen == Matrix([Varied, TunnelOnly, Drawn], AXES).take(Extent.DEFAULT), "the same again"


def test_a_pair_of_few_possible_cells_is_not_missed() -> None:
    common = [Cell("V", "tunnel", esp, "main-psk", n, "masquerade", "both") for esp in "abc" for n in (1, 2)]
    rare = Cell("V", "transport", "d", "main-psk", 9, "masquerade", "both")
    chosen = pairwise([*common, rare])
    assert rare in chosen
    assert pairs(chosen) == pairs([*common, rare])


def test_full_is_everything(small: Matrix) -> None:
    assert small.take(Extent.FULL) == small.cells


# selection


@pytest.mark.parametrize(
    ("expression", "meant"),
    [
        ("V1", lambda cell: cell.scenario == "V1"),
        ("v", lambda cell: cell.scenario == "V"),
        ("V and transport", lambda cell: cell.scenario == "V" and cell.mode == "transport"),
        ("W or V and transport", lambda cell: cell.scenario == "W" or (cell.scenario, cell.mode) == ("V", "transport")),
        ("(W or V) and transport", lambda cell: cell.scenario in ("W", "V") and cell.mode == "transport"),
        ("not (rsa or 3des*)", lambda cell: "rsa" not in cell.phase1 and cell.esp != "3des-sha1"),
        ("not not main-rsa AND 3", lambda cell: cell.phase1 == "main-rsa" and cell.clients == 3),
        ("*sha256*-routed-*", lambda cell: cell.esp == "aes128-sha256" and cell.nat == "routed"),
    ],
)
def test_an_expression_selects_what_it_says(small: Matrix, expression: str, meant: object) -> None:
    assert callable(meant)
    expected = [cell for cell in small.cells if meant(cell)]
    assert expected
    assert select(small.cells, expression, lambda: small.cells) == expected


@pytest.mark.parametrize("expression", ["and", "V and", "V W", "(V", "V)", "not", "()", " ", "V or or W"])
def test_what_is_no_expression_is_refused(small: Matrix, expression: str) -> None:
    with pytest.raises(MatrixError, match="no expression"):
        select(small.cells, expression, lambda: small.cells)


def test_a_word_that_nothing_has_is_refused(small: Matrix) -> None:
    for expression in ("transprot", "not transprot", "V or transprot"):
        with pytest.raises(MatrixError, match="no cell has 'transprot'"):
            select(small.cells, expression, lambda: small.cells)


def test_a_choice_is_of_its_extent_or_of_the_cells_that_it_names(small: Matrix) -> None:
    assert [cell.id for cell in Choice(Extent.SMOKE, expression="W").of(small)] == [
        "W-tunnel-aes128gcm16-main-psk-1-masquerade-both",
        "W-transport-aes128gcm16-main-psk-1-masquerade-both",
    ]
    named = small.cells[-1].id
    assert [cell.id for cell in Choice(Extent.SMOKE, (named,)).of(small)] == [named]
    with pytest.raises(MatrixError, match="none of the cells of this matrix; --full has more"):
        Choice(Extent.SMOKE, expression="3des-sha1").of(small)


# the project's own table


def test_the_table_has_all_that_the_scenarios_can_vary() -> None:
    axes = load_axes()
    assert set(axes.nat) <= {*PRESETS, *PASSTHROUGH}
    for scenario in load_scenarios():
        assert set(scenario.modes) <= set(axes.mode)
        assert set(scenario.client_counts) <= set(axes.clients)
        assert set(scenario.nats) <= set(axes.nat)


def test_the_projects_matrix_has_every_scenario_in_every_mode_that_it_supports() -> None:
    scenarios = scenarios_in(topologies_directory())
    chosen = Matrix(scenarios).take(Extent.DEFAULT)
    wanted = {(scenario.letter, mode) for scenario in load_scenarios() for mode in scenario.modes}
    assert {(cell.scenario, cell.mode) for cell in chosen} == wanted


@pytest.fixture(scope="module")
def project() -> Matrix:
    return Matrix(scenarios_in(topologies_directory()))


def ordinary(cell: Cell) -> tuple[str, ...]:
    return cell.values[:7]


def test_the_projects_default_has_all_ordinary_pairs_and_no_more_cells_than_they_need(project: Matrix) -> None:
    chosen = [cell for cell in project.take(Extent.DEFAULT) if cell.nat not in PASSTHROUGH]
    known = [cell for cell in project.cells if cell.nat not in PASSTHROUGH]

    def found(cells: Iterable[Cell]) -> set[object]:
        return {pair for cell in cells for pair in itertools.combinations(enumerate(ordinary(cell)), 2)}

    assert found(chosen) == found(known)
    plain = [cell for cell in known if (cell.fault, cell.impairment) == (NO_FAULT, UNIMPAIRED)]
    assert len(chosen) <= len(pairwise(plain)) + 2, "what goes wrong comes at the end of cells that there are anyway"
    assert len(project.take(Extent.DEFAULT)) <= 58


def test_the_projects_default_has_each_fault_and_impairment_in_each_mode(project: Matrix) -> None:
    chosen, axes = project.take(Extent.DEFAULT), project.axes
    wrong = {(cell.mode, cell.fault) for cell in chosen} | {(cell.mode, cell.impairment) for cell in chosen}
    assert wrong == set(itertools.product(axes.mode, (*axes.fault, *axes.impairment)))
    assert not [cell for cell in project.cells if cell.fault != NO_FAULT and cell.impairment != UNIMPAIRED]


def test_the_projects_default_has_each_ipsec_aware_nat_once_and_nothing_else_with_it(project: Matrix) -> None:
    chosen = [cell for cell in project.take(Extent.DEFAULT) if cell.nat in PASSTHROUGH]
    assert sorted(cell.nat for cell in chosen) == sorted(PASSTHROUGH)
    assert {cell.clients for cell in chosen} == {2}, "alone, a client has nobody to be mistaken for"
    for cell in project.cells:
        assert (cell.rekey == "none") == (cell.nat in PASSTHROUGH)
        if cell.nat in PASSTHROUGH:
            assert (cell.mode, cell.fault, cell.impairment) == ("tunnel", NO_FAULT, UNIMPAIRED)


def test_the_projects_smoke_has_nothing_that_goes_wrong_and_no_ipsec_aware_nat(project: Matrix) -> None:
    smoke = project.take(Extent.SMOKE)
    assert len(smoke) == sum(len(scenario.modes) for scenario in load_scenarios())
    assert {(cell.nat in PASSTHROUGH, cell.fault, cell.impairment) for cell in smoke} == {(False, NO_FAULT, UNIMPAIRED)}


def test_each_fault_and_impairment_of_the_table_can_be_in_each_scenario_but_for_what_is_said(project: Matrix) -> None:
    left_out = {one.what: one.reason for one in project.left_out}
    assert {what: left_out[what] for what in left_out if ", fault: " in what or ", impairment: " in what} == {
        "A, fault: renumber": "no NAT of this scenario has an address for many",
        "D, fault: renumber": "no NAT of this scenario has an address for many",
        "D, fault: kill-server": "no host with a tunnel 'server'; there are client1, server1, server2",
        "F, fault: kill-server": "no host with a tunnel 'server'; there are homegw, corpgw",
        "F1, fault: kill-server": "no host with a tunnel 'server'; there are homegw, corpgw",
    }
    assert "tunnel mode" in left_out["A, transport, NAT: ipsec-passthrough-pin-500"]
    assert left_out["A, a fault and an impairment"].startswith("one thing at a time")
    assert left_out["A, rekey: none, NAT: any other"]


@pytest.mark.parametrize("expression", ["reboot and A", "kill and server", "loss*", "pin and 500", "*-forge"])
def test_what_goes_wrong_can_be_selected(project: Matrix, expression: str) -> None:
    chosen = select(project.cells, expression, lambda: project.cells)
    assert chosen
    assert len(chosen) < len(project.cells) / 10
    one = chosen[len(chosen) // 2]
    assert project.named([one.id]) == [one]


def test_a_cell_of_a_fault_or_an_impairment_says_so(project: Matrix, tmp_path: pathlib.Path) -> None:
    rest = ("aes128gcm16", "main-psk", 2, "masquerade", "both")
    struck = Cell("A", "tunnel", *rest, fault="kill-server")
    impaired = Cell("A", "transport", *rest, impairment="delay-20ms-jitter-5ms")
    assert struck.id == "A-tunnel-aes128gcm16-main-psk-2-masquerade-both-kill-server"
    assert project.named([struck.id, impaired.id]) == [struck, impaired]
    options = struck.options(0, tmp_path)
    assert (options.fault, options.impairment, options.anew, options.idles) == ("kill server", "", True, True)
    options = impaired.options(0, tmp_path)
    assert (options.fault, options.impairment) == ("", "delay 20ms jitter 5ms")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mode = 3", "Expected `array`"),
        ("colour = []", "unknown field"),
        ("=", "Invalid statement"),
        ('mode=["tunnel","tunnel"]\nesp=["a"]\nphase1=["b"]\nclients=[1]\nnat=["n"]\nrekey=["r"]', "mode needs values"),
    ],
)
def test_a_table_with_an_error_is_refused_in_one_line(tmp_path: pathlib.Path, text: str, complaint: str) -> None:
    file = tmp_path / matrix.TABLE.name
    file.write_text(text)
    with pytest.raises(MatrixError, match=complaint) as refused:
        load_axes(file)
    assert "\n" not in str(refused.value)
