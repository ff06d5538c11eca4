"""Coturn as an independent witness: what `turnutils_natdiscovery` says of a NAT, with coturn's server outside.

What to know of it, from its source (src/apps/natdiscovery/natdiscovery.c) and from what it says here:

- It sends each question once and waits three seconds: a lost datagram is a closed door to it, and each door that is
  shut takes three seconds. So the three questions are asked at once, by three processes.
- It compares the source that the server saw with its own socket's address, which is 0.0.0.0 unless -L names one:
  without -L it never says "No NAT".
- Without a NAT its own host answers the hairpinning question, by the loopback. Nothing is made of that here.
- "Received a request (maybe a successful hairpinning)" is said of any request that arrives: it does not look at the
  source, so it cannot tell what RFC 4787, REQ-9, asks (`external`) from `internal`.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import secrets
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from natbed.isolation import runtime_directory
from natbed.nat.profile import Filtering, Hairpinning, Mapping, NatProfile
from natbed.node import AnyProcess, Node
from natbed.process import end_processes, find_program

CLIENT, SERVER = "turnutils_natdiscovery", "turnserver"
PACKAGE = "coturn"
PORT = 3478  # RFC 8489, 19.1; the other one is the next
_QUESTIONS = ("-m", "-f", "-H")
_SECONDS = 30.0  # that it may take; its own waits are 9 s at most
_START_SECONDS = 10.0
_BINDING, _SUCCESS, _COOKIE, _OTHER_ADDRESS = 0x0001, 0x0101, 0x2112A442, 0x802C  # RFC 8489, 5; RFC 5780, 7.4
_HAIRPINNED = "Received a request (maybe a successful hairpinning)"
_FOUND = re.compile(
    r"NAT with (Endpoint Independent|Address Dependent|Address and Port Dependent) (Mapping|Filtering)!"
)
_DEPENDS = {
    "Endpoint Independent": "endpoint-independent",
    "Address Dependent": "address-dependent",
    "Address and Port Dependent": "address-and-port-dependent",
}


class WitnessError(Exception):
    """The witness cannot be heard: the message says which program, and its last words."""


@dataclass(frozen=True, slots=True)
class Word:
    """What the witness says. `hairpins` is None where it says nothing that means anything: without a NAT."""

    mapping: Mapping
    filtering: Filtering
    hairpins: bool | None


def missing() -> list[str]:
    """The witness's programs that this machine lacks."""
    found = []
    for program in (CLIENT, SERVER):
        try:
            find_program(program)
        except FileNotFoundError:
            found.append(program)
    return found


def expected(profile: NatProfile) -> Word:
    """What the witness has to say of a NAT with that profile."""
    hairpins = None if profile.mapping is Mapping.NONE else profile.hairpinning is not Hairpinning.NONE
    return Word(profile.mapping, profile.filtering, hairpins)


@contextlib.contextmanager
def serving(node: Node, addresses: tuple[str, str]) -> Iterator[None]:
    """Coturn's STUN server on two of the node's addresses and two ports. Raises `WitnessError`."""
    with tempfile.TemporaryDirectory(prefix="coturn-", dir=runtime_directory()) as name:
        folder = pathlib.Path(name)
        log = folder / "log"
        options = (
            f"-n --stun-only --no-auth --no-tcp --no-tls --no-dtls --no-cli --listening-port {PORT} --relay-threads 1"
        )
        listening = [word for address in addresses for word in ("--listening-ip", address)]
        files = ["--log-file", "stdout", "--pidfile", str(folder / "pid"), "--userdb", str(folder / "db")]
        command = [SERVER, *options.split(), *listening, *files]
        with log.open("wb") as output:
            process = node.popen(command, cwd=folder, stdout=output, stderr=output)
        try:
            _await_server(node, addresses[0], process, log)
            yield
        finally:
            end_processes([process])


def _await_server(node: Node, address: str, process: AnyProcess, log: pathlib.Path) -> None:
    """Until it answers, and says that it has another address."""
    until = time.monotonic() + _START_SECONDS
    with node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(0.05)
        while True:
            request = struct.pack("!HHI", _BINDING, 0, _COOKIE) + secrets.token_bytes(12)
            sock.sendto(request, (address, PORT))
            try:
                answer = sock.recv(2048)
            except (TimeoutError, ConnectionRefusedError):
                answer = b""
            if answer[4:20] == request[4:20] and answer[:2] == struct.pack("!H", _SUCCESS):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise WitnessError(f"{SERVER} does not answer: {_last(log.read_text(errors='replace'))}")
    if struct.pack("!H", _OTHER_ADDRESS) not in answer[20:]:
        raise WitnessError(f"{SERVER} names no other address (RFC 5780), though it listens on two")


class Interview:
    """The witness's questions behind one NAT, asked at once by processes of their own; they end with the node."""

    def __init__(self, node: Node, address: str, server: str) -> None:
        """Begin, on a host with that address. Raises `WitnessError`."""
        self._where = node.name
        try:
            self._asked = {
                question: node.popen(
                    [CLIENT, question, "-L", address, "-p", str(PORT), server],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for question in _QUESTIONS
            }
        except FileNotFoundError as error:
            raise WitnessError(str(error)) from error

    def word(self) -> Word:
        """What it came to, once it has. Raises `WitnessError`."""
        said = {}
        for question, process in self._asked.items():
            try:
                said[question] = str(process.communicate(timeout=_SECONDS)[0])
            except subprocess.TimeoutExpired:
                end_processes([process])
                raise WitnessError(f"{CLIENT} {question} on {self._where} did not end in {_SECONDS:g} s") from None
        try:
            return read(said["-m"], said["-f"], said["-H"])
        except WitnessError as error:
            raise WitnessError(f"on {self._where}: {error}") from None


def read(mapping: str, filtering: str, hairpinning: str) -> Word:
    """What the outputs for -m, -f and -H say. Raises `WitnessError` where they say nothing."""
    found = {}
    for question, what, text in (("-m", "Mapping", mapping), ("-f", "Filtering", filtering)):
        kinds = [kind for kind, of in _FOUND.findall(text) if of == what]
        if len(kinds) != 1:
            raise WitnessError(f"{CLIENT} {question} says nothing of {what.lower()}: {_last(text)}")
        found[what] = _DEPENDS[kinds[0]]
    if "RFC 5780 response 1" not in hairpinning:
        raise WitnessError(f"{CLIENT} -H was not answered by its server: {_last(hairpinning)}")
    if "No NAT!" in mapping:
        # it goes on to ask, and finds whatever the path does: only a firewall would filter here
        none = Filtering.NONE if found["Filtering"] == Filtering.ENDPOINT_INDEPENDENT else Filtering(found["Filtering"])
        return Word(Mapping.NONE, none, None)
    return Word(Mapping(found["Mapping"]), Filtering(found["Filtering"]), _HAIRPINNED in hairpinning)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" =")]
    return lines[-1] if lines else "it said nothing"
