"""The interactive shell: Mininet's command line on a lab."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from .lab import address_seen_from
from .mininet_modules import cli, log

if TYPE_CHECKING:
    from .lab import Lab

WELCOME = """\
nodes            the nodes               net, links, dump   how they hang together
client1 ping server                      run a command on a node; names stand for addresses
nat iptables -t nat -L -n -v             what the NAT has translated
pingall          everyone to everyone    exit               end
"""


class Shell(cli.CLI):  # type: ignore[misc]  # mininet is untyped
    """Mininet's command line, in which a node's name stands for the address that the commanded node reaches it by."""

    prompt = "natbed> "
    readlineInited = True  # noqa: N815 - Mininet's name; no history file in the user's home

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


def open_shell(lab: Lab, stdin: TextIO | None = None) -> None:
    """Let the user work in the lab, until `exit` or the end of `stdin`. The lab stays up."""
    if lab.network is None:
        raise ValueError("the lab is not up")
    Shell.use_rawinput = stdin is None  # history and line editing, which only the standard input has
    if stdin is None:
        sys.stdout.write(WELCOME)
    # Mininet says what it says through its log, whose place is stderr; here it is what the user asked for.
    (handler,) = log.lg.handlers
    before = handler.setStream(sys.stdout)
    try:
        Shell(lab.network, stdin=stdin or sys.stdin)
    finally:
        if before is not None:
            handler.setStream(before)
