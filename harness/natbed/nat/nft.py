"""Gets an nftables table into a NAT, and finds it there."""

from __future__ import annotations

import collections
import json
import re

from .remembering import REFUSED, TABLE
from .target import NatError, RulesTarget

_CHAIN = re.compile(r"^\tchain (\w+) \{\n(.*?)^\t\}$", re.MULTILINE | re.DOTALL)


def install(node: RulesTarget, text: str) -> None:
    """Put the table into the node, whole or not at all, and see that it has it.

    Raises `NatError`, or the node's own errors.
    """
    node.run(["nft", "-f", "-"], input=text)
    verify(node, text)


def verify(node: RulesTarget, text: str) -> None:
    """See that each chain of the text has as many rules in the node, and that there is no other. Raises `NatError`."""
    asked = chains_of(text)
    listed = json.loads(node.run(["nft", "-j", "-t", "list", "table", *TABLE.split()]).stdout)["nftables"]
    counted = collections.Counter(one["rule"]["chain"] for one in listed if "rule" in one)
    found = {one["chain"]["name"]: counted[one["chain"]["name"]] for one in listed if "chain" in one}
    if found != asked:
        raise NatError(f"{node.name}: rules in nftables' chains: {found}; asked for: {asked}")


def refused(node: RulesTarget) -> int:
    """How many packets from outside the table has dropped since their mapping had ended."""
    listed = json.loads(node.run(["nft", "-j", "list", "counter", *TABLE.split(), REFUSED]).stdout)["nftables"]
    return sum(int(one["counter"]["packets"]) for one in listed if "counter" in one)


def chains_of(text: str) -> dict[str, int]:
    """How many rules each chain of a table's text has."""
    return {
        name: sum(bool(line.strip()) and not line.strip().startswith("type ") for line in body.splitlines())
        for name, body in _CHAIN.findall(text)
    }
