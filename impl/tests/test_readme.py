"""README's table of what is supported says the same as the code."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from espthrunat import config_tables
from espthrunat.esp.suites import SUITES
from espthrunat.ike.groups import GROUPS
from espthrunat.ike.keying import HASHES
from espthrunat.ike.policy import Authentication, EncapsulationPolicy, Exchange, IkeSuite, Rebinding
from espthrunat.messages import Mode

README = Path(__file__).parents[2] / "README.md"


def cells(row: str) -> tuple[set[str], set[str], set[str]]:
    """Of a row: what is supported, what of it is marked as legacy, and what is the default."""
    (line,) = (line for line in README.read_text().splitlines() if line.startswith(f"| {row} |"))
    _, _, supported, default, _ = re.split(r" *\|(?: |$)", line)
    legacy = set(re.findall(r"`([^`]+)`\\\*", supported))
    return set(re.findall(r"`([^`]+)`", supported)), legacy, set(re.findall(r"`([^`]+)`", default))


DEFAULT_IKE = [IkeSuite.from_name(name) for name in config_tables.DEFAULT_IKE]


@pytest.mark.parametrize(
    ("row", "known", "legacy", "default"),
    [
        ("IKE suites: cipher", {"aes128", "aes256", "3des"}, {"3des"}, {f"aes{s.key_bits}" for s in DEFAULT_IKE}),
        (
            "IKE suites: hash",
            set(HASHES),
            {n for n, h in HASHES.items() if h.legacy},
            {s.hash.text for s in DEFAULT_IKE},
        ),
        (
            "groups, of phase 1 and of PFS",
            set(GROUPS),
            {n for n, g in GROUPS.items() if g.legacy},
            {s.group.name for s in DEFAULT_IKE},
        ),
        ("ESP suites", set(SUITES), {n for n, s in SUITES.items() if s.legacy}, set(config_tables.DEFAULT_ESP)),
        ("authentication", set(Authentication), set(), {"psk"}),
        ("mode", set(Mode), set(), {"tunnel"}),
        ("encapsulation", set(EncapsulationPolicy), set(), {"auto"}),
        ("a peer whose address changes", set(Rebinding), set(), {"never"}),
    ],
)
def test_the_table_names_what_there_is(row: str, known: set[str], legacy: set[str], default: set[str]) -> None:
    assert cells(row) == (known, legacy, default)


def test_defaults_have_nothing_that_is_legacy() -> None:
    assert not any(SUITES[name].legacy for name in config_tables.DEFAULT_ESP)
    for suite in DEFAULT_IKE:
        assert not suite.cipher.legacy
        assert not suite.hash.legacy
        assert not suite.group.legacy
    assert default_of("exchange") == Exchange.MAIN
    assert default_of("rebinding") == Rebinding.NEVER


def default_of(key: str) -> object:
    fields = msgspec.structs.fields(config_tables.ConnectionTable)
    return next(field.default for field in fields if field.name == key)
