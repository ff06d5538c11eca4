"""Results of marked tests are kept as they are: whole, merged, without tests that are gone, and only where asked."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import subprocess
import sys

import pytest

from natbed import conformance_record
from natbed.conformance_record import Outcome, Proof, Record, RecordError, load, update

INI = """
[pytest]
natbed_conformance = results/conformance.json
addopts = --strict-markers
"""

OUTCOMES = """
import pytest
pytestmark = pytest.mark.draft("SA-1")

@pytest.mark.draft("SA-2", "SA-3")
def test_passes(): pass

def test_fails(): assert 0

def test_skips(): pytest.skip("not here")

@pytest.mark.xfail
def test_fails_as_expected(): assert 0

@pytest.mark.xfail
def test_passes_against_expectation(): pass

@pytest.fixture
def broken(): assert 0

@pytest.fixture
def dirty():
    yield
    assert 0

def test_not_set_up(broken): pass

def test_not_taken_down(dirty): pass

@pytest.mark.draft("SA-4")
class TestInside:
    @pytest.mark.parametrize("way", [pytest.param("a::b", marks=pytest.mark.draft("SA-5"))])
    def test_passes(self, way): pass
"""


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "pytest.ini").write_text(INI)
    return tmp_path


def run_pytest(repository: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "natbed", "-p", "xdist", "-p", "no:cacheprovider", "-ra", *arguments]
    # Other plugins only take time. Tests are rewritten within the second that a compiled file's age is told by
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, cwd=repository, env=environment
    )


def recorded(repository: pathlib.Path) -> dict[str, Proof]:
    record = load(repository / "results" / "conformance.json")
    assert record is not None, "nothing was recorded"
    return record.tests


def outcomes(repository: pathlib.Path) -> dict[str, Outcome]:
    return {node: proof.outcome for node, proof in recorded(repository).items()}


def write(repository: pathlib.Path, name: str, *tests: str, mark: str = "SA-1") -> None:
    """A file of marked tests; a name that ends with ! fails."""
    lines = [
        f"@pytest.mark.draft({mark!r})\ndef test_{test.rstrip('!')}(): assert {int(not test.endswith('!'))}"
        for test in tests
    ]
    (repository / name).write_text("\n".join(["import pytest", *lines]) + "\n")


# what is recorded


@pytest.mark.parametrize("workers", ["0", "2"])
def test_outcomes_and_ids_are_those_of_the_tests(repository: pathlib.Path, workers: str) -> None:
    (repository / "test_all.py").write_text(OUTCOMES)
    (repository / "test_plain.py").write_text("def test_unmarked(): pass\n")
    done = run_pytest(repository, "-n", workers)
    assert done.returncode == 1, done.stdout + done.stderr
    assert {node: (proof.outcome.value, proof.ids) for node, proof in recorded(repository).items()} == {
        "test_all.py::test_passes": ("passed", ("SA-2", "SA-3", "SA-1")),
        "test_all.py::test_fails": ("failed", ("SA-1",)),
        "test_all.py::test_skips": ("skipped", ("SA-1",)),
        "test_all.py::test_fails_as_expected": ("xfailed", ("SA-1",)),
        "test_all.py::test_passes_against_expectation": ("xfailed", ("SA-1",)),
        "test_all.py::test_not_set_up": ("failed", ("SA-1",)),
        "test_all.py::test_not_taken_down": ("failed", ("SA-1",)),
        "test_all.py::TestInside::test_passes[a::b]": ("passed", ("SA-5", "SA-4", "SA-1")),
    }
    assert [file.name for file in (repository / "results").iterdir()] == ["conformance.json"]


SCENARIO = """
from natbed.scenario import Scenario, Tunnel

class Lost(Scenario):
    letter = "P"
    title = "a client without a route"
    requirements = ("SA-3", "SEC-1")

    def build(self, clients: int = 2) -> None:
        internet = self.internet()
        home = self.nat_router("nat", wan=internet)
        self.host("client1", on=home.lan)
        self.host("server", on=internet)
        self.nodeInfo("client1")["routes"] = []

    def tunnels(self) -> list[Tunnel]:
        return [Tunnel("client1", "server")]
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_cell_of_the_matrix_proves_what_its_scenario_is_for(repository: pathlib.Path, workers: str) -> None:
    """The scenario's network is no network, so that a run takes no time."""
    (repository / "topologies").mkdir()
    (repository / "topologies" / "p.py").write_text(SCENARIO)
    matrix = ("--natbed-matrix", "smoke", "--natbed-results", "results")
    done = run_pytest(repository, *matrix, "-m", "draft", "-n", workers, "topologies")
    assert done.returncode == 1, done.stdout + done.stderr
    cells = [f"topologies/p.py::P-{mode}-aes128gcm16-main-psk-2-masquerade-both" for mode in ("tunnel", "transport")]
    found = {node: (proof.ids, proof.outcome) for node, proof in recorded(repository).items()}
    assert found == dict.fromkeys(cells, (("SA-3", "SEC-1"), Outcome.FAILED)), done.stdout
    run_pytest(repository, *matrix, "-m", "draft", "-k", "tunnel and not transport", "topologies")
    assert outcomes(repository).keys() == set(cells), "one that was deselected keeps its last result"


