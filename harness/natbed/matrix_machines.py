"""The machines of `natbed matrix --tx`: which can be used, how a worker begins there, what if one is lost."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import execnet
import msgspec
import pytest
from execnet.gateway_io import ssh_args

from .machine import Machine, read_files, version
from .matrix import MatrixError
from .matrix_evidence import bring_home, rename
from .results.store import StoreError

Node = Any  # xdist's WorkerController, which has no types
Say = Callable[[str], None]
Arguments = Callable[[pathlib.Path, pathlib.Path], list[str]]  # pytest's, from the folders of topologies and of results

ANSWER_SECONDS = 30.0  # that a machine may take to say what it is
CONNECT_SECONDS, SILENT_SECONDS = 5, 15  # until a machine is given up: that does not answer at first, or any more
_KEYS = frozenset({"ssh", "popen", "python", "ssh_config", "nice"})  # of a specification, and env:NAME
_KNOWN = f"there is env:NAME, {', '.join(sorted(_KEYS))}"
# After the user's own options, which come first and are those that ssh takes.
_SSH = f" -o BatchMode=yes -o ConnectTimeout={CONNECT_SECONDS} -o ServerAliveInterval={SILENT_SECONDS // 3}"
_XDISTS = "execmodel=main_thread_only//"  # what it puts before each specification
LOG = "machines.log"  # beside the matrix' record: what ssh and the workers say meanwhile


@dataclass(frozen=True, slots=True)
class Place:
    """Where workers run: one --tx. Raises `MatrixError` where xdist would not understand it."""

    asked: str  # in xdist's words
    workers: int
    text: str  # the same without their number

    @classmethod
    def of(cls, asked: str) -> Place:
        """From the command line: N*SPECIFICATION."""
        number, _, rest = asked.partition("*")
        place = cls(asked, int(number), rest) if number.isdecimal() else cls(asked, 1, asked)
        keys = [key for key in _keys(asked, place.text) if key not in _KEYS and not key.startswith("env:")]
        if keys:
            raise MatrixError(f"--tx {asked!r}: {keys[0]!r} is not for natbed; {_KNOWN}")
        if not place.workers or bool(place.specification.ssh) is bool(place.specification.popen):
            raise MatrixError(f"--tx {asked!r}: say ssh=root@host//python=/path/to/python, or popen for this machine")
        return place

    @property
    def specification(self) -> execnet.XSpec:
        """As execnet takes it."""
        return execnet.XSpec(self.text)

    @property
    def name(self) -> str:
        """What to call the machine: where ssh connects to."""
        return str(self.specification.ssh or "this machine")

    def command(self) -> list[str]:
        """What asks the machine what it is."""
        specification = self.specification
        if specification.popen:
            return [*shlex.split(specification.python or shlex.quote(sys.executable)), "-m", "natbed.machine"]
        python = specification.python or "python"
        specification.ssh = self.name + _SSH
        return [*ssh_args(specification)[:-1], f"{python} -m natbed.machine"]

    def worker(self) -> str:
        """The specification of one worker, which begins as `natbed.machine` has it."""
        specification = self.specification
        default = shlex.quote(sys.executable) if specification.popen else "python"
        parts = [part for part in self.text.split("//") if not part.startswith(("python=", "ssh="))]
        if specification.ssh:
            parts.insert(0, f"ssh={specification.ssh}{_SSH}")
        return "//".join([*parts, f"python={specification.python or default} -m natbed.machine"])


def _keys(asked: str, text: str) -> list[str]:
    try:
        execnet.XSpec(text)
    except (ValueError, AttributeError, IndexError) as error:
        reason = "a part is empty" if isinstance(error, IndexError) else str(error)
        raise MatrixError(f"--tx {asked!r}: {reason}") from error
    return [part.partition("=")[0] for part in text.split("//")]


def usable(places: Sequence[Place], say: Say) -> list[Place]:
    """Those where cells can run, found by asking all at once; says in one line each what is wrong with the others."""
    different = {place.text: place for place in places}
    problems = {}
    with contextlib.ExitStack() as stack:
        asked = {text: stack.enter_context(_Question(place)) for text, place in different.items()}
        for text, question in asked.items():
            problems[text] = question.problem()
            if problems[text]:
                say(f"natbed: {different[text].name}: {problems[text]}")
    return [place for place in places if not problems[place.text]]


class _Question:
    """What a machine is, asked for."""

    def __init__(self, place: Place) -> None:
        self._until = time.monotonic() + ANSWER_SECONDS
        self._process: subprocess.Popen[str] | None = None
        self._refused = ""
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            self._process = subprocess.Popen(place.command(), text=True, errors="replace", process_group=0, **pipes)
        except OSError as error:
            self._refused = f"{error.filename}: {error.strerror}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody waits for the answer any more."""
        if self._process is not None:
            self._process.kill()
            with self._process:
                pass  # closes its pipes, and waits

    def problem(self) -> str:
        """Why no cell can run there, in one line; "" if one can."""
        if self._process is None:
            return self._refused
        try:
            said, complaint = self._process.communicate(timeout=max(self._until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return f"no answer within {ANSWER_SECONDS:.0f} s"
        complaint = _last(complaint) or f"exit code {self._process.returncode}"
        if self._process.returncode == 255 and not said:  # ssh's own
            return f"cannot be reached: {complaint}"
        try:
            machine = msgspec.json.decode(said, type=Machine)
        except msgspec.DecodeError:
            first, _, _ = said.partition("\n")
            if self._process.returncode == 0:
                return f"its shell says {first!r}, where execnet needs one that is silent"
            return f"natbed cannot be started there: {complaint}"
        if machine.version != version():
            return f"has natbed {machine.version}, this machine {version()}: install the same"
        return machine.problem


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


class Machines:
    """A pytest plugin of the process that the user sees: brings the scenarios to the machines, and the evidence home.

    xdist would copy pytest itself to each machine, which is deprecated; natbed is installed there, and pytest with it.
    """

    def __init__(
        self,
        places: Sequence[Place],
        topologies: pathlib.Path,
        results: pathlib.Path,
        arguments: Arguments,
        log: pathlib.Path,
        say: Say,
    ) -> None:
        self._places = {place.worker(): place for place in places}
        self._lost: set[str] = set()  # workers' specifications
        # Of each worker's last cell: which folder there is which here. Its reports come one by one.
        self._moved: dict[str, dict[str, str]] = {}
        self._topologies = topologies
        self._results = results
        self._arguments = arguments
        self._log = log
        self._say = say
        self._config: pytest.Config
        self._session: Any  # xdist's DSession
        self._clone: Callable[[Node], Node]

    def place(self, node: Node) -> Place:
        """Where a worker runs."""
        return self._places[str(node.gateway.spec).removeprefix(_XDISTS)]

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionstart(self) -> Generator[None]:
        """While xdist starts the workers."""
        with _stderr_in(self._log):
            yield

    def pytest_sessionfinish(self) -> None:
        """Nothing said is nothing to keep."""
        if self._log.exists() and not self._log.stat().st_size:
            self._log.unlink()

    def pytest_xdist_setupnodes(self, config: pytest.Config, specs: Sequence[execnet.XSpec]) -> None:
        """Before any worker is started: nothing is copied, and no folder made for it in somebody's home."""
        self._config = config
        session: Any = config.pluginmanager.getplugin("dsession")
        session.nodemanager.roots.clear()
        for specification in specs:
            specification.chdir = None
        self._session, clone = session, session._clone_node

        def clone_quietly(node: Node) -> Node:
            with _stderr_in(self._log):
                return clone(node)

        self._clone = clone_quietly
        session._clone_node = self._again

    def pytest_xdist_newgateway(self, gateway: execnet.Gateway) -> None:
        """Before pytest is started there: give it this machine's folders, or that machine's."""
        topologies, results = self._topologies, self._results
        if gateway.spec.ssh:
            channel = gateway.remote_exec("from natbed.machine import begin; begin(channel)")
            files = sorted(path for path in topologies.rglob("*.py") if _is_open(path.relative_to(topologies)))
            channel.send((topologies.name, read_files(topologies, files)))
            topologies, results = map(pathlib.Path, channel.receive(ANSWER_SECONDS))
            channel.waitclose(ANSWER_SECONDS)
        parameters = self._config.invocation_params
        arguments = self._arguments(topologies, results)
        if gateway.spec.ssh:
            arguments += ["-p", "natbed.matrix_evidence"]
        self._config.invocation_params = pytest.Config.InvocationParams(
            args=arguments, plugins=parameters.plugins, dir=parameters.dir
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Before anybody looks at a report: it says where its cell ran, and its evidence is here."""
        node = getattr(report, "node", None)
        if node is None:
            return
        report.user_properties.append(("machine", self.place(node).name))
        try:
            if moved := bring_home(report, self._results):
                self._moved[node.gateway.id] = moved
        except StoreError as error:
            self._say(f"natbed: {error}")
        rename(report, self._moved.get(node.gateway.id, {}))

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> bool:
        """A machine was lost while its workers began. What was not run is said at the end."""
        self._say(f"natbed: {excinfo.type.__name__}: {_last(str(excinfo.value))}")
        return True

    def _again(self, node: Node) -> Node:
        """A worker has died: another in its place, if its machine is still there; else the others go on without."""
        place, session = self.place(node), self._session
        if place.worker() not in self._lost:
            with _Question(place) as question:
                problem = question.problem()
            if not problem and (another := self._begin(place.worker(), node)):
                return another
            if problem:
                self._lose(place.worker(), problem)
        others = [other for other in session._active_nodes if other is not node and not other.shutting_down]
        if session.sched.tests_finished or (others and session.sched.collection_is_completed):
            return node
        return (session.sched.collection_is_completed and self._elsewhere(node)) or self._give_up(node)

    def _elsewhere(self, node: Node) -> Node | None:
        """The workers of the other machines have been told to end before this one died: one more there."""
        left = (worker for worker in self._places if worker not in self._lost)
        return next((another for worker in left if (another := self._begin(worker, node))), None)

    def _begin(self, worker: str, node: Node) -> Node | None:
        """A worker in another's place; None, and its machine is lost, where it cannot be started."""
        node.gateway.spec = execnet.XSpec(_XDISTS + worker)
        try:
            return self._clone(node)
        except Exception as error:  # whatever a connection can die of
            self._lose(worker, f"{type(error).__name__}: {_last(str(error))}")
        return None

    def _lose(self, worker: str, problem: str) -> None:
        self._say(f"natbed: {self._places[worker].name}: lost: {problem}")
        self._lost.add(worker)

    def _give_up(self, node: Node) -> Node:
        """Nobody is left to wait for."""
        self._session.triggershutdown()
        return node


@contextlib.contextmanager
def _stderr_in(file: pathlib.Path) -> Iterator[None]:
    """Programs that are started meanwhile write their errors to the end of the file."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with file.open("ab") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


def _is_open(path: pathlib.Path) -> bool:
    return not any(part.startswith((".", "__")) and part != "__init__.py" for part in path.parts)
