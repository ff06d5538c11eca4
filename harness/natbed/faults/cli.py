"""The command line's options about faults. What they need is loaded only when one is given."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from natbed.runner import RunOptions
    from natbed.scenario import Scenario

_HELP = "let this happen at the end, under traffic: reboot, renumber, expire, link, kill, restart, "
_HELP += "plane, marker, checksum, replay or forge, and where ('reboot nat2'); traffic must come back"

FaultOption = Annotated[str, typer.Option("--fault", metavar="FAULT", help=_HELP)]
WithinOption = Annotated[float, typer.Option(min=0.1, max=600, help="seconds in which it must come back")]


def with_fault(scenario: type[Scenario], options: RunOptions, fault: str, within: float) -> RunOptions:
    """The options of a run with that fault, if one is given. Raises typer.BadParameter where it cannot be."""
    if not fault:
        return options
    from natbed.runner import planned_fault

    from .names import LASTING, FaultNameError

    if (name := fault.replace(",", " ").split()[:1]) and name[0] in LASTING:
        raise typer.BadParameter(f"{name[0]!r} is for the shell: nothing comes back by itself", param_hint="--fault")
    options = dataclasses.replace(options, fault=fault, within=within)
    try:
        planned_fault(scenario, options)
    except FaultNameError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from None
    return options
