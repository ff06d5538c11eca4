"""`espthrunat run | status | up | down | rekey | stats | check-config`."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Annotated, Any

import typer

# Nothing else is imported here: `run` starts the data plane before it loads what IKE needs.

DEFAULT_CONTROL = Path("/run/espthrunat/control.sock")

app = typer.Typer(
    name="espthrunat",
    help="IKEv1 and ESP in UDP port 500 through NATs (draft-huttunen-ipsec-esp-in-udp-01).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="the configuration file")]
Control = Annotated[Path, typer.Option("--control", help="the daemon's control socket")]
Json = Annotated[bool, typer.Option("--json", help="print the daemon's answer as JSON")]
Timeout = Annotated[float, typer.Option(min=0.1, max=86_400, help="seconds to wait for it")]
Connection = Annotated[str, typer.Argument(metavar="CONNECTION", help="a connection's name in the configuration")]


def _fail(message: object) -> typer.Exit:
    typer.echo(f"espthrunat: {message}", err=True)
    return typer.Exit(1)


@app.command()
def run(
    config: ConfigFile,
    keylog: Annotated[
        Path | None, typer.Option("--keylog", metavar="DIR", help="write keys for Wireshark here; for debugging only")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log more")] = False,
) -> None:
    """Run the daemon and its data plane in the foreground until SIGTERM or Ctrl-C. Logs go to standard error."""
    from .plane_process import PlaneError, PlaneProcess

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    plane = PlaneProcess()
    try:
        from .config import ConfigError, load
        from .control import ControlError
        from .daemon import Daemon

        try:
            Daemon(load(config), plane, keylog).run()
        except (ConfigError, ControlError, PlaneError) as error:
            raise _fail(error) from None
        except OSError as error:
            raise _fail(f"{error.filename or config}: {error.strerror or error}") from None
    finally:
        plane.stop()


@app.command("check-config")
def check_config(config: ConfigFile) -> None:
    """Say whether a configuration can be used, and if not, which key is wrong."""
    from .config import ConfigError, load

    try:
        loaded = load(config)
    except ConfigError as error:
        raise _fail(error) from None
    for warning in loaded.warnings:
        typer.echo(f"espthrunat: warning: {warning}", err=True)
    count = len(loaded.connections)
    typer.echo(f"{config}: valid, {count} connection{'' if count == 1 else 's'}")


def _ask(control: Path, command: str, timeout: float, **arguments: str | bool) -> dict[str, Any]:
    from .control import ControlError, request

    try:
        return request(control, command, timeout, **arguments)
    except ControlError as error:
        raise _fail(error) from None


@app.command()
def status(control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """Show connections, phase 1 SAs and ESP SAs of a running daemon."""
    _show(_ask(control, "status", 5.0), as_json, "status_tables")


@app.command()
def stats(control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """Show what the data plane has counted: traffic of each SA, and drops by their kind."""
    _show(_ask(control, "stats", 5.0), as_json, "stats_tables")


def _show(answer: dict[str, Any], as_json: bool, shape: str) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    from . import tables

    tables.show(getattr(tables, shape)(answer))


def _checked(timeout: float) -> float:
    if math.isnan(timeout):  # which no range refuses
        raise typer.BadParameter("a number of seconds is needed", param_hint="--timeout")
    return timeout


@app.command()
def up(connection: Connection, control: Control = DEFAULT_CONTROL, timeout: Timeout = 60.0) -> None:
    """Bring a connection up and wait until it is."""
    answer = _ask(control, "up", _checked(timeout), connection=connection)
    typer.echo(f"{connection} is up, {answer['seconds'] * 1000:.0f} ms")


@app.command()
def rekey(
    connection: Connection,
    phase1: Annotated[bool, typer.Option("--phase1", help="replace phase 1 too")] = False,
    control: Control = DEFAULT_CONTROL,
    timeout: Timeout = 60.0,
) -> None:
    """Replace a connection's SAs by new ones now, and wait until they are up. No traffic is lost."""
    answer = _ask(control, "rekey", _checked(timeout), connection=connection, phase1=phase1)
    typer.echo(f"{connection} has new keys, {answer['seconds'] * 1000:.0f} ms")
    for sa in answer["sas"]:
        typer.echo(f"SPI in {sa['inbound_spi']}, out {sa['outbound_spi']}")


@app.command()
def down(connection: Connection, control: Control = DEFAULT_CONTROL) -> None:
    """Take a connection down, here and at the peer."""
    _ask(control, "down", 5.0, connection=connection)
    typer.echo(f"{connection} is down")


def main() -> None:
    """The program's entry point."""
    app()


if __name__ == "__main__":
    main()
