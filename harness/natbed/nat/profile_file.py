"""NAT profiles in files: TOML with the keys of NatProfile, as `natbed fingerprint --output` writes it."""

from __future__ import annotations

import json
import pathlib
import re
import tomllib
from typing import Any

import msgspec

from .passthrough_presets import PASSTHROUGH
from .presets import PRESETS
from .profile import NatProfile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it becomes part of file names
_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)
_INDEX = re.compile(r"[^.\[\]]+")
_MOST = 65_536  # octets of a file


class ProfileError(Exception):
    """No profile: the message names the file, and the key and its value where one is wrong."""


def load(file: pathlib.Path) -> NatProfile:
    """The profile in a file. Raises `ProfileError`."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST + 1)
    except OSError as error:
        raise ProfileError(f"{file}: {error.strerror}") from error
    if len(data) > _MOST:
        raise ProfileError(f"{file}: longer than {_MOST} octets, which no profile is")
    try:
        table = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"{file}: not TOML: {error}") from error
    try:
        profile = msgspec.convert(table, NatProfile)
    except msgspec.ValidationError as error:
        raise ProfileError(f"{file}: {_explained(str(error), table)}") from error
    if not is_name(profile.name):
        raise ProfileError(f"{file}: name = {_shown(profile.name)}: letters, digits, '.', '_' and '-', 64 at most")
    return profile


def is_name(name: str) -> bool:
    """Whether a profile in a file may be called so."""
    return _NAME.fullmatch(name) is not None


def find(value: str) -> NatProfile:
    """The preset of that name, or the profile in the file of that name. Raises `ProfileError`."""
    presets = {**PRESETS, **{name: one.profile for name, one in PASSTHROUGH.items()}}
    if value in presets:
        return presets[value]
    if "/" in value or value.endswith(".toml") or pathlib.Path(value).is_file():
        return load(pathlib.Path(value))
    raise ProfileError(f"{value!r}; there are {', '.join(presets)}, or the name of a profile's file")


def render(profile: NatProfile, comments: tuple[str, ...] = ()) -> str:
    """The profile as TOML, which `load` reads back as the same; comments come first."""
    lines = [f"# {comment}" for comment in comments]
    for key, value in msgspec.to_builtins(profile).items():
        if value is not None:
            lines.append(f"{key} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """Strings and numbers are written as in JSON; tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def _explained(message: str, table: dict[str, Any]) -> str:
    found = _WHERE.match(message)
    what, where = (found["what"], found["where"]) if found else (message, None)
    if not where:
        return what
    value: Any = table
    try:
        for part in _INDEX.findall(where):
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (KeyError, IndexError, ValueError, TypeError):
        return f"{where}: {what}"
    return f"{where} = {_shown(value)}: {what}"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
