"""The table of presets that people read is the one that the code makes."""

from __future__ import annotations

import pathlib

import pytest

from natbed.nat import presets, table

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_the_readmes_table_is_the_codes() -> None:
    text = README.read_text(encoding="utf-8")
    begin, end = text.index(table.BEGIN), text.index(table.END) + len(table.END)
    assert text[begin:end] == table.markdown(), "python -m natbed.nat.table prints it anew"


@pytest.mark.parametrize("preset", presets.ABOUT, ids=lambda preset: preset.profile.name)
def test_each_preset_says_where_it_was_observed_and_what_it_means(preset: presets.Preset) -> None:
    (row,) = [line for line in table.markdown().splitlines() if line.startswith(f"| `{preset.profile.name}` ")]
    assert preset.observed in row
    assert preset.means in row
    assert row.count(" | ") == 7, "a cell with a bar would be two"


def test_presets_are_named_once_each() -> None:
    assert len({preset.profile.name for preset in presets.ABOUT}) == len(presets.ABOUT)
