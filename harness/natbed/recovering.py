"""A fault under traffic in a lab whose tunnels are up, and what daemons logged and NATs held afterwards."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence

import msgspec

from .checks import CheckResult
from .checks.recovery import check_recovery
from .checks.sa_pairs import RekeyTarget
from .conntrack import udp_mappings
from .faults.base import Fault, Scene
from .nat.profile import Kind

_LINES = 200  # of each log


def judge_recovery(
    scene: Scene, fault: Fault, targets: Sequence[RekeyTarget], evidence: pathlib.Path, *, one_flow: bool, within: float
) -> CheckResult:
    """Whether traffic comes back within so many seconds; `evidence` has a folder of logs of each host.

    Raises what the fault raises.
    """
    logs = Logs(evidence, scene.daemons)
    result = check_recovery(targets, lambda: fault.strike(scene), one_flow=one_flow, within=within)
    nats = [nat for nat in scene.lab.nats if nat.profile.kind is not Kind.NONE]
    held = {nat.name: msgspec.to_builtins(udp_mappings(nat)) for nat in nats}
    details = {**result.details, "logged": logs.news(), "mappings_afterwards": held}
    return msgspec.structs.replace(result, details=details)


class Logs:
    """The logs of the hosts' implementations, from now on."""

    def __init__(self, evidence: pathlib.Path, hosts: Iterable[str]) -> None:
        files = [file for host in hosts for file in sorted((evidence / host).glob("*.log"))]
        self._read = {file: file.stat().st_size for file in files}

    def news(self) -> dict[str, list[str]]:
        """The lines that have been added, by host; of many the last."""
        found: dict[str, list[str]] = {}
        for file, offset in self._read.items():
            with file.open("rb") as log:
                log.seek(offset)
                lines = log.read().decode(errors="replace").splitlines()
            found.setdefault(file.parent.name, []).extend(lines[-_LINES:])
        return found