def test_a_worker_that_crashes_fails_its_test_and_spoils_nothing(repository: pathlib.Path) -> None:
    write(repository, "test_good.py", "one", "two")
    (repository / "test_bad.py").write_text(
        "import os, pytest\n@pytest.fixture\ndef deadly(): os._exit(9)\n"
        "@pytest.mark.draft('SA-2')\ndef test_dies(deadly): pass\n"
    )
    done = run_pytest(repository, "-n", "2")
    assert done.returncode == 1, done.stdout
    found = recorded(repository)
    assert {node: proof.outcome for node, proof in found.items()} == {
        "test_bad.py::test_dies": Outcome.FAILED,
        "test_good.py::test_one": Outcome.PASSED,
        "test_good.py::test_two": Outcome.PASSED,
    }
    assert found["test_bad.py::test_dies"].ids == ("SA-2",)
    assert [file.name for file in (repository / "results").iterdir()] == ["conformance.json"]


def test_a_crash_that_ends_the_session_keeps_what_is_known(repository: pathlib.Path) -> None:
    write(repository, "test_old.py", "one")
    assert run_pytest(repository).returncode == 0
    dying = "import os, pytest\n@pytest.fixture\ndef deadly(): os._exit(9)\n"
    marked = "@pytest.mark.draft('SA-1')\ndef test_one"
    (repository / "test_old.py").write_text(f"{dying}{marked}(deadly): pass\n")
    (repository / "test_new.py").write_text(f"{dying}{marked}(): pass\n{marked}_dies(): os._exit(9)\n")
    only_worker = ("-n", "1", "--max-worker-restart=0")
    assert run_pytest(repository, *only_worker, "test_new.py").returncode != 0
    assert run_pytest(repository, *only_worker, "test_old.py").returncode != 0
    assert outcomes(repository) == {
        "test_new.py::test_one": Outcome.PASSED,
        "test_new.py::test_one_dies": Outcome.FAILED,
        "test_old.py::test_one": Outcome.FAILED,
    }


@pytest.mark.parametrize("option", ["--collect-only", "--setup-only"])
def test_what_was_not_run_is_not_recorded(repository: pathlib.Path, option: str) -> None:
    write(repository, "test_some.py", "one")
    assert run_pytest(repository, option).returncode == 0
    assert load(repository / "results" / "conformance.json") is None


def test_a_repository_that_does_not_ask_is_left_alone(repository: pathlib.Path) -> None:
    (repository / "pytest.ini").write_text("[pytest]\nmarkers = draft(id): a word of their own\n")
    write(repository, "test_theirs.py", "one", mark="chapter 1")
    done = run_pytest(repository)
    assert done.returncode == 0, done.stdout
    assert not (repository / "results").exists()


# unknown ids


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_id_that_the_table_lacks_is_an_error_of_the_collection(repository: pathlib.Path, workers: str) -> None:
    write(repository, "test_typo.py", "one", mark="WIRE-99")
    write(repository, "test_good.py", "one")
    done = run_pytest(repository, "-n", workers)
    assert done.returncode != 0
    assert "test_typo.py::test_one: draft('WIRE-99'): the conformance table has no such row" in done.stdout
    assert "1 error" in done.stdout
    assert "INTERNALERROR" not in done.stdout + done.stderr


def test_a_mark_that_names_nothing_is_an_error_of_the_collection(repository: pathlib.Path) -> None:
    (repository / "test_none.py").write_text("import pytest\n@pytest.mark.draft\ndef test_one(): pass\n")
    done = run_pytest(repository)
    assert done.returncode == 2, done.stdout
    assert "test_none.py::test_one: a draft mark takes ids of the conformance table" in done.stdout


# sessions one after the other


def test_a_run_of_a_few_tests_updates_only_those(repository: pathlib.Path) -> None:
    write(repository, "test_a.py", "one", "two")
    write(repository, "test_b.py", "one")
    assert run_pytest(repository).returncode == 0
    write(repository, "test_a.py", "one!", "two!")
    assert run_pytest(repository, "test_a.py", "-k", "two").returncode == 1
    expected = {
        "test_a.py::test_one": Outcome.PASSED,
        "test_a.py::test_two": Outcome.FAILED,
        "test_b.py::test_one": Outcome.PASSED,
    }
    assert outcomes(repository) == expected
    write(repository, "test_a.py", "one!", "two")
    assert run_pytest(repository, "test_a.py::test_two").returncode == 0
    assert outcomes(repository) == {**expected, "test_a.py::test_two": Outcome.PASSED}


