"""Page of a labeling run: statuses of images, histograms of regions, and sample images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.caption.vesl.results import RegionsResult
from foveate.core.errors import UserError
from foveate.core.results import parse_result
from foveate.report import words
from foveate.report.charts import histogram, plot
from foveate.report.examples import example_groups
from foveate.report.numbers import count
from foveate.report.page import Page, command_text
from foveate.report.simple import simple_page

STATUSES = {
    "ok": "With regions",
    "no_boxes": "No box detected",
    "no_phrases": "No phrase in the caption",
    "no_caption": "No caption",
    "decode_error": "Unreadable",
    "detector_error": "Detector failed",
}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a labeling run's result.json (`RegionsResult`)."""
    r = parse_result(RegionsResult, result)
    charts = []
    for name, h in r.histograms.items():
        expected = len(h.counts) + 1
        # Checked here, because `histogram` raises a ValueError that names no field of result.json.
        if len(h.edges) != expected:
            raise UserError(
                f"result.json, field 'histograms.{name}': {len(h.counts)} counts need {expected} edges "
                f"(got {len(h.edges)})"
            )
        charts.append(plot(words.plain(name), histogram(h.edges, h.counts, title=words.plain(name), unit=h.unit)))
    facts = [("Images", count(r.images)), ("Regions", count(r.regions))]
    facts += [(STATUSES.get(name, words.plain(name)), count(number)) for name, number in r.status.items() if number]
    # Boxes that were known in advance must not be read as found by a detector.
    warning = "This detector is an oracle: its boxes were in the collection already. " if r.oracle else ""
    return simple_page(
        r.title or f"Regions of {r.collection or 'a collection'}",
        eyebrow="Regions",
        lead=f"{warning}Phrases of the captions, located by {r.detector}.",
        facts=facts,
        charts=charts,
        charts_title="Distributions",
        samples=example_groups(r.samples),
        samples_title="Samples",
        samples_note="Images with all regions of this recipe; the number is a region's score.",
        recipe={"model": r.model, "source of the rows": r.source, **r.recipe},
        command=command_text(r.command),
    )
