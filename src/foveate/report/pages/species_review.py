"""Contact sheet of events to look at first, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report import numbers
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text
from foveate.report.species import format_time
from foveate.species.results import SpeciesReviewResult


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a contact sheet (`SpeciesReviewResult`)."""
    r = parse_result(SpeciesReviewResult, result)
    title = f"{numbers.count(len(r.events))} of {numbers.count(r.decisions)} to look at first"
    events = [
        (event, [(image, [] if image.box is None else [Overlay(image.box, "default")]) for image in event.images])
        for event in r.events
    ]
    context = {"r": r, "events": events, "format_time": format_time, "command": command_text(r.command)}
    return Page("species_review.html.j2", title, context)
