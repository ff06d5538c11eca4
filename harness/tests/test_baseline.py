"""The kept figures: how they are made of samples, found again, and renewed by one command only."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import re
from collections.abc import Callable
from multiprocessing.synchronize import Event

import pytest
from typer.testing import CliRunner

import natbed.baseline_run
from natbed.baseline_run import CannotMeasure
from natbed.checks import Verdict
from natbed.checks.throughput import UsualRatio
from natbed.cli import app
from natbed.load import load
from natbed.machine_kind import machine_kind
from natbed.matrix import Matrix, scenarios_in
from natbed.results import baseline
from natbed.results.baseline import Baseline, Case, Figures, Sample
from natbed.results.store import StoreError
from natbed.scenario import Scenario
from natbed.topology_files import find, topologies_directory
from natbed.turns import alone

SUITES = ("aes128gcm16", "aes256gcm16", "aes128-sha256", "aes256-sha512", "3des-sha1")
HERE, ELSEWHERE = machine_kind(), "another kind, 64 CPUs"


def case(mode: str = "tunnel", esp: str = "aes128gcm16", scenario: str = "A") -> Case:
    return Case(stack="espthrunat", scenario=scenario, mode=mode, esp=esp, encapsulation="udp")


def sample(forward: float, reverse: float, plain: float = 1000) -> Sample:
    return Sample(tunnel_forward=forward, tunnel_reverse=reverse, plain_forward=plain, plain_reverse=2 * plain)


def figures(of: Case, *samples: Sample) -> Figures:
    return Figures.of(of, samples, seconds=1, measured="2001-01-01", kernel="6.1", python="3.11")


# the record


def test_figures_are_medians_and_quartiles_of_the_samples_ratios() -> None:
    made = figures(case(), *(sample(100 * n, 100 * n) for n in (3, 1, 2, 5, 4)))
    assert (made.rates.tunnel_forward, made.rates.plain_reverse) == (300, 2000)
    forward, reverse = made.ratio.forward, made.ratio.reverse
    assert (forward.low, forward.median, forward.high, forward.samples) == (0.2, 0.3, 0.4, 5)
    assert (reverse.low, reverse.median, reverse.high) == (0.1, 0.15, 0.2)


def test_a_plain_path_that_something_slowed_now_and_then_does_not_raise_the_ratio() -> None:
    made = figures(case(), sample(100, 100), sample(100, 100, plain=200), sample(100, 100, plain=500))
    assert (made.ratio.forward.high, made.ratio.reverse.high) == (0.1, 0.05)
    assert (made.rates.plain_forward, made.rates.plain_reverse) == (500, 1000)


def test_what_is_renewed_takes_the_place_of_its_own_case_alone(tmp_path: pathlib.Path) -> None:
    slow, fast = sample(10, 10), sample(500, 500)
    kept = Baseline().renewed(ELSEWHERE, [figures(case(), slow)])
    kept = kept.renewed(HERE, [figures(case(), slow), figures(case("transport"), slow)])
    kept = kept.renewed(HERE, [figures(case(), fast)])
    baseline.save(tmp_path / "b.json", kept)
    again = baseline.load(tmp_path / "b.json")
    assert again == kept
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]

    def median(kind: str, of: Case) -> float:
        found = again.usual(kind, of)
        assert isinstance(found, UsualRatio)
        return found.forward.median

    assert median(HERE, case()) == 0.5
    assert (median(HERE, case("transport")), median(ELSEWHERE, case())) == (0.01, 0.01)
    assert again.usual("a third kind", case()) == "no baseline for this kind of machine (a third kind)"
    assert again.usual(ELSEWHERE, case("transport")) == (
        "no baseline for espthrunat, A, transport, aes128gcm16, ESP in UDP"
    )


def test_a_scenario_adds_to_the_time_of_an_octet_whatever_the_suite() -> None:
    kept = Baseline().renewed(
        HERE,
        [
            figures(case(), sample(500, 500)),  # takes 2 of the plain path's time forward, 4 reverse
            figures(case(esp="3des-sha1"), sample(100, 100)),  # 10, 20
            figures(case(scenario="F"), sample(200, 400)),  # 5, 5: 3 and 1 more than A
            figures(case(scenario="B"), sample(800, 800)),  # no more than A
        ],
    )

    def medians(of: Case) -> tuple[float, float]:
        found = kept.usual(HERE, of)
        assert isinstance(found, UsualRatio), found
        return found.forward.median, found.reverse.median

    assert medians(case(scenario="F")) == (0.2, 0.2)
    assert medians(case(scenario="F", esp="3des-sha1")) == (round(1 / 13, 5), round(1 / 21, 5))
    assert medians(case(scenario="B")) == medians(case()), "never faster than A"
    assert medians(case(scenario="B", esp="3des-sha1")) == (0.1, 0.05)
    assert "no baseline for" in str(kept.usual(HERE, case(scenario="F", mode="transport", esp="3des-sha1")))
    assert "no baseline for" in str(kept.usual(HERE, case(scenario="H")))


def test_a_damaged_file_is_said_in_one_line_and_no_file_is_no_baseline(tmp_path: pathlib.Path) -> None:
    assert baseline.load(tmp_path / "none.json") == Baseline()
    (tmp_path / "bad.json").write_text('{"machines": 1}')
    with pytest.raises(StoreError, match=r"bad\.json: not a baseline: .*machines"):
        baseline.load(tmp_path / "bad.json")
    with pytest.raises(StoreError, match="cannot be written"):
        baseline.save(tmp_path / "bad.json" / "under", Baseline())


def test_the_committed_file_covers_every_cell_of_the_matrix_and_names_no_machine() -> None:
    kept = baseline.load(baseline.default_file())
    assert kept.machines
    cells = Matrix(scenarios_in(topologies_directory())).cells
    for machine in kept.machines:
        for cell in cells:
            found = kept.usual(machine.kind, case(cell.mode, cell.esp, cell.scenario))
            assert isinstance(found, UsualRatio), found
    assert os.uname().nodename not in [word for machine in kept.machines for word in machine.kind.split()]


@pytest.mark.parametrize(
    ("cpuinfo", "kind"),
    [
        (
            "processor : 0\ncpu family : 25\nmodel : 17\nmodel name : AMD EPYC\n\nprocessor : 1\nmodel : 18\n",
            "AMD EPYC, family 25, model 17, 2 CPUs",
        ),
        ("CPU implementer : 0x41\nCPU part : 0xd0c\n", f"{os.uname().machine}, implementer 0x41, part 0xd0c, 2 CPUs"),
        ("", f"{os.uname().machine}, 2 CPUs"),
    ],
)
def test_a_kind_of_machine_is_its_processor_and_how_many(cpuinfo: str, kind: str) -> None:
    assert machine_kind(cpuinfo, 2) == kind


def test_a_processor_that_is_used_is_seen() -> None:
    process = multiprocessing.get_context("fork").Process(target=spin)
    process.start()
    try:
        assert 0.5 / (os.cpu_count() or 1) < load(0.3) <= 1
    finally:
        process.kill()
        process.join()


def spin() -> None:
    while True:
        pass


# taking turns


def hold(folder: pathlib.Path, there: Event, go: Event) -> None:
    with alone(folder):
        there.set()
        go.wait(10)


def test_one_process_measures_at_a_time(tmp_path: pathlib.Path) -> None:
    fork = multiprocessing.get_context("fork")
    there, go, mine, release = fork.Event(), fork.Event(), fork.Event(), fork.Event()
    first = fork.Process(target=hold, args=(tmp_path, there, go))
    second = fork.Process(target=hold, args=(tmp_path, mine, release))
    first.start()
    try:
        assert there.wait(10)
        second.start()
        assert not mine.wait(0.3), "the first is not done"
        first.kill()  # which cannot give it back by itself
        assert mine.wait(10)
    finally:
        for process in (first, second):
            process.kill()
            process.join()
    assert not list(tmp_path.iterdir())


# the command

Measure = Callable[[type[Scenario], str, str, int], tuple[Case, Sample]]


def command(monkeypatch: pytest.MonkeyPatch, measure: Measure, *arguments: object) -> tuple[int, str]:
    """Exit code and output of `natbed baseline`, measured by a stand-in."""
    monkeypatch.setattr(natbed.baseline_run, "measure_once", measure)
    done = CliRunner().invoke(app, ["baseline", *map(str, arguments)], env={"COLUMNS": "80"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.usefixtures("isolated")
class TestCommand:
    def test_all_cases_are_measured_once_a_round_and_written(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file, asked = tmp_path / "new" / "b.json", []

        def measure(scenario: type[Scenario], mode: str, esp: str, seconds: int) -> tuple[Case, Sample]:
            asked.append((scenario.letter, mode, esp, seconds))
            return case(mode, esp, scenario.letter), sample(100, 100)

        code, said = command(monkeypatch, measure, "--rounds", 2, "--file", file)
        assert code == 0, said
        assert asked[:20] == asked[20:]
        one_round = asked[:20]
        assert one_round[:10] == [("A", mode, esp, 1) for mode in ("tunnel", "transport") for esp in SUITES]
        others = [(letter, mode) for letter in "BCDE" for mode in ("tunnel", "transport")]
        assert one_round[10:] == [(*one, SUITES[0], 1) for one in (*others, ("F", "tunnel"), ("F1", "tunnel"))]
        kept = baseline.load(file).figures(HERE)
        assert set(kept) == {case(mode, esp, letter) for letter, mode, esp, _ in one_round}
        assert {one.ratio.forward.samples for one in kept.values()} == {2}
        assert f"[ 1/40] {case()}: tunnel 100 / 100 Mbit/s, plain 1000 / 2000 Mbit/s" in said
        assert said.splitlines()[-1] == f"written: {file}"
        assert all(len(line) <= 80 for line in said.splitlines() if re.match(" [A-F]1? +(tunnel|transport) ", line))

    def test_a_dry_run_shows_and_writes_nothing(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "b.json"
        baseline.save(file, Baseline().renewed(HERE, [figures(case(), sample(400, 400))]))
        before = file.read_bytes()
        arguments = ["--rounds", 1, "--mode", "tunnel", "--esp", "aes128gcm16", "--file", file, "--dry-run"]
        code, said = command(monkeypatch, lambda *_: (case(), sample(100, 100)), *arguments)
        assert code == 0, said
        assert re.search(r"A +tunnel +aes128gcm16 .* 10-10 .* 40/20", said)
        assert said.splitlines()[-1] == "dry run: nothing was written"
        assert file.read_bytes() == before

    @pytest.mark.parametrize(
        ("problem", "code", "reason"),
        [
            (CannotMeasure(Verdict.FAILED, "it does not come up"), 1, "it does not come up; nothing was written"),
            (CannotMeasure(Verdict.LAB_BROKEN, "no iperf3"), 3, "no iperf3; nothing was written"),
            (KeyboardInterrupt(), 130, "interrupted; everything is taken down, nothing was written"),
        ],
    )
    def test_what_cannot_all_be_measured_is_not_written(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException, code: int, reason: str
    ) -> None:
        def measure(_scenario: object, mode: str, esp: str, _seconds: int) -> tuple[Case, Sample]:
            if mode == "transport":
                raise problem
            return case(mode, esp), sample(100, 100)

        file = tmp_path / "b.json"
        done, said = command(monkeypatch, measure, "--file", file)
        assert (done, said.splitlines()[-1]) == (code, f"natbed: {reason}")
        assert not file.exists()

    @pytest.mark.parametrize(("taken", "warned"), [(0.9, True), (0.05, False)])
    def test_who_measures_on_a_busy_machine_is_warned(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, taken: float, warned: bool
    ) -> None:
        monkeypatch.setattr(natbed.baseline_run, "load", lambda: taken)
        arguments = ["--rounds", 1, "--file", tmp_path / "b.json", "--dry-run"]
        code, said = command(monkeypatch, lambda *_: (case(), sample(100, 100)), *arguments)
        assert code == 0, said
        assert ("natbed: others take 90% of the processors: these figures will be of little use" in said) is warned

    @pytest.mark.parametrize("arguments", [["--mode", "both"], ["--rounds", 0], ["--seconds", 0]])
    def test_what_makes_no_sense_is_refused(self, monkeypatch: pytest.MonkeyPatch, arguments: list[object]) -> None:
        code, said = command(monkeypatch, lambda *_: pytest.fail("nothing is to be measured"), *arguments)
        assert code == 2
        assert str(arguments[0]) in said

    def test_a_damaged_file_stops_it_before_it_measures(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "b.json").write_text("{")
        arguments = ["--file", tmp_path / "b.json"]
        code, said = command(monkeypatch, lambda *_: pytest.fail("nothing is to be measured"), *arguments)
        assert code == 2
        assert "b.json: not a baseline" in said
        assert (tmp_path / "b.json").read_text() == "{"

    def test_a_real_one(self) -> None:
        scenario = find("E")  # which has no less than two clients, and translates their addresses
        found, rates = natbed.baseline_run.measure_once(scenario, "tunnel", "aes256gcm16", 1)
        assert found == case("tunnel", "aes256gcm16", "E")
        assert 0 < rates.tunnel_forward < rates.plain_forward
        assert 0 < rates.tunnel_reverse < rates.plain_reverse
