"""The page of a labeling run: what became of every image, how the regions are spread, and images with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.results import parse_result
from foveate.report import words
from foveate.report.charts import histogram, plot
from foveate.report.numbers import count
from foveate.report.page import Page, command_text
from foveate.report.pages.tour import example_groups
from foveate.report.schema import RegionsResult
from foveate.report.simple import simple_page

STATUSES = {
    "ok": "With regions",
    "no_boxes": "Nothing found",
    "no_phrases": "No phrase in the text",
    "no_caption": "No text",
    "decode_error": "Unreadable",
    "detector_error": "The detector failed",
}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a labeling run's result.json (`schema.RegionsResult`)."""
    r = parse_result(RegionsResult, result)
    charts = []
    for name, h in r.histograms.items():
        if len(h.edges) != (wanted := len(h.counts) + 1):
            raise UserError(f"result.json, field 'histograms.{name}': {len(h.counts)} counts need {wanted} edges")
        charts.append(plot(words.plain(name), histogram(h.edges, h.counts, title=words.plain(name), unit=h.unit)))
    facts = [("Images", count(r.images)), ("Regions", count(r.regions))]
    facts += [(STATUSES.get(name, words.plain(name)), count(number)) for name, number in r.status.items() if number]
    warning = "This detector is an oracle: its boxes were in the collection already. " if r.oracle else ""
    return simple_page(
        r.title or f"Regions of {r.collection or 'a collection'}",
        eyebrow="Regions",
        lead=f"{warning}Phrases of the captions, and where {r.detector} says they are.",
        facts=facts,
        charts=charts,
        charts_title="How they are spread",
        samples=example_groups(r.samples),
        samples_title="What was labeled",
        samples_note="Images as they are, with every region that this recipe gave them; the number is its score.",
        recipe={"model": r.model, "source of the rows": r.source, **r.recipe},
        command=command_text(r.command),
    )
