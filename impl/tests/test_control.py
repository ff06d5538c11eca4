"""The control socket: whatever a client sends, or fails to read, the daemon answers everybody else."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path as FilePath
from typing import Any

import pytest
from daemon_world import Daemon, Host, running
from hypothesis import given
from hypothesis import strategies as st
from plane_world import DEADLINE, POLL, two_namespaces, what_is_missing

from espthrunat import control
from espthrunat.control import MAX_CLIENTS, MAX_REQUEST, Client, ControlError, ControlServer, parse_request, request

missing = what_is_missing()
needs_namespaces = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")

STATUS = b'{"command": "status"}\n'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


class Echo:
    """A server that answers each request with itself, driven by hand and without a network."""

    def __init__(self, path: FilePath) -> None:
        self.requests: list[dict[str, Any]] = []
        self.server = ControlServer(path, self._answer)

    def _answer(self, client: Client, asked: dict[str, Any]) -> None:
        self.requests.append(asked)
        client.reply({"ok": True, "asked": asked})

    @contextmanager
    def client(self) -> Iterator[tuple[Client, socket.socket]]:
        """A client's two ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        client = Client(ours)
        with ours, theirs:
            theirs.settimeout(DEADLINE)
            yield client, theirs


@pytest.fixture
def echo(tmp_path: FilePath) -> Iterator[Echo]:
    made = Echo(tmp_path / "control.sock")
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def shared_echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Echo]:
    made = Echo(tmp_path_factory.mktemp("shared") / "control.sock")
    yield made
    made.server.close()


@given(st.binary(max_size=200).filter(lambda line: b"\n" not in line))
def test_any_line_gets_one_answer_and_the_next_one_too(shared_echo: Echo, line: bytes) -> None:
    with shared_echo.client() as (client, theirs):
        theirs.sendall(line + b"\n" + STATUS)
        assert shared_echo.server.receive(client)
        first, second = (json.loads(answer) for answer in theirs.recv(10_000).splitlines())
        assert first["ok"] or first["error"] == "a request is one JSON object a line"
        assert second == {"ok": True, "asked": {"command": "status"}}


@given(JSON)
def test_only_objects_are_requests(value: Any) -> None:
    line = json.dumps(value).encode()
    if isinstance(value, dict) and len(line) <= MAX_REQUEST:
        assert json.dumps(parse_request(line)).encode() == line
    else:
        with pytest.raises(ValueError, match="a request"):
            parse_request(line)


@pytest.mark.parametrize("line", [b"[" * 4000, b'{"a":' * 800, b"1" * 4090, b'"\xff"', b"\xff\xfe", b"NaN", b"\0"])
def test_lines_that_trouble_parsers_are_no_requests(line: bytes) -> None:
    with pytest.raises(ValueError, match="a request is one JSON object a line"):
        parse_request(line)


@given(st.lists(st.integers(1, 60), max_size=6))
def test_requests_may_come_in_any_pieces(shared_echo: Echo, cuts: list[int]) -> None:
    data = STATUS + b'{"command": "up", "connection": "peer"}\n'
    shared_echo.requests.clear()
    with shared_echo.client() as (client, theirs):
        start = 0
        for end in [*sorted(cuts), len(data)]:
            if data[start:end]:
                theirs.sendall(data[start:end])
                assert shared_echo.server.receive(client)
                start = end
    assert [asked["command"] for asked in shared_echo.requests] == ["status", "up"]


def test_many_requests_at_once_are_all_answered(echo: Echo) -> None:
    """More octets than one request may have, in many that are small."""
    with echo.client() as (client, theirs):
        theirs.sendall(b'{"command": "status", "more": "%s"}\n' % (b"x" * 100) * 200)
        answers = b""
        while len(echo.requests) < 200:
            assert echo.server.receive(client)
            answers += theirs.recv(1_000_000)
        assert answers.count(b"\n") == 200


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_huge_line_is_refused_with_a_reason(echo: Echo, end: bytes) -> None:
    with echo.client() as (client, theirs):
        theirs.sendall(b'{"x": "' + b"x" * (MAX_REQUEST + 10) + b'"}' + end)
        while echo.server.receive(client) and not (end and client.pending == b""):
            pass
        assert json.loads(theirs.recv(1000)) == {"ok": False, "error": f"a request has at most {MAX_REQUEST} octets"}
    assert not echo.requests


def test_half_a_line_is_no_request(echo: Echo) -> None:
    with echo.client() as (client, theirs):
        theirs.sendall(STATUS[:-1])
        theirs.shutdown(socket.SHUT_WR)
        assert echo.server.receive(client)
        assert not echo.server.receive(client)
    assert not echo.requests


