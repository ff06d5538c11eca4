"""`natbed reflector | fingerprint`."""

from __future__ import annotations

import ipaddress
import pathlib
import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .reflector import DEFAULT_PORTS, Reflector

if TYPE_CHECKING:
    from .measured import Fingerprint
    from .profile import NatProfile

FAILED, USAGE, INTERRUPTED = 1, 2, 130  # exit codes, as those of natbed's other commands

NatOption = Annotated[
    str,
    typer.Option(
        help="what the NAT does: masquerade, symmetric, ipsec-passthrough-... (README), routed for none, "
        "or a file of natbed fingerprint"
    ),
]


def reflector(
    address: Annotated[list[str], typer.Option("--address", metavar="ADDRESS", help="an address of this host; twice")],
    port: Annotated[
        list[int] | None,
        typer.Option(
            "--port", metavar="PORT", help=f"a UDP port; twice; default: {DEFAULT_PORTS[0]}, {DEFAULT_PORTS[1]}"
        ),
    ] = None,
) -> None:
    """Serve `natbed fingerprint` from outside a NAT, until interrupted. Needs two public addresses, as RFC 5780 does.

    It answers each request with as many octets as that has, to the address that it came from, and nothing else.

    Exit code 2: the command makes no sense, or an address cannot be used, 130: interrupted.
    """
    addresses = tuple(_address("--address", one) for one in address)
    ports = tuple(port or DEFAULT_PORTS)
    if len(set(addresses)) != 2 or len(addresses) != 2:
        _fail("--address: two of them, which differ", USAGE)
    if len(set(ports)) != 2 or len(ports) != 2 or not all(0 < one <= 0xFFFF for one in ports):
        _fail("--port: two of them, from 1 to 65535, which differ", USAGE)
    try:
        server = Reflector((addresses[0], addresses[1]), (ports[0], ports[1]), lambda line: typer.echo(line, err=True))
    except OSError as error:
        _fail(str(error.strerror), USAGE)
    typer.echo(f"reflector on {addresses[0]} and {addresses[1]}, UDP ports {ports[0]} and {ports[1]}", err=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        server.close()


def fingerprint(
    server: Annotated[str, typer.Option(metavar="ADDRESS", help="the reflector's first address")],
    port: Annotated[int, typer.Option(min=1, max=0xFFFF, help="its first port")] = DEFAULT_PORTS[0],
    server2: Annotated[
        str, typer.Option("--server2", metavar="ADDRESS", help="its other address, where it does not know that itself")
    ] = "",
    timeouts: Annotated[
        bool, typer.Option(help="measure the UDP timeouts too, which takes as long as they are")
    ] = True,
    longest: Annotated[int, typer.Option(min=1, max=3600, help="look for timeouts up to so many seconds")] = 300,
    patience: Annotated[float, typer.Option(min=0.05, max=30, help="seconds that an answer may take")] = 1.0,
    name: Annotated[str, typer.Option(help="the profile's name; default: the file's")] = "",
    output: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE", help="write the profile, for natbed run --nat FILE")
    ] = None,
) -> None:
    """Measure the NAT that this host is behind, with a `natbed reflector` outside.

    Exit code 0: measured, 1: the reflector cannot be reached, 2: the command makes no sense, 130: interrupted.
    """
    from rich.console import Console

    from . import profile_file
    from .fingerprint import FingerprintError, Surveyor, opener, source_towards

    at, other = _address("--server", server), _address("--server2", server2) if server2 else ""
    if at == other:
        _fail("--server and --server2 must differ", USAGE)
    called = name or (output.stem if output else "measured")
    if not profile_file.is_name(called):
        _fail(f"--name {called!r}: letters, digits, '.', '_' and '-', 64 at most", USAGE)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        inside = opener(source_towards(at))
        with progress.status("") as status:

            def say(text: str) -> None:
                status.update(text) if progress.is_terminal else None

            found = Surveyor(inside, (at, port), patience, other=other, say=say).measure()
            if timeouts:
                found = _with_timeouts(found, inside, (at, port), patience, longest, say)
    except FingerprintError as error:
        _fail(str(error), FAILED)
    except OSError as error:
        _fail(f"{at}: {error.strerror}", FAILED)
    except KeyboardInterrupt:
        typer.echo("natbed: interrupted; nothing was written", err=True)
        raise typer.Exit(INTERRUPTED) from None
    from .meaning import show

    show(found, Console(soft_wrap=True, highlight=False))
    if output is not None:
        when = time.strftime("%Y-%m-%d")
        comments = (f"measured by natbed fingerprint on {when}", *([] if timeouts else ["timeouts were not measured"]))
        try:
            output.write_text(profile_file.render(found.profile(called), comments), encoding="utf-8")
        except OSError as error:
            _fail(f"{output}: cannot be written: {error.strerror}", USAGE)
        typer.echo(f"profile   {output}")


def _with_timeouts(found: Fingerprint, *arguments: object) -> Fingerprint:
    import msgspec

    from .timeouts import measure_timeouts

    unreplied, replied = measure_timeouts(*arguments)  # type: ignore[arg-type]
    return msgspec.structs.replace(found, udp_timeout=unreplied, udp_timeout_stream=replied)


def profile_of(nat: str) -> NatProfile:
    """What --nat says, a preset's name or a file's, where rules can make it. Raises typer.BadParameter."""
    from . import limits
    from .profile_file import ProfileError, find

    try:
        profile = find(nat)
        limits.check(profile)
    except (ProfileError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--nat") from error
    return profile


def _address(option: str, value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        _fail(f"{option} {value}: not an IPv4 address", USAGE)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"natbed: {message}", err=True)
    raise typer.Exit(code)
