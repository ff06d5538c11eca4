"""`natbed nats`."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from natbed.nat.profile import NatProfile

    from .proof import Proof

FAILED, USAGE, LAB_BROKEN, INTERRUPTED = 1, 2, 3, 130  # exit codes, as those of natbed's other commands


def nats(
    nat: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAT]...", help="presets, or files of natbed fingerprint; default: all presets"),
    ] = None,
    timeouts: Annotated[
        bool, typer.Option("--timeouts", help="measure the UDP timeouts too: for all presets some six minutes")
    ] = False,
    ask_witness: Annotated[
        bool, typer.Option("--witness/--no-witness", help="ask turnutils_natdiscovery too, where coturn is installed")
    ] = True,
    patience: Annotated[float, typer.Option(min=0.05, max=30, help="seconds that an answer may take")] = 1.0,
    markdown: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE", help="write the table there too, as Markdown")
    ] = None,
) -> None:
    """Build NATs, measure each from outside, and compare: declared, measured, and what coturn's client says of it.

    Measured is what natbed fingerprint measures, from one host behind each, all at once. What it cannot see is listed
    with the reason; a quirk is proved by its own check.

    Exit code 0: all is as declared, 1: something is not, 2: the command makes no sense, 3: the lab itself was broken,
    130: interrupted.
    """
    from natbed.isolation import IsolationError, isolate

    from . import witness
    from .network import MOST

    profiles = _profiles(nat or [])
    if len(profiles) > MOST:
        _fail(f"{len(profiles)} NATs; {MOST} fit into one network", USAGE)
    if markdown is not None and not markdown.parent.is_dir():
        _fail(f"--markdown {markdown}: there is no folder {markdown.parent}", USAGE)
    try:
        isolate()  # before anything starts a thread
    except IsolationError as error:
        _fail(str(error), LAB_BROKEN)
    missing = witness.missing() if ask_witness else []
    try:
        proofs = _proofs(profiles, timeouts, ask_witness and not missing, patience)
    except KeyboardInterrupt:
        typer.echo("natbed: interrupted; everything is taken down", err=True)
        raise typer.Exit(INTERRUPTED) from None
    from . import report

    report.show(proofs)
    if missing:
        typer.echo(f"missing   {', '.join(missing)} (Debian: {witness.PACKAGE}), so nobody else was asked")
    if markdown is not None:
        try:
            markdown.write_text(report.as_markdown(proofs), encoding="utf-8")
        except OSError as error:
            _fail(f"{markdown}: cannot be written: {error.strerror}", USAGE)
        typer.echo(f"table     {markdown}")
    raise typer.Exit(0 if report.equal(proofs) else FAILED)


def all_presets() -> list[NatProfile]:
    """Those on RFC 4787's axes, then the IPsec-aware ones."""
    from natbed.nat.passthrough_presets import PASSTHROUGH
    from natbed.nat.presets import PRESETS

    return [*PRESETS.values(), *(one.profile for one in PASSTHROUGH.values())]


def _profiles(names: list[str]) -> list[NatProfile]:
    from natbed.nat import limits
    from natbed.nat.profile_file import ProfileError, find

    try:
        found = [find(name) for name in names] or all_presets()
        for profile in found:
            limits.check(profile)
    except (ProfileError, ValueError) as error:
        _fail(str(error), USAGE)
    return found


def _proofs(profiles: list[NatProfile], timeouts: bool, ask_witness: bool, patience: float) -> list[Proof]:
    from rich.console import Console

    from natbed.runner import LAB_ERRORS
    from natbed.scenario import ScenarioError

    from .proof import ProofError, prove
    from .witness import WitnessError

    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with progress.status("") as status:

            def say(step: str) -> None:
                status.update(step) if progress.is_terminal else None

            return prove(profiles, timeouts=timeouts, ask_witness=ask_witness, patience=patience, say=say)
    except (ProofError, WitnessError, ScenarioError, *LAB_ERRORS) as error:
        _fail(str(error), LAB_BROKEN)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"natbed: {message}", err=True)
    raise typer.Exit(code)