def test_who_does_not_read_is_given_up_after_one_wait(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REPLY_SECONDS", 0.01)
    waits = 0
    with echo.client() as (client, theirs):
        while not client.gone:
            theirs.sendall(STATUS * 100)
            echo.server.receive(client)
        waits = len(echo.requests)
        assert not echo.server.receive(client), "the next look at it drops it"
        client.reply({"ok": True})
    assert len(echo.requests) == waits, "what it asked beyond that is not even read"


def test_only_the_owner_may_ask(echo: Echo, tmp_path: FilePath) -> None:
    assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o600


def test_a_file_that_is_no_socket_is_kept(tmp_path: FilePath) -> None:
    file = tmp_path / "precious"
    file.write_text("data")
    with pytest.raises(ControlError, match="precious: this is no socket"):
        ControlServer(file, lambda client, asked: None)
    assert file.read_text() == "data"


def test_a_listening_socket_is_not_taken_over_and_a_dead_one_is(tmp_path: FilePath) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        for _ in range(3):  # each leaves a connection in the backlog, which is full then: nobody accepts
            with pytest.raises(ControlError, match="another daemon listens here"):
                ControlServer(path, lambda client, asked: None)
        with pytest.raises(ControlError, match="too many clients wait"):
            request(path, "status", DEADLINE)
    ControlServer(path, lambda client, asked: None).close()
    assert not path.exists()


@pytest.mark.parametrize("said", [b"", b'{"ok": tr', b'{"ok": true}'], ids=["nothing", "half a line", "no line end"])
def test_an_answer_that_breaks_off_is_explained(tmp_path: FilePath, said: bytes) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(DEADLINE)
        listener.bind(str(path))
        listener.listen()

        def break_off() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=break_off)
        thread.start()
        try:
            with pytest.raises(ControlError, match="the daemon closed the connection"):
                request(path, "status", DEADLINE)
        finally:
            thread.join()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all that clients can do to it; each test ends with its answer to a good one."""
    with two_namespaces() as (here, _), running(here, Host(0, tmp_path_factory.mktemp("daemon"))) as up:
        yield up


def connect(daemon: Daemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE)
    connection.connect(str(daemon.host.control))
    return connection


@needs_namespaces
@pytest.mark.parametrize(
    "junk",
    [
        b"\n\n\n",
        b"\xff\xfe\0\n",
        b"[" * 4000 + b"\n",
        b"x" * 100_000,
        b'{"command": ["status"]}\n{"command": null}\n{"connection": {}}\n{}\n',
        b'{"command": "up", "connection": [1]}\n{"command": "down", "connection": null}\n',
        b'{"command": "\\ud800", "connection": "\\u0000"}\n',
    ],
    ids=["empty lines", "no text", "deep nest", "endless line", "odd commands", "odd names", "lone surrogate"],
)
def test_junk_gets_refusals_and_harms_nobody(daemon: Daemon, junk: bytes) -> None:
    with connect(daemon) as client:
        try:
            client.sendall(junk)
        except ConnectionError:
            assert len(junk) > MAX_REQUEST, "only who says too much is cut off"
        answer = json.loads(client.makefile("rb").readline())
        assert answer["ok"] is False
        assert answer["error"]
        assert daemon.ask("status")["connections"]
    assert "Traceback" not in daemon.log.text


@needs_namespaces
def test_a_client_with_half_a_line_keeps_nobody_waiting(daemon: Daemon) -> None:
    with connect(daemon) as slow:
        slow.sendall(b'{"command": "sta')
        assert daemon.ask("status")["connections"]
        slow.sendall(b'tus"}\n')
        assert json.loads(slow.makefile("rb").readline())["ok"]


@needs_namespaces
def test_clients_beyond_the_limit_are_told_and_places_become_free(daemon: Daemon) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon)) for _ in range(MAX_CLIENTS)]
        for client in clients:
            client.sendall(STATUS)
            assert json.loads(client.makefile("rb").readline())["ok"]
        with pytest.raises(ControlError, match=f"{MAX_CLIENTS} clients are connected already"):
            daemon.ask("status")
    end = time.monotonic() + DEADLINE
    refusal = "none"
    while refusal:  # until the daemon has seen that they are gone
        assert time.monotonic() < end, f"last seen: {refusal}"
        try:
            daemon.ask("status")
        except ControlError as error:
            refusal = str(error)
            time.sleep(POLL)
        else:
            refusal = ""


@needs_namespaces
def test_a_client_that_asks_and_never_reads_delays_nobody_for_long(daemon: Daemon) -> None:
    with connect(daemon) as deaf:
        deaf.setblocking(False)
        try:
            while True:
                deaf.send(STATUS * 100)
        except (BlockingIOError, ConnectionError):
            pass
        assert daemon.ask("status")["connections"]


@needs_namespaces
def test_clients_that_vanish_before_the_answer_harm_nobody(daemon: Daemon) -> None:
    for command in (STATUS, b'{"command": "stats"}\n') * 20:
        with connect(daemon) as client:
            client.sendall(command)
    assert daemon.ask("stats")["counters"] is not None
    assert daemon.process.poll() is None
