"""The table of caption formats: every row is whole, and no row contradicts itself or another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from foveate.records.caption_formats import ALT, CAPTION_FORMATS, LONG_FORMATS, MEANINGS, TITLES, CaptionFormat

PAGE = (Path(__file__).parents[2] / "docs" / "verbs" / "caption.md").read_text(encoding="utf-8")
ROWS = pytest.mark.parametrize(("kind", "row"), CAPTION_FORMATS.items(), ids=list(CAPTION_FORMATS))


@ROWS
def test_every_field_has_a_value(kind: str, row: CaptionFormat) -> None:
    assert [name for name, value in asdict(row).items() if value in ("", (), 0)] in ([], ["without_alt"])
    assert row.lengths.min_tokens < row.mean_tokens < row.lengths.max_tokens
    assert kind == row.title.lower().replace("+", "_plus"), "what --format and other options read as this kind"


@ROWS
def test_the_alt_text_is_in_the_prompt_of_a_format_that_can_do_without(kind: str, row: CaptionFormat) -> None:
    assert all(("{alt}" in prompt) == bool(row.without_alt) for prompt in row.prompts)
    if row.without_alt:
        assert not CAPTION_FORMATS[row.without_alt].without_alt


@pytest.mark.parametrize("field", ["title", "label", "what", "meaning", "prompts", "form", "request"])
def test_no_two_formats_are_called_or_asked_alike(field: str) -> None:
    values = [getattr(row, field) for row in CAPTION_FORMATS.values()]
    assert len(set(values)) == len(values)


@ROWS
def test_the_page_of_the_command_lists_the_format(kind: str, row: CaptionFormat) -> None:
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{row.title.lower()}`"))
    limits = row.lengths
    assert line.endswith(f"| {limits.min_tokens} to {limits.max_tokens} | {row.temperature} | {row.max_tokens} |")


def test_long_formats_are_those_that_never_fit_the_window() -> None:
    assert "dsc_plus" in LONG_FORMATS
    assert not {"ssc", "dsc", "afc"} & set(LONG_FORMATS)


def test_pages_name_the_alt_text_before_the_formats() -> None:
    assert list(TITLES) == list(MEANINGS) == [ALT, *CAPTION_FORMATS]
