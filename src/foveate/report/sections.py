"""Sections that several pages have: measured values, curves, records, the recipe, nested counts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from foveate.core.results import Evaluation, Example
from foveate.report import numbers, parts, words
from foveate.report.blocks import Drawn, Section, charts_of, measures_of
from foveate.report.images import RunImages
from foveate.report.page import draw

MAX_PRINTED = 8  # fields on a line of the terminal


def numbers_section(evaluation: Evaluation | None) -> Section:
    """Return the section with a table of measured values, which the terminal prints question by question."""
    evaluation = evaluation or Evaluation()
    blocks = measures_of(evaluation.table, evaluation.columns, evaluation.interval)
    return Section("numbers", "The numbers", blocks, link="Numbers")


def charts_section(drawings: Sequence[Markup], title: str = "Training curves") -> Section:
    return Section("charts", title, charts_of(drawings), link="Charts")


def samples_section(
    run_images: RunImages,
    examples: list[Example],
    title: str = "As the model sees them",
    lead: str = "Records after preprocessing: cropped, scaled and padded, with their boxes moved along.",
) -> Section:
    """Return the section with records by source."""
    cards = [Drawn(draw("records", run_images, parts.example_groups(examples)))] if examples else []
    return Section("samples", title, cards, lead, "Samples")


def recipe_section(recipe: Mapping[str, Any]) -> Section:
    fields = [Drawn(draw("fields", name_fields(recipe)))] if recipe else []
    return Section("recipe", "The recipe", fields, link="Recipe")


def summary_section(summary: Mapping[str, Any], user_fields: Collection[str] = ()) -> Section:
    """Return the section with nested counts, which the terminal prints too; `user_fields`: see `name_fields`."""
    named = name_fields(summary, user_fields)
    block = Drawn(draw("fields", named), list(_field_lines(named)))
    return Section("summary", "What is in it", [block] if summary else [], link="Content")


def name_fields(
    values: Mapping[str, Any], user_fields: Collection[str] = (), *, named_by_user: bool = False
) -> dict[str, Any]:
    """Return nested fields under names in words.

    Args:
        user_fields: fields whose content has names that users gave, which are kept. named_by_user: these are such.
    """
    return {
        (str(key) if named_by_user else words.plain(str(key))) or "(none)": name_fields(
            value, user_fields, named_by_user=named_by_user or key in user_fields
        )
        if isinstance(value, Mapping)
        else value
        for key, value in values.items()
    }


def _field_lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Write a line for each field: numbers behind its name, and below it a line for each of its tables."""
    for name, value in values.items():
        inside = value if isinstance(value, Mapping) else {}
        texts = [f"{key}: {numbers.field(inner)}" for key, inner in inside.items() if not isinstance(inner, Mapping)]
        texts[MAX_PRINTED:] = ["and more"] if len(texts) > MAX_PRINTED else []  # the page has them all
        text = "; ".join(texts) if isinstance(value, Mapping) else numbers.field(value)
        yield f"{indent}{name}: {text}".rstrip()
        # Regions of a collection that has none would be eight lines of zeros.
        if inside.get("count") != 0:
            tables = {key: inner for key, inner in inside.items() if isinstance(inner, Mapping)}
            yield from _field_lines(tables, f"{indent}  ")
