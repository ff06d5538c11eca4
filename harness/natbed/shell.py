"""The interactive shell: Mininet's command line on a lab."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, TextIO

from .faults.base import Scene
from .faults.names import FaultNameError, parse, usage
from .impairments.link import ImpairedLink
from .impairments.names import HELP as IMPAIRMENTS
from .impairments.names import ImpairmentNameError, parse_impairment
from .lab import address_seen_from
from .mininet_modules import cli, log
from .runner import LAB_ERRORS
from .stacks.base import Daemons, StackError

if TYPE_CHECKING:
    from .lab import Lab

WELCOME = """\
nodes            the nodes               net, links, dump   how they hang together
client1 ping server                      run a command on a node; names stand for addresses
nat iptables -t nat -L -n -v             what the NAT has translated
pingall          everyone to everyone    exit               end
fault reboot nat               let something go wrong; `help fault` says what there is
impair internet nat loss 5 %   a link from now on, until `impair off`; `help impair` says how
"""


class Shell(cli.CLI):  # type: ignore[misc]  # mininet is untyped
    """Mininet's command line, in which a node's name stands for the address that the commanded node reaches it by."""

    prompt = "natbed> "
    readlineInited = True  # noqa: N815 - Mininet's name; no history file in the user's home

    def __init__(self, scene: Scene, stdin: TextIO) -> None:
        self._scene = scene
        self._impaired = contextlib.ExitStack()
        try:
            super().__init__(scene.lab.network, stdin=stdin)  # which returns when the user has finished
        finally:
            self._end_impairments()

    def do_fault(self, line: str) -> None:
        """`fault reboot nat`: let something go wrong."""
        try:
            record = parse(line, self._scene.lab.scenario).strike(self._scene)
        except (FaultNameError, StackError, *LAB_ERRORS) as error:
            log.output(f"{error}\n")
            return
        log.output(f"{record.happened} ({record.ended - record.began:.2f} s)\n")

    def help_fault(self) -> None:
        """What there is, one line each."""
        log.output(f"fault NAME ..., without more the first initiator and what is next to it:\n{usage()}\n")

    def do_impair(self, line: str) -> None:
        """`impair internet nat delay 30 ms`: a link from now on, in that direction, beside what is impaired already."""
        if line.strip() == "off":
            self._end_impairments()
            return
        try:
            sender, receiver, impairment = parse_impairment(line)
            record = self._impaired.enter_context(ImpairedLink(self._scene.lab, sender, receiver, impairment))
        except (ImpairmentNameError, *LAB_ERRORS) as error:
            log.output(f"{error}\n")
            return
        measured = ", ".join(f"{name} {value:g}" for name, value in record.measured.items())
        log.output(f"{', '.join(f'{name} by {means}' for name, means in record.means.items())}; {measured}\n")

    def _end_impairments(self) -> None:
        try:
            self._impaired.close()
        except LAB_ERRORS as error:
            log.output(f"{error}\n")

    def help_impair(self) -> None:
        """How, one line each."""
        log.output(f"{IMPAIRMENTS}\n")

    def default(self, line: str) -> None:
        """`client1 ping server`: the first word is a node, the others a command for it."""
        first, arguments, _ = self.parseline(line)
        if first not in self.mn or not arguments:
            super().default(line)  # which says what is wrong
            return
        node = self.mn[first]
        words = arguments.split(" ")
        # Its own name stays as it is: in `nat iptables -t nat -L`, nat is a table.
        others = {word for word in words if word in self.mn and word != first}
        node.sendCmd(" ".join(address_seen_from(node, self.mn[word]) if word in others else word for word in words))
        self.waitForNode(node)


def open_shell(lab: Lab, stdin: TextIO | None = None, daemons: Daemons | None = None) -> None:
    """Let the user work in the lab, until `exit` or the end of `stdin`. The lab stays up, its links as they were.

    `daemons`, by host, are what faults may happen to.
    """
    if lab.network is None:
        raise ValueError("the lab is not up")
    Shell.use_rawinput = stdin is None  # history and line editing, which only the standard input has
    if stdin is None:
        sys.stdout.write(WELCOME)
    # Mininet says what it says through its log, whose place is stderr; here it is what the user asked for.
    (handler,) = log.lg.handlers
    before = handler.setStream(sys.stdout)
    try:
        Shell(Scene(lab, daemons or {}), stdin or sys.stdin)
    finally:
        if before is not None:
            handler.setStream(before)