def test_tests_that_are_gone_do_not_stay(repository: pathlib.Path) -> None:
    for name in ("test_a.py", "test_b.py", "test_c.py"):
        write(repository, name, "one", "two", "three")
    assert run_pytest(repository).returncode == 0
    write(repository, "test_a.py", "one")
    with (repository / "test_a.py").open("a") as file:
        file.write("def test_two(): pass\n")  # its mark is gone
    (repository / "test_b.py").unlink()
    assert run_pytest(repository, "-n", "1", "test_a.py").returncode == 0
    kept = {f"test_c.py::test_{name}" for name in ("one", "two", "three")}
    assert outcomes(repository).keys() == {"test_a.py::test_one"} | kept
    write(repository, "test_c.py")
    run_pytest(repository, "-n", "1")
    assert outcomes(repository).keys() == {"test_a.py::test_one"}, "a file that has no tests any more was collected too"


def test_a_test_named_by_its_class_leaves_other_classes_alone(repository: pathlib.Path) -> None:
    classes = "".join(
        f"@pytest.mark.draft('SA-1')\nclass Test{name}:\n    def test_one(self): pass\n    def test_two(self): pass\n"
        for name in ("First", "FirstToo", "Third")
    )
    file = repository / "test_classes.py"
    file.write_text(f"import pytest\n{classes}")
    assert run_pytest(repository).returncode == 0
    file.write_text(f"import pytest\n{classes}".replace("TestThird", "TestNew").replace("test_two", "test_other"))
    assert run_pytest(repository, "test_classes.py::TestFirst::test_one").returncode == 0
    assert outcomes(repository).keys() == {
        "test_classes.py::TestFirst::test_one",
        "test_classes.py::TestFirstToo::test_one",
        "test_classes.py::TestFirstToo::test_two",  # its class was not looked into
    }


def test_a_mark_that_moves_takes_the_last_result_along(repository: pathlib.Path) -> None:
    write(repository, "test_a.py", "one", "two")
    assert run_pytest(repository).returncode == 0
    write(repository, "test_a.py", "one", "two", mark="SA-2")
    assert run_pytest(repository, "-k", "two", "-n", "1").returncode == 0
    assert {proof.ids for proof in recorded(repository).values()} == {("SA-2",)}


def test_what_can_no_longer_be_collected_has_failed(repository: pathlib.Path) -> None:
    write(repository, "test_a.py", "one")
    write(repository, "test_b.py", "one")
    assert run_pytest(repository).returncode == 0
    (repository / "test_a.py").write_text("import nothing_of_that_name\n")
    assert run_pytest(repository, "-n", "1").returncode != 0
    assert outcomes(repository) == {"test_a.py::test_one": Outcome.FAILED, "test_b.py::test_one": Outcome.PASSED}


def test_a_session_that_is_stopped_keeps_what_it_had(repository: pathlib.Path) -> None:
    write(repository, "test_a.py", "one", "two!", "three")
    assert run_pytest(repository, "-x", "-n", "1").returncode != 0
    assert outcomes(repository) == {"test_a.py::test_one": Outcome.PASSED, "test_a.py::test_two": Outcome.FAILED}


# the file


def add(file: pathlib.Path, number: int) -> None:
    proof = Proof(ids=("SA-1",), outcome=Outcome.PASSED, when="2026-01-01T00:00:00+00:00")
    update(file, lambda old: Record(tests={**old.tests, f"test_{number}": proof}))


def test_sessions_that_end_at_once_take_turns(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "results" / "conformance.json"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add(file, number), range(40)))
    record = load(file)
    assert record is not None
    assert record.tests.keys() == {f"test_{number}" for number in range(40)}


def test_a_write_that_fails_leaves_the_old_record_whole(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "conformance.json"
    add(file, 1)
    before = file.read_bytes()

    def full(self: pathlib.Path, data: bytes) -> int:
        with self.open("wb") as written:
            written.write(data[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "write_bytes", full)
        with pytest.raises(RecordError, match=r"conformance\.json: cannot be written: No space left on device"):
            add(file, 2)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_record_that_cannot_be_read_is_begun_anew_and_that_is_said(repository: pathlib.Path) -> None:
    write(repository, "test_a.py", "one")
    (repository / "results").mkdir()
    (repository / "results" / conformance_record.RECORD).write_text('{"tests": {"test_a')
    done = run_pytest(repository)
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR
    assert "no readable record" in done.stdout
    assert "it was begun anew" in done.stdout
    assert outcomes(repository) == {"test_a.py::test_one": Outcome.PASSED}
    assert run_pytest(repository).returncode == 0


def test_a_folder_that_cannot_be_written_is_said_in_one_line(repository: pathlib.Path) -> None:
    write(repository, "test_a.py", "one")
    (repository / "results").write_text("in the folder's place")
    done = run_pytest(repository)
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR
    assert "conformance.json: cannot be written: File exists" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
